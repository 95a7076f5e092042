"""The detector of writes to the state that pass the gate by.

A fused optimizer without a hook, `.data`, weights swapped for an evaluation or merged for generation: they move no
version counter that could be relied on, and two reads of the wrong weights agree with each other. So a fingerprint of
the state is taken at each boundary, and compared when a snapshot begins and before the gate opens.

What is on cards is sampled there; nobody waits for these samples before a snapshot is written.
"""

import ctypes
from collections.abc import Collection, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from holdfast.capture.chunks import bytes_of
from holdfast.devices.device import Device, Event

_SAMPLES = 16
_SAMPLE_BYTES = 64
_version = attrgetter("_version")

Lanes = Mapping[int, Collection[Hashable]]
"""For cards by number, the lanes that training is known to use there."""


class Fingerprint(NamedTuple):
    """The pointers, versions and samples of tensors at one moment."""

    pointers: list[int]
    versions: list[int]
    sample: bytes
    card_samples: Mapping[int, torch.Tensor] = {}
    """The samples of each card, there."""
    earlier_card_samples: Mapping[int, torch.Tensor] = {}
    """Those of an earlier moment that still count for weights; empty where it is the same one."""
    marks: Mapping[int, Sequence[Event]] = {}
    """For each card the end of what was enqueued before this fingerprint, in each lane: the update itself."""


class WriteDetector:
    """Takes fingerprints of a set of tensors, and compares them.

    Args:
        tensors: The tensors, by name. They are kept, so that what was sampled cannot vanish meanwhile.
        swappable: The number of tensors, from the first, whose data pointers and versions are in a fingerprint too.
            Those of the others cost 80 ns each, and nobody swaps an optimizer's moments.
        device: The device that some of the tensors may be on.
        also: The names of others whose pointers and versions are in a fingerprint: where samples are on a card, they
            are all that the host sees.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        swappable: int | None = None,
        device: Device | None = None,
        also: Collection[str] = (),
    ) -> None:
        self._names = list(tensors)
        self._tensors = list(tensors.values())
        self._countable = {name: t for name, t in tensors.items() if t.layout == torch.strided and not t.is_inference()}
        self._swappable_names = [*self._names[:swappable], *(name for name in also if name in self._countable)]
        self._swappable = [tensors[name] for name in self._swappable_names]
        self._device = device
        cards = [None if device is None else device.card_of(tensor) for tensor in self._tensors]
        self.cards = sorted({card for card in cards if card is not None})
        """The cards that any of them is on."""
        self._sampled: list[tuple[int, int, int]] = []
        self._sampled_on: dict[int, list[tuple[int, int, int]]] = {}
        for index, offset, size in _samples(self._tensors):
            card = cards[index]
            if card is not None:
                self._sampled_on.setdefault(card, []).append((index, offset, size))
            elif self._tensors[index].device.type == "cpu":
                self._sampled.append((index, offset, size))
        # An alias keeps the memory alive when a parameter is given other data.
        self._aliases = [self._tensors[i].detach() for i, _, _ in self._sampled]
        self._windows = [
            (ctypes.c_char * n).from_address(alias.data_ptr() + o)
            for alias, (_, o, n) in zip(self._aliases, self._sampled, strict=True)
        ]
        self.views = {
            card: [bytes_of(self._tensors[i])[o : o + n] for i, o, n in samples]
            for card, samples in self._sampled_on.items()
        }
        """For each card the bytes of its samples, as they are whenever they are read."""

    def fingerprint(self, lanes: Lanes | None = None) -> Fingerprint:
        """Takes the fingerprint of the tensors as they are now, of the calling thread's lanes.

        Args:
            lanes: The lanes that are marked on each card; None for what the host sees alone.
        """
        pointers, versions = _pointers_and_versions(self._swappable)
        sample = b"".join(self._windows)
        if self._device is None or lanes is None:
            return Fingerprint(pointers, versions, sample)
        try:
            samples = {card: torch.cat(views) for card, views in self.views.items()}
        except torch.OutOfMemoryError:  # training needs every byte: pointers and versions tell alone
            samples = {}
        marks = {card: list(map(self._device.mark, used)) for card, used in lanes.items()}
        return Fingerprint(pointers, versions, sample, samples, marks=marks)

    def glance(self) -> tuple[list[int], list[int]]:
        """Returns the data pointers and versions of all tensors, for `changed_since`."""
        return _pointers_and_versions(list(self._countable.values()))

    def changed(self, then: Fingerprint, now: Fingerprint) -> list[str]:
        """Names the tensors that are seen to differ between two fingerprints, as far as the host sees."""
        pairs = zip(self._swappable_names, then.pointers, now.pointers, then.versions, now.versions, strict=True)
        moved = {name for name, *each in pairs if each[0] != each[1] or each[2] != each[3]}
        begin = 0
        for index, _, size in self._sampled:
            if then.sample[begin : begin + size] != now.sample[begin : begin + size]:
                moved.add(self._names[index])
            begin += size
        return [name for name in self._names if name in moved]

    def changed_since(self, then: tuple[list[int], list[int]]) -> list[str]:
        """Names those of all tensors whose pointer or version is another than at an earlier `glance`."""
        now = self.glance()
        pairs = zip(self._countable, then[0], now[0], then[1], now[1], strict=True)
        return [name for name, *each in pairs if each[0] != each[1] or each[2] != each[3]]

    def changed_on_card(self, card: int, then: bytes, now: bytes) -> list[str]:
        """Names the tensors whose samples differ between two looks at one card."""
        changed, begin = [], 0
        for index, _, size in self._sampled_on.get(card, ()):
            if then[begin : begin + size] != now[begin : begin + size]:
                changed.append(self._names[index])
            begin += size
        return changed


def _pointers_and_versions(tensors: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    return list(map(torch.Tensor.data_ptr, tensors)), list(map(_version, tensors))


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
    return tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
