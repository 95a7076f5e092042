"""A file that is written in blocks, in any order, by several threads.

Standard library alone.
"""

import os
from pathlib import Path

from holdfast.store import files


class BlockFile:
    """A new file of a checkpoint, open for writing until the context ends. It is synced when its attempt is sealed.

    Args:
        path: Where; nothing may have that name yet.
    """

    def __init__(self, path: Path) -> None:
        self._fd = files.open_new(path)

    def __enter__(self) -> "BlockFile":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`. The system takes a short write for no error, so this loops."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            data = data[written:]
            offset += written
