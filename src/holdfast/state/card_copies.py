"""Copies of tensors of cards, made at every boundary: a launch or two for all of them, into memory that is used again.

A launch for each tensor costs a boundary more than all the rest of it. And memory that is asked for anew at every
boundary may be missing at one of them. So the copies of a boundary are a set, which a later one writes over once nobody
has any of it: who that is, Python's references and torch's own count of a memory's owners tell. What is large has
memory of its own at each boundary: a set at hand is one that the next forward pass cannot use.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import torch

# Whole numbers as wide as the elements: every kernel takes them, whatever the elements mean.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
# Smaller tensors share memory: what a launch reads and writes is the same, and there is less to keep an eye on.
_SHARING_BYTES = 1 << 20
# A set at hand beside those that somebody has: more are given back.
_SPARE_SETS = 1
# Of more in all, neither a set is kept at hand, nor what was copied.
_KEPT_BYTES = 32 << 20
_owners = getattr(torch._C, "_storage_Use_Count", None)


class Copies(Mapping[str, torch.Tensor]):
    """Copies of tensors as they were at one boundary, by name."""

    def __init__(self, names: Mapping[str, tuple[int, torch.dtype]], bits: Sequence[torch.Tensor]) -> None:
        self._names = names
        self._bits = bits

    def __getitem__(self, name: str) -> torch.Tensor:
        index, dtype = self._names[name]
        return self._bits[index].view(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Set:
    """Memory for one copy of each tensor.

    Args:
        sources: The tensors, as whole numbers.
    """

    def __init__(self, sources: Sequence[torch.Tensor]) -> None:
        # What is made in inference mode could be written to in no other.
        with torch.inference_mode(mode=False):
            self.bits = _memory_for(sources)
        # One that lies otherwise than its copy would have all others of its launch copied one by one.
        alike = [source.stride() == bits.stride() for source, bits in zip(sources, self.bits, strict=True)]
        groups = by_card_and_width(sources)
        self.groups = [[i for i in group if alike[i] is side] for group in groups for side in (True, False)]
        self._lent: weakref.ref[Copies] | None = None
        storages = {bits.untyped_storage()._cdata: bits.untyped_storage() for bits in self.bits}
        self._storages = list(storages.values())
        self._unused = self._counts()

    def lend(self, names: Mapping[str, tuple[int, torch.dtype]]) -> Copies:
        """Gives the copies to somebody."""
        copies = Copies(names, self.bits)
        self._lent = weakref.ref(copies)
        return copies

    @property
    def is_free(self) -> bool:
        """True where nobody has them, nor a tensor that was taken out of them."""
        if self._lent is not None and self._lent() is not None:
            return False
        return _owners is not None and self._counts() == self._unused

    def _counts(self) -> list[int]:
        return [_owners(storage._cdata) for storage in self._storages] if _owners is not None else []


class CardCopies:
    """Copies tensors at each boundary, in the stream that the calling thread trains in."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._pointers: list[int] = []
        self._forms: list[Any] = []
        self._are_kept = True
        self._names: dict[str, tuple[int, torch.dtype]] = {}
        self._sources: list[torch.Tensor] = []
        self._sets: list[_Set] = []

    def take(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Copies tensors, as they are when the stream has come as far.

        Args:
            tensors: The tensors, by name, not necessarily those of the last time.

        Returns:
            The copies. They stay what they are as long as somebody has this, or one of them. Where a card has no room
            for another set they are on the host, and were waited for.
        """
        plain = {name: tensor for name, tensor in tensors.items() if _has_bits(tensor)}
        odd = {name: tensor.detach().clone() for name, tensor in tensors.items() if name not in plain}
        if not plain:
            return odd
        self._follow(plain)
        try:
            free = self._free_set()
        except torch.OutOfMemoryError:
            return {name: tensor.detach().cpu() for name, tensor in plain.items()} | odd
        for group in filter(None, free.groups):
            torch._foreach_copy_([free.bits[index] for index in group], [self._sources[index] for index in group])
        copies = free.lend(self._names)
        if not self._are_kept:
            self._tensors, self._sources, self._sets = [], [], []
        return {**copies, **odd} if odd else copies

    def _follow(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes in which tensors these are."""
        now, pointers = list(tensors.values()), list(map(torch.Tensor.data_ptr, tensors.values()))
        same = len(now) == len(self._tensors) and all(map(is_, now, self._tensors))
        if same and pointers == self._pointers and [*tensors] == [*self._names]:
            return
        self._tensors, self._pointers = now, pointers
        self._names = {name: (index, tensor.dtype) for index, (name, tensor) in enumerate(tensors.items())}
        self._sources = [tensor.detach().view(_BITS[tensor.itemsize]) for tensor in now]
        self._are_kept = sum(source.nbytes for source in self._sources) <= _KEPT_BYTES
        forms = [(source.device, source.dtype, source.shape, source.stride()) for source in self._sources]
        if forms != self._forms:
            self._forms, self._sets = forms, []

    def _free_set(self) -> _Set:
        free = [each for each in self._sets if each.is_free]
        for surplus in free[1 + _SPARE_SETS :]:
            self._sets.remove(surplus)
        if not free:
            # Those that cannot be told to be free again are whoever's they are.
            self._sets = [*self._sets, _Set(self._sources)] if _owners is not None else [_Set(self._sources)]
            return self._sets[-1]
        return free[0]


def by_card_and_width(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Returns the indices of tensors that one launch takes: those of one card whose elements are as wide."""
    groups: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    return list(groups.values())


def _memory_for(sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Makes memory of the form of each: of its own for a large one, and for one whose elements lie otherwise."""
    memory: dict[int, torch.Tensor] = {}
    for group in by_card_and_width(sources):
        sharing = [i for i in group if sources[i].nbytes <= _SHARING_BYTES and sources[i].is_contiguous()]
        width = sources[group[0]].itemsize
        # So that copies of more than one element at a time are possible.
        steps = [-(-max(sources[i].nbytes, 1) // 16) * 16 // width for i in sharing]
        whole = sources[group[0]].new_empty(sum(steps))
        memory |= {
            i: part[: sources[i].numel()].view(sources[i].shape)
            for i, part in zip(sharing, torch.split(whole, steps), strict=True)
        }
        memory |= {i: torch.empty_like(sources[i]) for i in group if i not in memory}
    return [memory[index] for index in range(len(sources))]


def _has_bits(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is its elements, in memory that can be copied as whole numbers."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_conj() and not tensor.is_neg()
    return dense and tensor.itemsize in _BITS and type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
