"""One contract, and every place that is said to keep it."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from helpers import object_servers
from helpers.breaking_proxy import BreakingProxy
from helpers.memory_store import MemoryStore
from helpers.object_servers import BUCKET, needs
from holdfast.errors import AbsentError, DamagedCheckpointError
from holdfast.remote.bucket import PART_BYTES
from holdfast.remote.object_store import Item, ObjectStore, read
from holdfast.remote.opening import open_store, require_usable

_NUMBERS = count()
_BLOCK = 4 << 20


class Backend:
    """A server, or what stands for one, that gives any number of places in it."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self.url, self.endpoint = url, endpoint

    def place(self, name: str | None = None) -> ObjectStore:
        return open_store(f"{self.url}/{name or f'place-{next(_NUMBERS)}'}", self.endpoint)


class Memory(Backend):
    def __init__(self) -> None:
        super().__init__("memory://")

    def place(self, name: str | None = None) -> ObjectStore:
        return MemoryStore()


@contextmanager
def memory(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    yield Memory()


@contextmanager
def directory(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    yield Backend(folder.as_uri())


@contextmanager
def s3(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    with object_servers.environment(object_servers.S3_ENVIRONMENT, folder):
        yield Backend(f"s3://{BUCKET}", f"http://127.0.0.1:{request.getfixturevalue('s3_port')}")


@contextmanager
def azure(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    with ExitStack() as held:
        port = held.enter_context(object_servers.azurite(folder))
        held.enter_context(object_servers.environment(object_servers.AZURE_ENVIRONMENT, folder))
        yield Backend(f"az://{BUCKET}", object_servers.azure_endpoint(port))


@contextmanager
def gcs(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backend]:
    with ExitStack() as held:
        port = held.enter_context(object_servers.localbucket(folder))
        proxy = held.enter_context(BreakingProxy(port, gcs=True))
        held.enter_context(object_servers.environment(object_servers.GCS_ENVIRONMENT, folder))
        yield Backend(f"gs://{BUCKET}", proxy.url)


@pytest.fixture(
    scope="module",
    params=[
        memory,
        directory,
        pytest.param(s3, marks=needs("obstore", "botocore", "moto", "flask", "flask_cors")),
        pytest.param(azure, marks=[needs("obstore"), object_servers.needs_azurite()]),
        pytest.param(gcs, marks=needs("obstore", "localbucket")),
    ],
    ids=lambda make: make.__name__,
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with request.param(request, tmp_path_factory.mktemp(request.param.__name__)) as backend:
        yield backend


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.place()


def put(store: ObjectStore, key: str, data: bytes) -> None:
    store.put_file(key, len(data), (data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)))


SIZES = [0, 1, 5000, PART_BYTES, 2 * PART_BYTES + 3]


def test_a_file_comes_back_as_it_was_whatever_its_size(store: ObjectStore) -> None:
    contents = {f"a/{size}": os.urandom(size) for size in SIZES}
    for key, data in contents.items():
        put(store, key, data)
    assert [*store.listed("a/")] == sorted(Item(key, len(data)) for key, data in contents.items())
    assert {key: store.get_range(key, 0, 3 * PART_BYTES) for key in contents} == contents


def test_a_file_that_is_there_may_be_sent_again(store: ObjectStore) -> None:
    for _ in range(2):
        put(store, "a", b"content")
    assert store.get_range("a", 0, 100) == b"content"


@pytest.mark.parametrize("size", [10, 3 * PART_BYTES])
@pytest.mark.parametrize(
    "error", [OSError(5, "the disk"), FileNotFoundError(2, "gone"), DamagedCheckpointError("changed")], ids=repr
)
def test_what_goes_wrong_in_reading_a_file_is_raised_and_leaves_nothing(
    store: ObjectStore, size: int, error: Exception
) -> None:
    def blocks() -> Iterator[bytes]:
        yield bytes(size // 2)
        raise error

    with pytest.raises(type(error)) as caught:
        store.put_file("a/broken", size, blocks())
    assert caught.value is error
    assert [*store.listed()] == []


def test_put_absent_stores_where_there_is_nothing_alone(store: ObjectStore) -> None:
    assert store.put_absent("claims/1", b"mine")
    assert store.put_absent("claims/1", b"mine"), "an earlier try may have had its answer lost"
    assert not store.put_absent("claims/1", b"yours")
    assert not store.put_absent("claims/1", b"mine and more")
    assert not store.put_absent("claims/1", b"")
    assert store.get_range("claims/1", 0, 100) == b"mine"
    assert store.put_absent("claims/2", b""), "an object may be empty"
    store.delete("claims/1")
    assert store.put_absent("claims/1", b"yours")


def test_of_many_writers_of_one_key_one_has_it(backend: Backend) -> None:
    name = f"many-{next(_NUMBERS)}"
    first = backend.place(name)
    writers = [first] * 8 if isinstance(first, MemoryStore) else [backend.place(name) for _ in range(8)]
    for round_ in range(3):
        start = threading.Barrier(8)

        def write(number: int, key: str = f"claims/{round_}", start: threading.Barrier = start) -> bool:
            start.wait(30)
            return writers[number].put_absent(key, b"%d" % number)

        with ThreadPoolExecutor(8) as pool:
            stored = [*pool.map(write, range(8))]
        assert stored.count(True) == 1
        assert first.get_range(f"claims/{round_}", 0, 10) == b"%d" % stored.index(True)


def test_a_range_is_cut_where_the_object_ends(store: ObjectStore) -> None:
    put(store, "a", b"0123456789")
    put(store, "empty", b"")
    assert store.get_range("a", 3, 7) == b"3456"
    assert store.get_range("a", 8, 1000) == b"89"
    assert store.get_range("a", 10, 20) == store.get_range("a", 500, 501) == b""
    assert store.get_range("a", 4, 4) == b""
    assert store.get_range("empty", 0, 4 << 20) == b""


def test_several_threads_read_at_once(store: ObjectStore) -> None:
    data = os.urandom(1 << 20)
    put(store, "a", data)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda at: store.get_range("a", at, at + (64 << 10)), range(0, 1 << 20, 64 << 10))
        assert b"".join(parts) == data


def test_what_is_not_there_is_absent(store: ObjectStore) -> None:
    with pytest.raises(AbsentError):
        store.get_range("a", 0, 10)
    put(store, "a/b", b"1")
    with pytest.raises(AbsentError):
        store.get_range("a/c", 0, 10)
    assert [*store.listed("c/")] == []


KEYS = ["RUN", "a", "a-b/c", "a.b", "a/.metadata", "a/__0_0.distcp", "a/b/c/d/e/f", "a/b0", "a0"]


def test_a_listing_has_every_key_of_a_prefix_in_order_and_no_other(store: ObjectStore) -> None:
    keys = [key for key in KEYS if key != "a"]  # no file system has a file and a directory of one name
    for key in reversed(keys):
        put(store, key, key.encode())
    assert [*store.listed()] == [Item(key, len(key)) for key in keys]
    for prefix in ("a/", "a/b/", "a/b", "a", "R", "x", "a/b/c/d/e/f", "b/"):
        assert [item.key for item in store.listed(prefix)] == [key for key in keys if key.startswith(prefix)], prefix


def test_a_place_has_nothing_of_its_neighbours(backend: Backend) -> None:
    name = f"side-{next(_NUMBERS)}"
    first, longer, inner = (backend.place(each) for each in (name, f"{name}0", f"{name}/inner"))
    put(longer, "x", b"1")
    assert [*first.listed()] == []
    with pytest.raises(AbsentError):
        first.get_range("x", 0, 1)
    put(first, "y", b"1")
    put(first, "inner/z", b"1")
    assert [item.key for item in longer.listed()] == ["x"]
    assert isinstance(inner, MemoryStore) or [item.key for item in inner.listed()] == ["z"]


def test_a_deleted_object_is_gone_and_another_try_is_no_error(store: ObjectStore) -> None:
    put(store, "a/b/c", b"1")
    put(store, "a/d", b"1")
    for _ in range(2):
        store.delete("a/b/c")
    store.delete("never/there")
    assert [item.key for item in store.listed()] == ["a/d"]
    with pytest.raises(AbsentError):
        store.get_range("a/b/c", 0, 1)


def test_a_small_object_is_read_as_a_whole_and_a_large_one_is_not_believed(store: ObjectStore) -> None:
    store.put_absent("a", b"12345")
    assert read(store, "a", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4"):
        read(store, "a", 4)


def test_it_is_found_to_be_of_use_and_keeps_no_trace_of_that(store: ObjectStore) -> None:
    require_usable(store)
    assert [*store.listed()] == []


def test_its_address_can_be_shown(store: ObjectStore) -> None:
    assert store.url.isprintable()
    assert "test" not in store.url.replace("pytest", "").replace("/test", "")
