"""An object store in memory: the contract at its plainest, by which the others are judged."""

import threading
from collections.abc import Iterator

from holdfast.errors import AbsentError
from holdfast.remote.object_store import Item


class MemoryStore:
    """A place that is there as long as this object is. Any number of threads may use it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "memory://"

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        data = b"".join(blocks)
        assert len(data) == size
        with self._lock:
            self.objects[key] = data

    def put_absent(self, key: str, data: bytes) -> bool:
        with self._lock:
            return self.objects.setdefault(key, data) == data

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._lock:
            if key not in self.objects:
                raise AbsentError(f"there is no {key}")
            return self.objects[key][start:end]

    def listed(self, prefix: str = "") -> Iterator[Item]:
        with self._lock:
            items = [Item(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix)]
        yield from items

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)
