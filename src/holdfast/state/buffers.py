"""The buffers of a module: forward may write them, so what they hold at a boundary is copied there.

Copying all would cost too much where there are large ones, most of which never change (masks, position tables). Those
are left where they are, and watched; one that is seen to change is copied at every boundary from then on.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from holdfast.state.card_copies import CardCopies
from holdfast.state.module_tensors import TensorSlot
from holdfast.state.sharding import local_of

# In all. On a device one kernel copies them, beside the training.
_COPIED_BYTES = {"cpu": 1 << 20, "cuda": 16 << 20}
_SAMPLES = 8
_SAMPLE_BYTES = 64


class BufferRecord(NamedTuple):
    """The values of buffers at one boundary: bytes where memory can be read, copies elsewhere."""

    in_windows: Sequence[tuple[TensorSlot, torch.Tensor]]
    raw: Sequence[bytes]
    copies: Mapping[str, torch.Tensor]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the buffers as they were, by the names that they have in the file."""
        tensors = dict(self.copies)
        for (slot, like), raw in zip(self.in_windows, self.raw, strict=True):
            tensor = tensors[slot.stored] = torch.empty_like(like)
            ctypes.memmove(tensor.data_ptr(), raw, len(raw))
        return tensors


class Buffers:
    """The buffers of one module.

    Args:
        slots: Their slots, no tensor twice.
        moving: The names of large ones that are known to change.
    """

    def __init__(self, slots: Sequence[TensorSlot], moving: Iterable[str] = ()) -> None:
        self._slots = [(slot, local_of(slot.tensor).detach()) for slot in slots]
        self._moving = set(moving)
        self._sort()

    @property
    def live(self) -> dict[str, torch.Tensor]:
        """Those that stand still, as far as was seen, by the names that they have in the file."""
        return {slot.stored: tensor for slot, tensor in self._watched}

    @property
    def moving(self) -> dict[str, int]:
        """The large ones that were seen to change, and the bytes that copying each takes at every boundary."""
        return {slot.name: tensor.nbytes for slot, tensor in self._slots if slot.name in self._moving}

    @property
    def arrangement(self) -> int:
        """The number of those that were seen to change: it differs when `live` would give other tensors."""
        return len(self._moving)

    def record(self) -> BufferRecord:
        """Copies those that may change, as of now."""
        if self._watches:
            watches = zip(self._watched, self._watches, strict=True)
            if moved := [slot.name for (slot, _), watch in watches if watch.has_moved()]:
                self._moving.update(moved)
                self._sort()
        copies = self._copies.take(self._copied) if self._copied else {}
        return BufferRecord(self._in_windows, [window.raw for window in self._windows], copies)

    def _sort(self) -> None:
        """Decides of each whether it is copied, the smallest first, or watched."""
        left = dict(_COPIED_BYTES)
        # A sparse one has no size of its own, and no memory that could be left where it is.
        copied = [pair for pair in self._slots if pair[1].layout != torch.strided]
        self._watched: list[tuple[TensorSlot, torch.Tensor]] = []
        dense = [pair for pair in self._slots if pair[1].layout == torch.strided]
        for slot, tensor in sorted(dense, key=lambda pair: pair[1].nbytes):
            device = tensor.device.type
            left[device] = left.get(device, 0) - tensor.nbytes
            (copied if left[device] >= 0 or slot.name in self._moving else self._watched).append((slot, tensor))
        self._in_windows = [(slot, tensor) for slot, tensor in copied if has_plain_memory(tensor)]
        self._windows = [window(tensor, 0, tensor.nbytes) for _, tensor in self._in_windows]
        self._copied = {slot.stored: tensor for slot, tensor in copied if not has_plain_memory(tensor)}
        self._copies = CardCopies()
        self._watches = [Watch(tensor) for _, tensor in self._watched]


class Watch:
    """Tells if a tensor was written since it was last asked, as far as its version and samples of it show."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        step = max(1, tensor.nbytes // _SAMPLES)
        offsets = range(0, tensor.nbytes, step) if has_plain_memory(tensor) else ()
        self._windows = [window(tensor, offset, min(_SAMPLE_BYTES, tensor.nbytes - offset)) for offset in offsets]
        self._last = self._look()

    def has_moved(self) -> bool:
        """Returns whether it was."""
        before, self._last = self._last, self._look()
        return before != self._last

    def _look(self) -> tuple[int, list[bytes]]:
        version = 0 if self._tensor.is_inference() else self._tensor._version
        return version, [window.raw for window in self._windows]


def has_plain_memory(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor's bytes lie in host memory, in the order of its indices."""
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()


def window(tensor: torch.Tensor, begin: int, size: int) -> "ctypes.Array[ctypes.c_char]":
    """Returns some bytes of such a tensor, as they are whenever they are asked for."""
    return (ctypes.c_char * size).from_address(tensor.data_ptr() + begin)
