"""The bytes that digests of tensors on cards are taken of: a few for each tensor, made where it is.

To take a digest of the tensor itself all of it would have to come to the host, which takes as long as a save's own
copies, and training waits for it. So a large tensor is seen as a table of whole numbers of 64 bits, and a card adds up
its rows and its columns, which takes as long as reading it twice. A change of one element shows in the sums of its row
and its column, and so does an exchange of two elements or of two blocks, which a sum of all would not show. Equal bits
have equal sums on every card, and on the host.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from holdfast.capture.chunks import bytes_of, in_order
from holdfast.devices.device import Device

EXACT_BYTES = 16 << 10
"""A tensor up to this size stands for itself."""
_WORD = 8
# So many bytes are made on a card at a time.
_ROUND_BYTES = 8 << 20
# A tensor that lies otherwise is put in order on its card where so much stays free there.
_SPARED_BYTES = 1 << 30

_Key = TypeVar("_Key", bound=Hashable)


class Wanted(NamedTuple):
    """A tensor, and the bytes that are wanted for it.

    Args:
        tensor: The tensor, dense. For pieces its bytes lie in order, or it is small.
        pieces: The first byte of each piece, and its size; None where sums stand for all of it.
    """

    tensor: torch.Tensor
    pieces: Sequence[tuple[int, int]] | None

    @property
    def bytes(self) -> int:
        """The number of bytes that this is."""
        if self.pieces is not None:
            return sum(size for _, size in self.pieces)
        rows, columns = _table(self.tensor.nbytes)
        return (rows + columns - rows * columns) * _WORD + self.tensor.nbytes


class CardDigests:
    """Makes the bytes that digests of tensors on cards are taken of. The calling thread saves, and the gate is shut.

    Args:
        device: The device. Our streams wait for the boundary already.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def of(self, wanted: Mapping[_Key, Wanted]) -> dict[_Key, bytes]:
        """Returns the bytes that digests are taken of. It waits for the cards, once for a few thousand tensors."""
        by_card: dict[int, dict[_Key, Wanted]] = {}
        for key, each in wanted.items():
            card = self._device.card_of(each.tensor)
            assert card is not None, "what is on the host is digested there"
            by_card.setdefault(card, {})[key] = each
        made: dict[_Key, bytes] = {}
        for card, of_round in ((card, part) for card, of_card in by_card.items() for part in _rounds(of_card)):
            with self._device.ours():
                try:
                    made |= self._of_round(card, of_round)
                except torch.OutOfMemoryError:  # nothing of ours may take what training needs
                    made |= {key: on_host(each._replace(tensor=each.tensor.cpu())) for key, each in of_round.items()}
        return made

    def _of_round(self, card: int, wanted: Mapping[_Key, Wanted]) -> dict[_Key, bytes]:
        there = {key: each for key, each in wanted.items() if self._has_room(card, each)}
        made = {
            key: on_host(each._replace(tensor=each.tensor.cpu())) for key, each in wanted.items() if key not in there
        }
        if not there:
            return made
        # Sums come first: each begins where a whole number may.
        order = sorted(there, key=lambda key: there[key].pieces is not None)
        begins, end = [], 0
        for key in order:
            begins.append(end)
            end += _padded(there[key]) if there[key].pieces is None else there[key].bytes
        together = torch.empty(end, dtype=torch.uint8, device=there[order[0]].tensor.device)
        self._device.enqueue(card, partial(_fill, [there[key] for key in order], together))
        on_host_now = torch.empty(end, dtype=torch.uint8)
        self._device.copy(card, together, on_host_now)
        self._device.wait(self._device.event(card))
        content = on_host_now.numpy().tobytes()
        return made | {key: content[begin : begin + there[key].bytes] for key, begin in zip(order, begins, strict=True)}

    def _has_room(self, card: int, wanted: Wanted) -> bool:
        tensor = wanted.tensor
        small = tensor.nbytes <= EXACT_BYTES
        return small or _is_as_it_should_be(tensor) or self._device.free_bytes(card) >= tensor.nbytes + _SPARED_BYTES


def on_host(wanted: Wanted) -> bytes:
    """Returns the same of a tensor in the memory of the host."""
    made = torch.empty(_padded(wanted), dtype=torch.uint8)
    _fill([wanted], made[: wanted.bytes] if wanted.pieces is not None else made)
    return made.numpy().tobytes()[: wanted.bytes]


def _rounds(wanted: Mapping[_Key, Wanted]) -> Iterator[dict[_Key, Wanted]]:
    of_round: dict[_Key, Wanted] = {}
    size = 0
    for key, each in wanted.items():
        if size >= _ROUND_BYTES:
            yield of_round
            of_round, size = {}, 0
        of_round[key] = each
        size += each.bytes
    yield of_round


def _fill(wanted: Sequence[Wanted], together: torch.Tensor) -> None:
    """Makes what is wanted of some tensors, those of which there are sums first, one after the other."""
    begin, pieces = 0, []
    for tensor, places in wanted:
        if places is not None:
            flat = bytes_of(in_order(tensor))
            pieces += [flat[place : place + size] for place, size in places]
            continue
        rows, columns = _table(tensor.nbytes)
        flat = bytes_of(in_order(tensor) if _is_as_it_should_be(tensor) else in_order(tensor).clone())
        table = flat[: rows * columns * _WORD].view(torch.int64).view(rows, columns)
        middle, end = begin + (rows + columns) * _WORD, begin + Wanted(tensor, None).bytes
        sums = together[begin:middle].view(torch.int64)
        torch.sum(table, 1, out=sums[:rows])
        torch.sum(table, 0, out=sums[rows:])
        together[middle:end].copy_(flat[table.nbytes :])
        begin += _padded(Wanted(tensor, None))
    if pieces:
        torch.cat(pieces, out=together[begin:])


def _table(size: int) -> tuple[int, int]:
    """Returns the rows and columns of the table that so many bytes are; those that fill no row are left."""
    words = size // _WORD
    columns = 1 << (words.bit_length() + 1) // 2
    return words // columns, columns


def _padded(wanted: Wanted) -> int:
    return -(-wanted.bytes // _WORD) * _WORD


def _is_as_it_should_be(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor's bytes lie in order, and where whole numbers may begin."""
    begins = tensor.data_ptr() % _WORD == 0 and tensor.storage_offset() * tensor.itemsize % _WORD == 0
    return begins and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
