"""A bucket of S3, GCS or Azure as a place beyond this disk, through obstore.

obstore is imported here alone, inside of functions: once a process has used it, a child that it forks hangs in it. So
training never does; the mirror is a process of its own, and so is every verb of the command line.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.errors import AbsentError, MirrorError, MirrorUnavailableError
from holdfast.remote.failures import answer_in, failure_of, failure_of_panic
from holdfast.remote.object_store import Item

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Store

_T = TypeVar("_T")

_MIB = 1 << 20
PART_BYTES = 8 * _MIB
"""The least bytes of a part. Every store takes 10,000 of them."""
_MOST_PARTS = 10_000
# Each part that is on its way is in memory, and the next is being filled.
_MOST_AT_ONCE = 4
_MEMORY_BYTES = 52 * _MIB

# A request is over within these, its body included: a part on a slow line, and all else.
_PATIENCE_SECONDS = {"parts": 300, "rest": 60}
# A store that is away is found to be within seconds, and tried again by whoever asked.
_RETRIES = 5
_RETRY_SECONDS = 60
_FIRST_PAUSE = timedelta(milliseconds=100)


class Bucket:
    """A prefix of a bucket as an object store.

    Args:
        url: The address, for people to read.
        make: Makes a store of obstore's, given its options: of the client, and of its retries.
        problem: Returns what has gone wrong in finding credentials since, which obstore's own error hides.
    """

    def __init__(self, url: str, make: Callable[..., "Store"], problem: Callable[[], MirrorError | None]) -> None:
        self.url = url
        self._problem = problem
        self._patient, self._store = (make(**_options(seconds)) for seconds in _PATIENCE_SECONDS.values())

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        """Stores a file, in parts where it is more than one."""
        import obstore

        part = part_bytes(size)
        several = size > part
        source = _Source(blocks)
        content: Any = iter(source) if several else b"".join(source)
        try:
            with self._translated(f"sending {key}"):
                _interruptibly(
                    lambda: obstore.put(
                        self._patient,
                        key,
                        content,
                        use_multipart=several,
                        chunk_size=part,
                        max_concurrency=parts_at_once(part),
                    )
                )
        except MirrorError:
            if source.problem is not None:
                raise source.problem from None
            raise

    def put_absent(self, key: str, data: bytes) -> bool:
        """Stores a small object where there is none of that key, and tells whether these bytes are there now."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._translated(f"storing {key}"):
            try:
                _interruptibly(lambda: obstore.put(self._store, key, data, mode="create"))
                return True
            except (AlreadyExistsError, PreconditionError):
                pass
        return self._has(key, data)

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        """Returns the bytes from `start` to before `end`; fewer where the object ends before that, or none."""
        import obstore
        from obstore.exceptions import GenericError

        if end <= start:
            return b""
        with self._translated(f"reading {key}", of_object=True):
            try:
                # A view: whoever takes a block has no need of a copy of it.
                return memoryview(_interruptibly(lambda: obstore.get_range(self._store, key, start=start, end=end)))
            except GenericError as error:
                if answer_in(str(error)).is_beyond_the_end:
                    return b""
                raise

    def listed(self, prefix: str = "") -> Iterator[Item]:
        """Yields every object whose key begins with `prefix`, in the order of keys: all, or an error before any."""
        import obstore

        above = prefix.rpartition("/")[0]
        with self._translated(f"listing {prefix}" if prefix else "listing it"):
            listing = _interruptibly(lambda: obstore.list(self._store, f"{above}/" if above else None).collect())
            items = [Item(each["path"], each["size"]) for each in listing]
        yield from sorted(item for item in items if item.key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Deletes an object. One that is not there is no error."""
        import obstore

        with suppress(AbsentError), self._translated(f"deleting {key}", of_object=True):
            _interruptibly(lambda: obstore.delete(self._store, key))

    def _has(self, key: str, data: bytes) -> bool:
        """Tells whether an object that is said to be there has these bytes: our own answer may have been lost."""
        try:
            return self.get_range(key, 0, len(data) + 1) == data
        except AbsentError as error:
            # A store may refuse two writers at once, of which neither has stored anything.
            raise MirrorUnavailableError(f"{self.url}: {key} was refused as one that is there, and is not") from error

    @contextmanager
    def _translated(self, what: str, *, of_object: bool = False) -> Iterator[None]:
        """Raises our errors for obstore's, which are not kept as their causes: their text may hold a signature."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise self._problem() or failure_of(self.url, what, str(error), of_object=of_object) from None
        except BaseException as error:
            if (panic := failure_of_panic(self.url, error)) is not None:
                raise panic from None
            raise


class _Source:
    """The blocks of a file, with what has gone wrong in taking them: obstore has an error of its own for that."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.problem: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._blocks
        except Exception as error:
            self.problem = error
            raise


def _interruptibly(ask: Callable[[], _T]) -> _T:
    """Asks obstore so that Ctrl+C ends the wait: in the main thread no signal is looked at before it answers."""
    if threading.current_thread() is not threading.main_thread():
        return ask()
    outcome: Future[_T] = Future()

    def answer() -> None:
        try:
            outcome.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            outcome.set_exception(error)

    threading.Thread(target=answer, name="holdfast-bucket", daemon=True).start()
    return outcome.result()


def part_bytes(size: int) -> int:
    """Returns the bytes of one part of a file: whole MiB, so many that no store's most parts are passed."""
    return max(PART_BYTES, -(-size // (_MOST_PARTS * _MIB)) * _MIB)


def parts_at_once(part: int) -> int:
    """Returns the number of parts of so many bytes that are on their way at once."""
    return max(1, min(_MOST_AT_ONCE, _MEMORY_BYTES // part - 1))


def _options(seconds: int) -> dict[str, Any]:
    return {
        "client_options": {"timeout": f"{seconds}s", "connect_timeout": "10s"},
        "retry_config": {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
            "backoff": {"init_backoff": _FIRST_PAUSE, "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
