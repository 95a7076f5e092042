"""An open file as what is sent: a part at a time, each read when it is asked for."""

import errno
import os
from collections.abc import Iterator

from holdfast.remote.object_store import Progress


class Source:
    """The first bytes of an open file. Whoever iterates it may hide an error: `problem` keeps it.

    Args:
        fd: The file.
        size: The bytes that it must have.
        part_bytes: The bytes of one part; the last may have fewer.
        progress: Hears of each part when it is read.
    """

    def __init__(self, fd: int, size: int, part_bytes: int, progress: Progress) -> None:
        self._fd, self._size, self._part_bytes, self._progress = fd, size, part_bytes, progress
        self.problem: OSError | None = None

    def __iter__(self) -> Iterator[bytes]:
        offset = 0
        while offset < self._size:
            try:
                part = self._read(offset, min(self._part_bytes, self._size - offset))
            except OSError as error:
                self.problem = error
                raise
            offset += len(part)
            self._progress(len(part))
            yield part

    def _read(self, offset: int, size: int) -> bytes:
        """Reads one part whole: the system may give less than it is asked for."""
        part = os.pread(self._fd, size, offset)
        while len(part) < size:
            more = os.pread(self._fd, size - len(part), offset + len(part))
            if not more:
                raise OSError(errno.EIO, f"the file ends at {offset + len(part):,} bytes of {self._size:,}")
            part += more
        return part
