"""A checkpoint from a mirror to this disk: every block is checked as it arrives, and the name comes last."""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from holdfast.errors import DamagedCheckpointError, NoSpaceError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import manifest_of
from holdfast.remote.object_store import ObjectStore, Progress, unheard
from holdfast.store import blocks, commit, digest, files, names, reading
from holdfast.store.folder import Directory, Folder, path_of, walk
from holdfast.store.manifest import File, Manifest

BLOCKS_AT_ONCE = 8
"""The number of blocks that are fetched at once. As many are in memory: 32 MiB."""
# As many are asked for, so that none of these waits for what comes next.
_UNDER_WAY = 2 * BLOCKS_AT_ONCE


def download(store: ObjectStore, key: CheckpointKey, root: Directory, progress: Progress = unheard) -> Path:
    """Brings a checkpoint from a mirror into a run directory, under the name that its step has there.

    One that has the name already makes way, as it does for a commit.

    Args:
        store: The place.
        key: The checkpoint.
        root: The run directory.
        progress: Hears of the bytes as they arrive, in the thread that calls this.

    Returns:
        Its path.

    Raises:
        AbsentError: It is not there (any more).
        DamagedCheckpointError: Something there is not what was sent.
        MirrorUnavailableError: It is to be tried again.
        NoSpaceError: The disk has no room for it.
        OSError: The disk does not take it.
    """
    data, manifest = manifest_of(store, key)
    space, _ = files.free_space(root)
    if space < manifest.size:
        raise NoSpaceError(
            f"{names.checkpoint(manifest.step)} of {store.url} has {manifest.size:,} bytes, and {root} has"
            f" {space:,} free"
        )
    place, target = root / names.staging(key.run, manifest.step, key.attempt), root / names.checkpoint(manifest.step)
    with suppress(FileNotFoundError):
        files.remove_tree(place)
    with commit.make_new(place) as folder:
        try:
            _fetch(store, key, manifest, folder, progress)
            files.write_new(folder / names.MANIFEST, data)
            for level in walk(folder):
                files.sync_directory(level.folder)
            commit.make_way(root, manifest.step)
            files.rename_new(place, target)
        except BaseException:
            files.remove_open(folder, place)
            raise
    files.sync_directory(root)
    return path_of(target)


class _Arriving:
    """A file that is being written, by any number of threads. The last of them makes it durable.

    Args:
        folder: The directory that it is below.
        file: The manifest's entry for it.
    """

    def __init__(self, folder: Folder, file: File) -> None:
        self.file = file
        self.offsets = range(0, file.size or 1, digest.BLOCK_BYTES)
        self._left = len(self.offsets)
        self._lock = threading.Lock()
        above, _, name = file.path.rpartition("/")
        try:
            with files.below(folder, above, make=True) as inside:
                self.fd = files.open_new(inside / name)
        except (FileExistsError, NotADirectoryError) as error:  # nobody saved that: the disk is not to blame
            problem = f"{file.path}: the manifest has another file in its place"
            raise DamagedCheckpointError(f"{folder.path.name}: {problem}", [problem]) from error

    def leave(self) -> None:
        """Notes that one of its blocks is there."""
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            os.fsync(self.fd)
            self.close()

    def close(self) -> None:
        """Lets go of it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _fetch(store: ObjectStore, key: CheckpointKey, manifest: Manifest, folder: Folder, progress: Progress) -> None:
    """Fetches all files into a directory, several blocks at once, and makes each durable."""
    opened: deque[_Arriving] = deque(maxlen=_UNDER_WAY + 1)  # no more than that can be open
    under_way: deque[Future[int]] = deque()
    try:
        with ThreadPoolExecutor(BLOCKS_AT_ONCE, "holdfast-pull") as pool:
            try:
                for file in manifest.files:
                    opened.append(arriving := _Arriving(folder, file))
                    for offset in arriving.offsets:
                        under_way.append(pool.submit(_fetch_block, store, key, arriving, offset))
                        if len(under_way) == _UNDER_WAY:
                            progress(under_way.popleft().result())
                while under_way:
                    progress(under_way.popleft().result())
            finally:
                for block in under_way:
                    block.cancel()
    finally:
        for arriving in opened:
            arriving.close()


def _fetch_block(store: ObjectStore, key: CheckpointKey, arriving: _Arriving, offset: int) -> int:
    """Fetches one block of a file to its place, and proves it. Returns its size."""
    file = arriving.file
    end = min(file.size, offset + digest.BLOCK_BYTES)
    block = store.get_range(key.of(file.path), offset, end) if end else b""
    if len(block) != end - offset or digest.of([block]) != digest.at(file.digests, offset):
        raise DamagedCheckpointError(
            f"{store.url}/{key.of(file.path)} is not what was sent: the block at {offset:,} differs",
            [reading.changed(file)],
        )
    view = memoryview(block)
    while view:
        offset += (written := os.pwrite(arriving.fd, view, offset))
        view = view[written:]
    blocks.start_writing(arriving.fd, end - len(block), len(block))
    arriving.leave()
    return len(block)
