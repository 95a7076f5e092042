"""A quick look at tensors that are in no part, at every boundary: who is in their places, and how they are there."""

from collections.abc import Mapping, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch

from holdfast.state.buffers import Watch, has_plain_memory, window
from holdfast.state.reachable import Place

_SAMPLE_BYTES = 64
_version = attrgetter("_version")


class Watched:
    """One tensor, and how it was when it was met.

    Args:
        place: Its place.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        # Its memory stays, also when the tensor is given other.
        self.alias = alias = place.tensor.detach()
        self._watch = Watch(alias) if is_plain(alias) else None
        at = alias.nbytes // 2 // _SAMPLE_BYTES * _SAMPLE_BYTES if is_plain(alias) else 0
        size = min(_SAMPLE_BYTES, alias.nbytes - at) if is_plain(alias) else 0
        self.window = window(alias, at, size) if size and has_plain_memory(alias) else b""
        # One that lies in another order would be copied as a whole, and the copy be looked at.
        is_seen = size and alias.is_cuda and alias.is_contiguous()
        self.view = alias.reshape(-1).view(torch.uint8)[at : at + size] if is_seen else None
        self.first = None if self.view is None else self.view.clone()
        """On a device, the sample as it was then."""

    @property
    def bytes(self) -> int:
        """Its size; of one that is more than its elements in memory, 0."""
        return self.alias.nbytes if is_plain(self.alias) else 0

    def at(self, place: Place) -> "Watched":
        """Returns it, in a place that another walk has found."""
        self.place = place
        return self

    def has_moved(self) -> bool:
        """Returns whether it was written since it was last asked, as closely as a save looks."""
        return self._watch is not None and self._watch.has_moved()


class Look(NamedTuple):
    """The sight of the tensors of a `Glance` at one moment, in their order."""

    tensors: Sequence[Any]
    pointers: Sequence[int]
    versions: Sequence[int]
    sample: bytes
    on_cards: Sequence[torch.Tensor]
    """A sample of each that is on one, card by card; none where a card had no room for it."""


class Glance:
    """Looks at the same tensors again and again.

    Args:
        watched: The tensors, by the names of their places.
    """

    def __init__(self, watched: Mapping[str, Watched]) -> None:
        self.names = list(watched)
        all_watched = list(watched.values())
        self._holders = [each.place.holder for each in all_watched]
        self._tensors = [each.place.tensor for each in all_watched]
        self._strided = [each.place.tensor for each in all_watched if is_plain(each.alias)]
        self._versioned = [each.alias for each in all_watched if not each.alias.is_inference()]
        self._windows = [each.window for each in all_watched]
        by_card: dict[torch.device, list[tuple[str, torch.Tensor, torch.Tensor]]] = {}
        for name, each in watched.items():
            if each.view is not None and each.first is not None:
                by_card.setdefault(each.view.device, []).append((name, each.view, each.first))
        self._on_cards = list(by_card.values())

    def __eq__(self, other: object) -> bool:
        """Tells whether another one looks at the same tensors in the same places."""
        return (
            isinstance(other, Glance)
            and self.names == other.names
            and all(map(is_, self._tensors, other._tensors))
            and all(map(is_, self._windows, other._windows))
        )

    __hash__ = None  # type: ignore[assignment]

    def look(self) -> Look:
        """Looks, as of now. On a device the look is enqueued, and not waited for."""
        try:
            tensors = [holder[key] for holder, key in self._holders]
        except (LookupError, TypeError):
            tensors = [_item(holder, key) for holder, key in self._holders]
        try:
            on_cards = [torch.cat([view for _, view, _ in of_card]) for of_card in self._on_cards]
        except torch.OutOfMemoryError:  # training needs every byte: pointers and versions tell alone
            on_cards = []
        return Look(
            tensors,
            list(map(torch.Tensor.data_ptr, self._strided)),
            list(map(_version, self._versioned)),
            b"".join(self._windows),
            on_cards,
        )

    def changed(self, then: Look, now: Look) -> list[str]:
        """Names those that are seen to differ between two looks. Of a device it waits for nothing, and sees nothing."""
        same = all(map(is_, then.tensors, now.tensors))
        if same and then[1:4] == now[1:4]:
            return []
        changed, strided, versioned, begin = [], 0, 0, 0
        for index, name in enumerate(self.names):
            tensor = self._tensors[index]
            differs = then.tensors[index] is not now.tensors[index]
            if is_plain(tensor):
                differs |= then.pointers[strided] != now.pointers[strided]
                strided += 1
            if not tensor.is_inference():
                differs |= then.versions[versioned] != now.versions[versioned]
                versioned += 1
            end = begin + len(self._windows[index])
            differs |= then.sample[begin:end] != now.sample[begin:end]
            begin = end
            if differs:
                changed.append(name)
        return changed

    def changed_on_device(self, look: Look, before: Look | None = None) -> list[str]:
        """Names those on a device that differ from another look, or from how they were when they were met. It waits."""
        changed: list[str] = []
        if before is not None and len(before.on_cards) != len(look.on_cards):
            return changed
        for number, (of_card, now) in enumerate(zip(self._on_cards, look.on_cards, strict=False)):
            firsts = torch.cat([first for *_, first in of_card]) if before is None else before.on_cards[number]
            differs, begin = (firsts != now).cpu(), 0
            for name, view, _ in of_card:
                if bool(differs[begin : begin + view.numel()].any()):
                    changed.append(name)
                begin += view.numel()
        return changed


def is_plain(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is nothing but its elements in memory of its own process."""
    usual = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return usual and tensor.layout == torch.strided and not tensor.is_quantized


def _item(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (LookupError, TypeError):
        return None
