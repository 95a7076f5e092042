"""The second net: it tells when somebody writes to the state past the gate.

A fused optimizer without a hook, `.data`, weights swapped for an evaluation or merged for generation: they move no
version counter that could be relied on, and two reads of the wrong weights agree with each other. So the state is
marked at each boundary, and compared when a snapshot begins and before the gate opens.
"""

import ctypes
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch

_PLACES = 16
_PLACE_BYTES = 64
_version = attrgetter("_version")


class Fingerprint(NamedTuple):
    """How the tensors looked at one moment."""

    pointers: list[int]
    versions: list[int]
    sample: bytes
    device_sample: torch.Tensor | None
    event: torch.cuda.Event | None
    """On CUDA, what is enqueued before this mark: the update itself."""


class WriteDetector:
    """Marks a set of tensors, and compares marks.

    Args:
        tensors: The tensors, by name. They are held, so that what was sampled cannot vanish meanwhile.
        swapped: Of how many, from the first, the data pointer and version are marked too. Those of the others cost
            80 ns each, and nobody swaps an optimizer's moments.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], swapped: int | None = None) -> None:
        self._names = list(tensors)
        self._tensors = list(tensors.values())
        self._marked = self._tensors[:swapped]
        places = _places(self._tensors)
        self._sampled = [(i, o, n) for i, o, n in places if self._tensors[i].device.type == "cpu"]
        # An alias keeps the memory alive when a parameter is given other data.
        self._aliases = [self._tensors[i].detach() for i, _, _ in self._sampled]
        self._windows = [
            (ctypes.c_char * n).from_address(alias.data_ptr() + o)
            for alias, (_, o, n) in zip(self._aliases, self._sampled, strict=True)
        ]
        self._on_device = [(i, o, n) for i, o, n in places if self._tensors[i].device.type == "cuda"]
        self._views = [_bytes_of(self._tensors[i])[o : o + n] for i, o, n in self._on_device]

    def mark(self) -> Fingerprint:
        """How the tensors look now."""
        return Fingerprint(
            list(map(torch.Tensor.data_ptr, self._marked)),
            list(map(_version, self._marked)),
            b"".join(self._windows),
            torch.cat(self._views) if self._views else None,
            torch.cuda.current_stream(self._views[0].device).record_event() if self._views else None,
        )

    def changed(self, then: Fingerprint, now: Fingerprint) -> list[str]:
        """The names of tensors that are seen to differ between two marks."""
        moved = {
            name
            for name, *pairs in zip(self._names, then.pointers, now.pointers, then.versions, now.versions, strict=False)
            if pairs[0] != pairs[1] or pairs[2] != pairs[3]
        }
        begin = 0
        for index, _, size in self._sampled:
            if then.sample[begin : begin + size] != now.sample[begin : begin + size]:
                moved.add(self._names[index])
            begin += size
        moved.update(self._changed_on_device(then.device_sample, now.device_sample))
        return [name for name in self._names if name in moved]

    def _changed_on_device(self, then: torch.Tensor | None, now: torch.Tensor | None) -> set[str]:
        if then is None or now is None or torch.equal(then, now):
            return set()
        differs = (then != now).cpu()
        found, begin = set(), 0
        for index, _, size in self._on_device:
            if bool(differs[begin : begin + size].any()):
                found.add(self._names[index])
            begin += size
        return found


def _places(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    """TensorRanges spread evenly over the bytes of all tensors: index, offset, size."""
    sizes = [tensor.nbytes if _is_plain(tensor) else 0 for tensor in tensors]
    total = sum(sizes)
    found, index, before = [], 0, 0
    for place in range(_PLACES if total else 0):
        wanted = total * (2 * place + 1) // (2 * _PLACES)
        while wanted >= before + sizes[index]:
            before += sizes[index]
            index += 1
        offset = min(wanted - before, max(0, sizes[index] - _PLACE_BYTES))
        found.append((index, offset, min(_PLACE_BYTES, sizes[index])))
    return list(dict.fromkeys(found))


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.is_contiguous() and tensor.device.type in ("cpu", "cuda")


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().reshape(-1).view(torch.uint8)
