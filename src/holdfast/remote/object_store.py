"""The contract of a place beyond this disk: five verbs, of which every promise of a mirror is made.

A key is a path below the place's prefix, without a leading slash. An object is there as a whole or not at all. Nothing
is renamed, and no object but one that is deleted ever changes. What was answered is seen by whoever asks after that.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

Progress = Callable[[int], None]
"""Called with the number of bytes that are on their way, or have arrived, since."""


def unheard(size: int) -> None:
    """Stands for a progress that nobody looks at."""


class Item(NamedTuple):
    """One object in a listing: its key, and its size in bytes."""

    key: str
    size: int


class ObjectStore(Protocol):
    """A place beyond this disk. Any number of threads may use it at once.

    Each verb raises `MirrorUnavailableError` where another try may go well: what was to be done may have been done all
    the same, or may yet be. Each raises `MirrorAccessError` where it would not.
    """

    @property
    def url(self) -> str:
        """The address, for people to read. It has no secret in it."""

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        """Stores a file, in parts where that is quicker. Its bytes may be there already.

        Args:
            key: Its key.
            size: The number of its bytes.
            blocks: Them, a few MiB at a time. What taking them raises is raised here, and nothing is stored then.
        """

    def put_absent(self, key: str, data: bytes) -> bool:
        """Stores a small object where there is none of that key, and tells whether these bytes are there now.

        It is the one verb that decides anything among several writers: of different bytes under one key, those of one
        writer are there for ever. True also where an earlier try has stored them, and its answer was lost.
        """

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        """Returns the bytes from `start` to before `end`; fewer where the object ends before that, or none.

        Raises:
            AbsentError: There is no such object.
        """

    def listed(self, prefix: str = "") -> Iterator[Item]:
        """Yields every object whose key begins with `prefix`, in the order of keys.

        What was stored before the call is among them, and what was deleted before it is not.
        """

    def delete(self, key: str) -> None:
        """Deletes an object. One that is not there is no error."""


def read(store: ObjectStore, key: str, limit: int) -> bytes:
    """Returns a small object.

    Args:
        store: The place.
        key: Its key.
        limit: The most bytes that are believed.

    Raises:
        AbsentError: There is no such object.
        ValueError: It is larger than that.
    """
    data = bytes(store.get_range(key, 0, limit + 1))
    if len(data) > limit:
        raise ValueError(f"{key} is larger than {limit:,} bytes")
    return data
