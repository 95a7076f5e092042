"""A file as `torch.save` writes it, to be filled from live tensors: its skeleton here, its storages as they stream by.

`torch.serialization.skip_data` writes everything but the storages' bytes. torch does not look at the zip's checksums of
them, and leaves them out; the manifest's digest covers the file.
"""

import io
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.layouts.image import Image
from holdfast.layouts.loadable import require_loadable

if TYPE_CHECKING:
    import torch

_PROTOCOL = 2  # torch's default
# In the zip: the record after an entry's data, and an entry of its directory, each with the offset of its checksum.
_AFTER, _ENTRY = (b"PK\x07\x08", 4), (b"PK\x01\x02", 16)
# The ends of a pickle of a dictionary whose last value is None, and of any pickle.
_NONE_AND_END, _END = b"Nu.", b"."
_HEAD_BYTES = 2


class OptimizerFile:
    """The file of an optimizer's `state_dict`, which is written again and again.

    The skeleton takes torch a millisecond for each ten tensors. As long as the state is of the same form, all of it but
    the groups, which hold numbers that change, is that of the last time.
    """

    def __init__(self) -> None:
        self._form: Any = None
        self._skeleton: _Skeleton | None = None

    def image(self, path: str, content: Mapping[str, Any], scratch: Path) -> Image:
        """Returns the file that `torch.save(content, path)` would write, and that `weights_only` loads.

        Args:
            path: Its path inside the checkpoint.
            content: The optimizer's `state_dict`. Its tensors are not copied.
            scratch: A file that may be made and is removed again; it has the size of the result, and no blocks on disk.
        """
        form, storages = _form_of(content)
        if form is not None and form == self._form and self._skeleton is not None:
            between = self._skeleton.with_groups(content["param_groups"])
            if between is not None:
                return _woven(path, between, storages)
        image = _image(path, content, scratch)
        self._form = form
        self._skeleton = _skeleton_of(content, image, len(storages)) if storages else None
        return image


@dataclass(frozen=True)
class _Skeleton:
    """A file of `torch.save` without its storages.

    Args:
        between: The bytes before, between and after them.
        begin: The offset of the pickle in the first of these.
        pickled: The pickle, up to the groups.
        memo: The pickler's memo at that point.
        length: The length of the whole pickle in bytes.
    """

    between: Sequence[bytes]
    begin: int
    pickled: bytes
    memo: Any
    length: int

    def with_groups(self, groups: Any) -> Sequence[bytes] | None:
        """Returns the skeleton with other groups; None where they take another place, or hold tensors."""
        content = self.pickle(groups)
        if content is None or len(content) != self.length:
            return None
        first, last = bytearray(self.between[0]), bytearray(self.between[-1])
        end = self.begin + self.length
        first[self.begin : end] = content
        checksum = zlib.crc32(content).to_bytes(4, "little")
        first[end + _AFTER[1] : end + _AFTER[1] + 4] = checksum
        entry = last.index(_ENTRY[0]) + _ENTRY[1]
        last[entry : entry + 4] = checksum
        return [bytes(first), *self.between[1:-1], bytes(last)]

    def pickle(self, groups: Any) -> bytes | None:
        """Returns the whole pickle with these groups; None where they hold tensors."""
        stream = io.BytesIO()
        pickler = _Numbering(stream)
        pickler.memo = self.memo
        pickler.dump(groups)
        if pickler.storages:
            return None
        return self.pickled + stream.getvalue()[_HEAD_BYTES : -len(_END)] + _NONE_AND_END[1:]


class _Numbering(pickle.Pickler):
    """Pickles as torch does, and numbers the storages that it meets."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream, protocol=_PROTOCOL)
        self.storages: dict[int, tuple[str, Any]] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Returns the tuple that stands for a storage, as `pickle` asks for it."""
        import torch

        if not isinstance(obj, torch.storage.TypedStorage | torch.UntypedStorage):
            return None
        storage = obj if isinstance(obj, torch.UntypedStorage) else obj._untyped_storage
        number = self.storages.setdefault(storage._cdata, (str(len(self.storages)), storage))[0]
        if isinstance(obj, torch.UntypedStorage):
            return number  # it has a number; what torch writes for it no optimizer has
        kind = getattr(torch, obj._pickle_storage_type())  # type: ignore[no-untyped-call]
        size = obj._size()  # type: ignore[no-untyped-call]
        return ("storage", kind, number, torch.serialization.location_tag(storage), size)


def _skeleton_of(content: Mapping[str, Any], image: Image, storages: int) -> _Skeleton | None:
    """Returns the skeleton of a file that torch has made; None where it is not made as expected."""
    between = [piece for piece in image.pieces if isinstance(piece, bytes)]
    stream = io.BytesIO()
    pickler = _Numbering(stream)
    pickler.dump({**content, "param_groups": None})
    pickled = stream.getvalue()
    memo = _without_tensors(pickler.memo.copy())
    whole = _Skeleton(between, 0, pickled[: -len(_NONE_AND_END)], memo, 0).pickle(content["param_groups"])
    if whole is None or not pickled.endswith(_NONE_AND_END) or len(between) != storages + 1:
        return None
    begin, end = between[0].find(whole), between[0].find(whole) + len(whole)
    checksum = zlib.crc32(whole).to_bytes(4, "little")
    entry = between[-1].find(_ENTRY[0])
    if (
        begin < 0
        or between[0][end : end + 8] != _AFTER[0] + checksum
        or between[-1][entry + _ENTRY[1] : entry + _ENTRY[1] + 4] != checksum
    ):
        return None
    return _Skeleton(between, begin, pickled[: -len(_NONE_AND_END)], memo, len(whole))


def _without_tensors(memo: Mapping[int, tuple[int, Any]]) -> dict[int, tuple[int, Any]]:
    """Returns a pickler's memo, as long as it is, with its text alone, which is all that groups could share."""
    entries = [(number, value if isinstance(value, str) else object()) for number, value in memo.values()]
    return {id(value): (number, value) for number, value in entries}


def _form_of(content: Mapping[str, Any]) -> tuple[Any, list["torch.UntypedStorage"]]:
    """Returns all that the skeleton tells of a state but its groups, and its storages in order. None for an odd one."""
    import torch

    if list(content) != ["state", "param_groups"]:
        return None, []
    form: list[Any] = []
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for parameter, values in content["state"].items():
        if type(values) is not dict:
            return None, []
        for name, value in values.items():
            if type(value) is not torch.Tensor or value.layout != torch.strided or not value.nbytes:
                return None, []
            storage = value.untyped_storage()
            number, _ = storages.setdefault(storage._cdata, (len(storages), storage))
            at = (number, value.storage_offset(), value.shape, value.stride(), storage.nbytes())
            is_plain = not (value.requires_grad or value.is_conj() or value.is_neg() or value.__dict__)
            if not is_plain:
                return None, []
            form.append((parameter, name, value.dtype, value.device, *at))
    return form, [storage for _, storage in storages.values()]


@contextmanager
def _aligned_as_ever() -> Iterator[None]:
    """Has torch put each record at a multiple of 64, whatever the user has set: no block's edge may cut a value."""
    from torch.utils.serialization import config as options

    config: Any = options
    if not hasattr(config.save, "storage_alignment"):  # torch 2.6 knows no other
        yield
        return
    with config.patch("save.storage_alignment", 64):
        yield


def _image(path: str, content: Any, scratch: Path) -> Image:
    import torch

    storages = _storages_in_order(content)
    try:
        with torch.serialization.skip_data(), _aligned_as_ever():
            torch.save(content, scratch)
        require_loadable(scratch, path)
        with scratch.open("rb") as skeleton:
            reader: Any = torch._C.PyTorchFileReader(str(scratch))
            between: list[bytes] = []
            filled = [storage for storage in storages if storage.nbytes()]
            place = 0
            for number, storage in enumerate(storages):
                if storage.nbytes() == 0:
                    continue
                begin = reader.get_record_offset(f"data/{number}")
                skeleton.seek(place)
                between.append(skeleton.read(begin - place))
                place = begin + storage.nbytes()
            skeleton.seek(place)
            between.append(skeleton.read())
    finally:
        scratch.unlink(missing_ok=True)
    return _woven(path, between, filled)


def _woven(path: str, between: Sequence[bytes], storages: Sequence["torch.UntypedStorage"]) -> Image:
    def pieces() -> Iterator["bytes | torch.Tensor"]:
        for before, storage in zip(between, storages, strict=False):
            yield before
            yield _as_bytes(storage)
        yield between[-1]

    return Image(path, tuple(pieces()))


def _as_bytes(storage: "torch.UntypedStorage") -> "torch.Tensor":
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storages_in_order(content: Any) -> list["torch.UntypedStorage"]:
    """Returns the storages in the order in which torch numbers them: as a pickler comes by them."""

    class Nowhere:
        def write(self, data: Any) -> int:
            return len(data)

    pickler = _Numbering(Nowhere())
    pickler.dump(content)
    return [storage for _, storage in pickler.storages.values()]
