"""An upload and a pull of a checkpoint, and the same bytes through obstore alone, in turns: a process of its own.

`measured` launches it, because obstore is no library for a process that others are started from.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import bucket_server
from benchmarks.memory import high_water, resident
from holdfast.remote import bucket
from holdfast.remote.bucket import part_bytes, parts_at_once
from holdfast.remote.download import BLOCKS_AT_ONCE, download
from holdfast.remote.opening import open_store
from holdfast.remote.upload import upload
from holdfast.store import commit, digest
from holdfast.store.folder import Folder
from holdfast.store.manifest import File, Manifest
from holdfast.store.names import MANIFEST

WAYS = ("obstore", "ours")
_RUN = "0" * 32
_FILE = "state"

Measured = dict[str, dict[str, dict[str, list[float]]]]


def measured(port: int, folder: Path, size: int, rounds: int) -> Measured:
    """Measures in a process of its own.

    Args:
        port: That of the server.
        folder: A directory on the disk that is read from and written to.
        size: The bytes of the checkpoint.
        rounds: The number of turns.

    Returns:
        By what was done (`upload`, `pull`), by way, by figure (`seconds`, `processor`), one value a round.
    """
    measured: Measured = _in_a_process("transfers", port, folder, size, rounds)
    return measured


def memory(port: int, folder: Path, what: str, size: int, part: int = 0) -> dict[str, float]:
    """Measures the memory of an upload or of a pull, in a process that has done nothing else.

    Args:
        port: That of the server, which forgets what it gets.
        folder: A directory. A pull takes as much of its disk as the checkpoint has; an upload takes none.
        what: `upload` or `pull`.
        size: The bytes of the checkpoint.
        part: The bytes of a part of an upload; 0 for those that a file of this size has.

    Returns:
        Bytes that are resident: `idle`, with the store opened and asked for once, and `most`.
    """
    found: dict[str, float] = _in_a_process("memory", port, folder, size, part, what == "pull")
    return found


def plain(port: int, to: Path, prefix: str) -> float:
    """Brings the newest checkpoint below a prefix to the disk through obstore alone, and returns the seconds of that.

    Args:
        port: That of the server.
        to: The directory that it becomes.
        prefix: The prefix.
    """
    seconds: float = _in_a_process(prefix, port, to)
    return seconds


def _in_a_process(what: str, port: int, folder: Path, *numbers: int) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.mirror_transfers",
        what,
        str(port),
        str(folder),
        *map(str, map(int, numbers)),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measures, and prints the figures."""
    what, port, folder, *numbers = sys.argv[1:]
    works: dict[str, Callable[..., object]] = {"transfers": _transfers, "memory": _memory}
    if what not in works:
        print(_plain(int(port), Path(folder), what))
        return
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        print(json.dumps(works[what](int(port), place, *map(int, numbers))))
    finally:
        shutil.rmtree(place)


def _plain(port: int, to: Path, prefix: str) -> float:
    import obstore

    store = _alone(port, prefix)
    begun = time.perf_counter()
    items = {each["path"]: each["size"] for each in obstore.list(store).collect()}
    newest = max(path for path in items if path.endswith(f"/{MANIFEST}")).removesuffix(MANIFEST)
    to.mkdir()
    for path, size in items.items():
        if path.startswith(newest):
            _fetch(store, path, size, to / path.removeprefix(newest))
    return time.perf_counter() - begun


def _alone(port: int, prefix: str) -> Any:
    from obstore.store import S3Store

    options: dict[str, Any] = {"allow_http": True, "timeout": "300s"}
    return S3Store("bucket", prefix=prefix, endpoint=bucket_server.address(port), client_options=options)


def _fetch(store: Any, path: str, size: int, to: Path) -> None:
    """Brings an object to the disk, as many blocks at once as ours, and no digest taken."""
    import obstore

    def fetch(offset: int) -> None:
        end = min(size, offset + digest.BLOCK_BYTES)
        os.pwrite(target.fileno(), obstore.get_range(store, path, start=offset, end=end), offset)

    with to.open("wb") as target, ThreadPoolExecutor(BLOCKS_AT_ONCE) as pool:
        list(pool.map(fetch, range(0, size, digest.BLOCK_BYTES)))
        os.fsync(target.fileno())


def _transfers(port: int, folder: Path, size: int, rounds: int) -> Measured:
    checkpoint = _checkpoint(folder, size)
    found: Measured = {what: {way: {"seconds": [], "processor": []} for way in WAYS} for what in ("upload", "pull")}
    turns = {way: _Turn(port, way, folder, checkpoint, size) for way in WAYS}
    for number in range(rounds):
        for what in found:
            for way in WAYS if number % 2 else WAYS[::-1]:
                if what == "upload":
                    _read(checkpoint / _FILE)  # an upload of ours has the system forget it
                else:
                    _warm_up_memory(folder, size)
                for figure, value in _timed(getattr(turns[way], what)).items():
                    found[what][way][figure].append(value)
                turns[way].tidy(also_there=what == "pull")
    return found


class _Turn:
    """One way to bring a checkpoint there and back."""

    def __init__(self, port: int, way: str, folder: Path, checkpoint: Path, size: int) -> None:
        self._way, self._folder, self._checkpoint, self._size = way, folder, checkpoint, size
        self._store = open_store(f"s3://bucket/{way}", bucket_server.address(port))
        self._alone = _alone(port, way)
        self._into = folder / f"from-{way}"
        self._key: Any = None

    def upload(self) -> None:
        """Sends it."""
        if self._way == "ours":
            with Folder.open(self._checkpoint) as folder:
                self._key = upload(self._store, folder, 1, None)
            return
        import obstore

        part, source = part_bytes(self._size), self._checkpoint / _FILE
        options: dict[str, Any] = {"use_multipart": True, "chunk_size": part, "max_concurrency": parts_at_once(part)}
        obstore.put(self._alone, _FILE, source, **options)

    def pull(self) -> None:
        """Brings it back, until it is on the disk."""
        if self._way == "ours":
            download(self._store, self._key, self._into)
            return
        _fetch(self._alone, _FILE, self._size, self._into / _FILE)

    def tidy(self, *, also_there: bool) -> None:
        """Removes what was brought; with `also_there` the next upload finds nothing there."""
        shutil.rmtree(self._into, ignore_errors=True)
        self._into.mkdir()
        if also_there and self._key is not None:
            self._store.delete(self._key.manifest)
            self._store.delete(self._key.of(_FILE))


def _read(path: Path) -> None:
    buffer = bytearray(digest.BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _warm_up_memory(folder: Path, size: int) -> None:
    """Has the system's free memory begin with pages that were used just now, as `benchmarks.memory.Ballast` does.

    A virtual machine hands others back to its host, and whoever comes first pays for that.
    """
    block = bytes(digest.BLOCK_BYTES)
    with (folder / "warm").open("wb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    (folder / "warm").unlink()


def _timed(work: Callable[[], None]) -> dict[str, float]:
    begun, used = time.perf_counter(), _processor()
    work()
    return {"seconds": time.perf_counter() - begun, "processor": _processor() - used}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory(port: int, folder: Path, size: int, part: int, pulls: int) -> dict[str, float]:
    if part:
        bucket._MOST_PARTS = size // part
    checkpoint = _sparse_checkpoint(folder, size)
    into = folder / "into"
    into.mkdir()
    store = open_store("s3://bucket/memory", bucket_server.address(port))
    list(store.listed())
    idle = resident()
    with Folder.open(checkpoint) as source:
        if pulls:
            key = upload(store, source, 1, None)
        high_water(reset=True)
        if pulls:
            idle = resident()
            download(store, key, into)
        else:
            upload(store, source, 1, None)
    return {"idle": idle, "most": high_water()}


def _sparse_checkpoint(folder: Path, size: int) -> Path:
    """Makes a checkpoint that takes no room. Its digests are known without reading it."""
    attempt = commit.Attempt(folder, _RUN, 1)
    with (attempt.folder.path / _FILE).open("wb") as file:
        file.truncate(size)
    whole, rest = divmod(size, digest.BLOCK_BYTES)
    digests = digest.of([bytes(digest.BLOCK_BYTES)]) * whole + (digest.of([bytes(rest)]) if rest else "")
    return attempt.publish(_manifest(attempt, (File(_FILE, size, digests),)), lambda: None).path


def _checkpoint(folder: Path, size: int) -> Path:
    """Makes a checkpoint of one file, of which all blocks are alike."""
    attempt = commit.Attempt(folder, _RUN, 1)
    block = os.urandom(digest.BLOCK_BYTES)
    with (attempt.folder.path / _FILE).open("wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
    return attempt.publish(_manifest(attempt, attempt.seal(digest.of_descriptor)), lambda: None).path


def _manifest(attempt: commit.Attempt, sealed: tuple[File, ...]) -> Manifest:
    return Manifest(
        layout="native",
        run=_RUN,
        attempt=attempt.token,
        parent=None,
        sequence=1,
        step=1,
        world_size=1,
        created="2026-01-01T00:00:00Z",
        reasons=(),
        boundary={},
        versions={},
        files=sealed,
    )


if __name__ == "__main__":
    main()
