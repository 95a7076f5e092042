"""Notes that are taken on the cards beside a snapshot's copies: samples that tell of writes past the gate, and of NaN.

They are enqueued, and read when all is written. Nobody waits for them.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch

from holdfast.capture.chunks import bytes_of, in_order
from holdfast.devices.device import Device

# Of others a card has no norm. They are looked at by their bits when they are in the memory of the host.
_WITH_NORM = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
)


class HostBytes:
    """A piece of host memory that small things are copied into, one after the other.

    Args:
        memory: The bytes (flat, uint8), which copies reach.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self._used = 0

    @property
    def left(self) -> int:
        """The bytes that are left."""
        return self._memory.numel() - self._used

    def take(self, size: int) -> torch.Tensor:
        """Returns the next `size` bytes."""
        assert size <= self.left, "the notes of a snapshot are larger than a slab"
        self._used += size
        return self._memory[self._used - size : self._used]


class CardNotes:
    """The notes of one snapshot.

    Args:
        device: The device.
        host: Where they are copied to.
        full: The cards on which no memory is to be asked for.
    """

    def __init__(self, device: Device, host: HostBytes, full: Collection[int] = ()) -> None:
        self._device = device
        self.full = full
        """The cards on which no memory is to be asked for: nothing is gathered there, nor looked at for NaN."""
        self._host = host
        self._finite: list[tuple[Sequence[str], torch.Tensor]] = []

    @property
    def left(self) -> int:
        """The bytes of the host that are left."""
        return self._host.left

    def gather(self, card: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Enqueues copies of small tensors of a card, as one.

        Args:
            card: The card.
            tensors: The tensors, in whatever order their bytes lie.

        Returns:
            The bytes of the host that they will be in, one after the other, each in the order of its indices.
        """
        target = self._host.take(sum(tensor.nbytes for tensor in tensors))
        if card in self.full:
            for tensor, place in zip(tensors, torch.split(target, [tensor.nbytes for tensor in tensors]), strict=True):
                self._device.copy(card, bytes_of(tensor), place)
        elif tensors:
            together = torch.empty(target.numel(), dtype=torch.uint8, device=tensors[0].device)
            self._device.enqueue(card, partial(_join, tensors, together))
            self._device.copy(card, together, target)
        return target

    def look_for_nan(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Enqueues the search for NaN and infinity in those of some tensors that a card has norms of."""
        groups: dict[tuple[int, torch.dtype], dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            card = self._device.card_of(tensor)
            if card is not None and card not in self.full and has_norm(tensor):
                groups.setdefault((card, tensor.dtype), {})[name] = tensor.detach()
        for (card, _), group in groups.items():
            target = self._host.take(len(group))
            flags = torch.empty(len(group), dtype=torch.uint8, device=next(iter(group.values())).device)
            self._device.enqueue(card, partial(_look, list(group.values()), flags))
            self._device.copy(card, flags, target)
            self._finite.append((list(group), target))

    def not_finite(self) -> set[str]:
        """Returns the names of those in which there was NaN or infinity. All that was enqueued must be over."""
        return {
            name for names, flags in self._finite for name, flag in zip(names, flags.tolist(), strict=True) if not flag
        }


def has_norm(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor has a norm that says whether it is finite. One without fails all in its list."""
    return bool(tensor.numel()) and tensor.dtype in _WITH_NORM and tensor.layout == torch.strided


def _join(tensors: Sequence[torch.Tensor], together: torch.Tensor) -> None:
    torch.cat([bytes_of(in_order(tensor)) for tensor in tensors], out=together)


def _look(tensors: Sequence[torch.Tensor], flags: torch.Tensor) -> None:
    with torch.no_grad():
        norms = torch._foreach_norm([_real(tensor) for tensor in tensors], float("inf"))
        flags.copy_(torch.stack(list(norms)).isfinite())


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a complex tensor as pairs of real numbers. Whether it is conjugate says nothing of what is finite."""
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)
