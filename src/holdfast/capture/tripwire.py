"""The detector of writes to the state that pass the gate by.

A fused optimizer without a hook, `.data`, weights swapped for an evaluation or merged for generation: they move no
version counter that could be relied on, and two reads of the wrong weights agree with each other. So a fingerprint of
the state is taken at each boundary, and compared when a snapshot begins and before the gate opens.
"""

import ctypes
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from holdfast.capture.chunks import bytes_of

_SAMPLES = 16
_SAMPLE_BYTES = 64
_version = attrgetter("_version")


class Fingerprint(NamedTuple):
    """The pointers, versions and samples of tensors at one moment."""

    pointers: list[int]
    versions: list[int]
    sample: bytes
    device_sample: torch.Tensor | None
    event: torch.cuda.Event | None
    """On CUDA, the end of what is enqueued before this fingerprint: the update itself."""


class WriteDetector:
    """Takes fingerprints of a set of tensors, and compares them.

    Args:
        tensors: The tensors, by name. They are kept, so that what was sampled cannot vanish meanwhile.
        swappable: The number of tensors, from the first, whose data pointers and versions are in a fingerprint too.
            Those of the others cost 80 ns each, and nobody swaps an optimizer's moments.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], swappable: int | None = None) -> None:
        self._names = list(tensors)
        self._tensors = list(tensors.values())
        self._swappable = self._tensors[:swappable]
        samples = _samples(self._tensors)
        self._sampled = [(i, o, n) for i, o, n in samples if self._tensors[i].device.type == "cpu"]
        # An alias keeps the memory alive when a parameter is given other data.
        self._aliases = [self._tensors[i].detach() for i, _, _ in self._sampled]
        self._windows = [
            (ctypes.c_char * n).from_address(alias.data_ptr() + o)
            for alias, (_, o, n) in zip(self._aliases, self._sampled, strict=True)
        ]
        self._on_device = [(i, o, n) for i, o, n in samples if self._tensors[i].device.type == "cuda"]
        self._views = [bytes_of(self._tensors[i])[o : o + n] for i, o, n in self._on_device]

    def fingerprint(self) -> Fingerprint:
        """Takes the fingerprint of the tensors as they are now."""
        return Fingerprint(
            list(map(torch.Tensor.data_ptr, self._swappable)),
            list(map(_version, self._swappable)),
            b"".join(self._windows),
            torch.cat(self._views) if self._views else None,
            torch.cuda.current_stream(self._views[0].device).record_event() if self._views else None,
        )

    def changed(self, then: Fingerprint, now: Fingerprint) -> list[str]:
        """Names the tensors that are seen to differ between two fingerprints."""
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
        changed, begin = set(), 0
        for index, _, size in self._on_device:
            if bool(differs[begin : begin + size].any()):
                changed.add(self._names[index])
            begin += size
        return changed


def _samples(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    """Spreads samples evenly over the bytes of all tensors: index, offset, size."""
    sizes = [tensor.nbytes if _is_plain(tensor) else 0 for tensor in tensors]
    total = sum(sizes)
    samples, index, before = [], 0, 0
    for number in range(_SAMPLES if total else 0):
        wanted = total * (2 * number + 1) // (2 * _SAMPLES)
        while wanted >= before + sizes[index]:
            before += sizes[index]
            index += 1
        offset = min(wanted - before, max(0, sizes[index] - _SAMPLE_BYTES))
        samples.append((index, offset, min(_SAMPLE_BYTES, sizes[index])))
    return list(dict.fromkeys(samples))


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.is_contiguous() and tensor.device.type in ("cpu", "cuda")
