"""Verification of a checkpoint where it lies, in a mirror: every byte is fetched, compared, and let go of."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from holdfast.errors import AbsentError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import RemoteCheckpoint
from holdfast.remote.object_store import ObjectStore, Progress, unheard
from holdfast.store import digest, reading
from holdfast.store.manifest import File, Manifest

# As many blocks are in memory: 32 MiB.
_FETCHERS = 8
_UNDER_WAY = 2 * _FETCHERS


def problems_of(
    store: ObjectStore, there: RemoteCheckpoint, manifest: Manifest, progress: Progress = unheard
) -> list[str]:
    """Compares all of a checkpoint with its manifest, and returns a line for each file that differs.

    Args:
        store: The place.
        there: What a listing shows of it.
        manifest: Its manifest.
        progress: Hears of the bytes as they arrive.

    Raises:
        MirrorError: The place does not answer, or refuses.
    """
    problems: dict[str, str] = {}
    under_way: deque[tuple[File, Future[str | None]]] = deque()

    def take() -> None:
        file, block = under_way.popleft()
        if problem := block.result():
            problems.setdefault(file.path, problem)
        progress(min(file.size, digest.BLOCK_BYTES))

    with ThreadPoolExecutor(_FETCHERS, "holdfast-verify") as pool:
        try:
            for file in manifest.files:
                if (size := there.sizes.get(file.path)) != file.size:
                    problems[file.path] = (
                        f"{file.path}: is missing" if size is None else reading.size_problem(file, size)
                    )
                    continue
                for offset in range(0, file.size or 1, digest.BLOCK_BYTES):
                    under_way.append((file, pool.submit(_problem_at, store, there.key, file, offset)))
                    if len(under_way) == _UNDER_WAY:
                        take()
            while under_way:
                take()
        finally:
            for _, block in under_way:
                block.cancel()
    return list(problems.values())


def _problem_at(store: ObjectStore, key: CheckpointKey, file: File, offset: int) -> str | None:
    end = min(file.size, offset + digest.BLOCK_BYTES)
    try:
        block = store.get_range(key.of(file.path), offset, end) if end else b""
    except AbsentError:
        return f"{file.path}: is missing"
    if len(block) == end - offset and digest.of([block]) == digest.at(file.digests, offset):
        return None
    return reading.changed(file)
