"""The beginning of a file that lies in a mirror, as a file of this machine: enough for whoever reads headers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from holdfast.errors import AbsentError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.object_store import ObjectStore
from holdfast.store.manifest import File

_LENGTH_BYTES = 8
_FIRST_BYTES = 64 << 10
_MOST_BYTES = 64 << 20


@contextmanager
def beginning_of(store: ObjectStore, key: CheckpointKey, file: File) -> Iterator[int]:
    """Opens a file of tensors as far as its header goes: as long as the whole, with a hole in the place of the rest.

    Args:
        store: The place.
        key: The checkpoint.
        file: The file, of which the first eight bytes say how long its header is.

    Yields:
        Its descriptor.

    Raises:
        FileNotFoundError: It is not there.
    """
    path = key.of(file.path)
    try:
        data = bytes(store.get_range(path, 0, min(file.size, _FIRST_BYTES))) if file.size else b""
        end = min(_LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little"), file.size, _MOST_BYTES)
        if end > len(data) == _FIRST_BYTES:
            data += store.get_range(path, len(data), end)
    except AbsentError as error:
        raise FileNotFoundError(2, "it is missing") from error
    with TemporaryFile() as local:
        local.write(data)
        local.flush()
        os.ftruncate(local.fileno(), file.size if len(data) >= min(end, _FIRST_BYTES) else len(data))
        yield local.fileno()
