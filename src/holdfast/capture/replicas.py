"""The comparison of what the processes of a training hold: what is alike is written once, what differs by each.

At the first save after a start everything plain is digested whole; from then on large tensors are sampled. Rank 0 tells
its digests, each other rank answers what it has otherwise, and rank 0 tells all what is whose. Of what is on a card the
digest is taken of a few bytes that are made there (`capture/card_digests.py`).
"""

import ctypes
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from holdfast.capture.card_digests import EXACT_BYTES, CardDigests, Wanted, on_host
from holdfast.devices.device import Device
from holdfast.errors import SaveError
from holdfast.store import digest

# What a digest is of, as its first letter.
_WHOLE, _SAMPLED, _ADDED_UP = "w", "s", "a"
_SAMPLES = 4
_SAMPLE_BYTES = 64
_MOST_NAMED = 3
# An object's tensors are on the device of their own rank, which has another number in each.
_NUMBERED_DEVICE = re.compile(r'"cuda:[0-9]+"')
_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True)
class Content:
    """The content of one part in this process, as far as it is not distributed.

    Args:
        rest: The part's JSON; None where it is not compared.
        small: Tensors that were copied at the boundary: digested whole at each save.
        large: Live tensors: digested whole once, and sampled from then on.
        expected: The names of tensors that may well differ, as buffers do: nobody is told.
    """

    rest: Any
    small: Mapping[str, torch.Tensor]
    large: Mapping[str, torch.Tensor]
    expected: Collection[str] = ()


@dataclass(frozen=True)
class Ownership:
    """The share of a part that the ranks do not hold alike. All ranks know the same of it.

    Args:
        differing: Tensors that all have, and not all with the same values, dtype and shape.
        partial: Tensors that only some have.
        rest: True where the part's JSON differs.
        alone: True where only some ranks have the part.
        alike: Small ones of `differing` that this process has as rank 0 has them.
    """

    differing: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    rest: bool = False
    alone: bool = False
    alike: frozenset[str] = frozenset()


class Replicas:
    """One process's knowledge of how the ranks' states differ.

    Args:
        why_refused: Where each rank's own cannot be saved, the reason: a difference fails the save then.
    """

    def __init__(self, why_refused: str = "") -> None:
        self._why_refused = why_refused
        self._contents: Mapping[str, Content] = {}
        self._device: Device | None = None
        self._table: dict[str, Any] = {}
        self._compared: dict[str, set[str]] = {}
        self._owned: dict[str, Ownership] = {}
        self._differing_here: dict[str, set[str]] = {}
        self.news: list[str] = []
        """The names of what the last comparison was the first to see as different."""
        self.digested_bytes = 0
        """The bytes of live tensors that were digested whole for the last save."""
        self.seconds = 0.0
        """The time that this took."""

    def report(self, waited: float) -> str:
        """Returns what the line of a save says where large tensors were digested whole: the first after a start.

        Args:
            waited: The seconds that training was held for the save.
        """
        if not self.digested_bytes:
            return ""
        size = f"{self.digested_bytes / 1e6:,.1f} MB in {self.seconds:.3f} s"
        return f"; the ranks compared what they hold ({size}); training was held for {waited:.3f} s"

    def of(self, part: str) -> Ownership:
        """Returns what of a part the ranks do not hold alike, as of the last comparison."""
        return self._owned.get(part, Ownership())

    def tally(self, contents: Mapping[str, Content], device: Device | None = None) -> Mapping[str, Any]:
        """Digests what this process holds, and returns what rank 0 tells the others.

        Args:
            contents: The content of each part, by name; nothing of it changes before the save is over.
            device: The device that some of it is on. Our streams wait for the boundary already.
        """
        begun = time.monotonic()
        self._contents, self._table, self.digested_bytes, self._device = contents, {}, 0, device
        kinds: dict[tuple[str, str], str] = {}
        for part, content in contents.items():
            self._compared.setdefault(part, set()).intersection_update(content.large)
            for name in content.large.keys() | content.small.keys():
                whole = name in content.small or name not in self._compared[part]
                kinds[part, name] = self._kind_of(self._tensor(part, name), whole=whole)
            self._table[part] = {"rest": _digest_of_rest(content.rest), "tensors": {}}
        for (part, name), entry in self._entries(kinds).items():
            self._table[part]["tensors"][name] = entry
        self.seconds = time.monotonic() - begun
        return self._table

    def differences(self, of_rank0: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compares what this process holds with what rank 0 told.

        Returns:
            By part, where there is a difference: whether the JSON differs, and the tensors that `differ`, that this
            process `lacks`, and that it has `more`. For a part that is missing here or there, whether it is here.
        """
        differences: dict[str, Any] = {}
        self._differing_here = {}
        for part in of_rank0.keys() | self._table.keys():
            if part not in of_rank0 or part not in self._table:
                differences[part] = {"alone": part in self._table}
                continue
            here, there = self._table[part]["tensors"], of_rank0[part]["tensors"]
            entry = {
                "rest": self._table[part]["rest"] != of_rank0[part]["rest"],
                "differ": [name for name in there.keys() & here.keys() if self._differs(part, name, there[name])],
                "lacks": list(there.keys() - here.keys()),
                "more": list(here.keys() - there.keys()),
            }
            self._differing_here[part] = set(entry["differ"])
            if any(entry.values()):
                differences[part] = entry
        self._remember()
        return differences

    def settle(self, by_rank: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Takes in what the other ranks have otherwise than rank 0, and returns what is whose, for all to follow.

        Raises:
            SaveError: They differ, and each rank's own cannot be saved.
        """
        self._remember()
        settled: dict[str, Any] = {}
        for part in sorted({*self._table, *(part for differences in by_rank for part in differences)}):
            entries = [differences[part] for differences in by_rank if part in differences]
            if any("alone" in entry for entry in entries):
                settled[part] = {"alone": True}
                continue
            before = self._owned.get(part, Ownership())
            large = self._contents[part].large.keys() - self._contents[part].small.keys()
            partial = {name for entry in entries for name in (*entry["lacks"], *entry["more"])}
            # Large ones are only sampled from now on: what was seen to differ stays each rank's own.
            differing = {name for entry in entries for name in entry["differ"]} | (before.differing & large)
            rest = any(entry["rest"] for entry in entries)
            if partial or differing or rest:
                settled[part] = {"differing": sorted(differing - partial), "partial": sorted(partial), "rest": rest}
        known = set(self._labels())
        self.follow(settled)
        labels = self._labels()
        if labels and self._why_refused:
            raise SaveError(f"{in_short(labels)} differ between the ranks: {self._why_refused}")
        self.news = [label for label in labels if label not in known]
        return settled

    def follow(self, settled: Mapping[str, Any]) -> None:
        """Takes in what rank 0 has settled."""
        self._owned = {}
        for part, entry in settled.items():
            if entry.get("alone"):
                self._owned[part] = Ownership(alone=True)
            else:
                differing = frozenset(entry["differing"])
                small = self._contents[part].small.keys() if part in self._contents else set()
                alike = (differing & small) - self._differing_here.get(part, differing)
                self._owned[part] = Ownership(differing, frozenset(entry["partial"]), entry["rest"], alike=alike)

    def _labels(self) -> list[str]:
        """Returns the names of all that differs and that is worth a word."""
        labels = []
        for part, owned in self._owned.items():
            expected = self._contents[part].expected if part in self._contents else ()
            tensors = [name for name in sorted(owned.differing | owned.partial) if name not in expected]
            labels += [f"{part}.{name}" for name in tensors] or [part] * (owned.rest or owned.alone)
        return labels

    def _remember(self) -> None:
        """Notes what was digested whole: the next comparison samples it."""
        for part, content in self._contents.items():
            self._compared[part] = set(content.large)

    def _tensor(self, part: str, name: str) -> torch.Tensor:
        content = self._contents[part]
        return content.small[name] if name in content.small else content.large[name]

    def _kind_of(self, tensor: torch.Tensor, *, whole: bool) -> str:
        """Returns the letter for what a digest is of: samples, the whole, or the sums of a card."""
        if not whole and _lies_in_order(tensor):
            return _SAMPLED
        return _ADDED_UP if self._is_on_card(tensor) and tensor.nbytes > EXACT_BYTES else _WHOLE

    def _entries(self, kinds: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Returns the digests of tensors of this process, each behind the letter for what it is of."""
        taken_of: dict[tuple[str, str], Iterable[bytes | memoryview]] = {}
        on_cards: dict[tuple[str, str], Wanted] = {}
        for (part, name), kind in kinds.items():
            tensor = self._tensor(part, name)
            if kind != _SAMPLED and name not in self._contents[part].small and tensor.layout == torch.strided:
                self.digested_bytes += tensor.nbytes
            if self._is_on_card(tensor) and (kind != _WHOLE or tensor.nbytes <= EXACT_BYTES):
                on_cards[part, name] = Wanted(tensor, _pieces_for(kind, tensor))
            elif kind == _WHOLE:
                taken_of[part, name] = _bytes_of(tensor)
            elif kind == _SAMPLED and tensor.device.type == "cpu" and _lies_in_order(tensor):
                pieces = _samples_of(tensor) if tensor.nbytes else ()
                taken_of[part, name] = [ctypes.string_at(tensor.data_ptr() + begin, size) for begin, size in pieces]
            else:
                taken_of[part, name] = [on_host(Wanted(tensor.detach().cpu(), _pieces_for(kind, tensor)))]
        if on_cards and self._device is not None:
            taken_of |= {key: [made] for key, made in CardDigests(self._device).of(on_cards).items()}
        return {
            (part, name): kind + digest.of(chain([_form_of(self._tensor(part, name))], taken_of[part, name]))
            for (part, name), kind in kinds.items()
        }

    def _is_on_card(self, tensor: torch.Tensor) -> bool:
        dense = tensor.layout == torch.strided
        return self._device is not None and dense and self._device.card_of(tensor) is not None

    def _differs(self, part: str, name: str, of_rank0: str) -> bool:
        here = self._table[part]["tensors"][name]
        # Rank 0 knows it for longer, or not for so long; or it is on a card there or in order, and here it is not.
        if here[0] != of_rank0[0]:
            here = self._entries({(part, name): of_rank0[0]})[part, name]
        return bool(here != of_rank0)


def in_short(labels: Sequence[str]) -> str:
    """Returns names for a line: the first ones, and the number of the others."""
    shown = ", ".join(labels[:_MOST_NAMED])
    return shown if len(labels) <= _MOST_NAMED else f"{shown} and {len(labels) - _MOST_NAMED:,} more"


def _digest_of_rest(rest: Any) -> str:
    if rest is None:
        return ""
    return digest.of([_NUMBERED_DEVICE.sub('"cuda"', json.dumps(rest)).encode()])


def _form_of(tensor: torch.Tensor) -> bytes:
    return f"{tensor.dtype} {list(tensor.shape)} {tensor.layout}".encode()


def _bytes_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yields the bytes of all elements, in the order of indices. Each piece is there until the next is asked for."""
    for component in _SPARSE.get(tensor.layout, ()):
        yield from _bytes_of(getattr(tensor, component)().detach())
    if tensor.layout == torch.strided and tensor.nbytes:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield memoryview((ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()))


def _lies_in_order(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _pieces_for(kind: str, tensor: torch.Tensor) -> Sequence[tuple[int, int]] | None:
    """Returns the pieces that a digest is of; None for the sums."""
    return {_WHOLE: [(0, tensor.nbytes)], _SAMPLED: _samples_of(tensor), _ADDED_UP: None}[kind]


def _samples_of(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Returns a few places all over a tensor, and their sizes."""
    size = min(_SAMPLE_BYTES, tensor.nbytes)
    return [((tensor.nbytes - size) * number // (_SAMPLES - 1), size) for number in range(_SAMPLES)]
