"""A checkpoint from a mirror to this disk: every block is checked as it arrives, and the name comes last."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from holdfast.errors import DamagedCheckpointError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import manifest_of
from holdfast.remote.object_store import ObjectStore
from holdfast.store import commit, digest, files, names
from holdfast.store.folder import Directory, Folder
from holdfast.store.manifest import File

Progress = Callable[[int], None]
"""Called with the number of bytes that have arrived since."""


def download(store: ObjectStore, key: CheckpointKey, root: Directory, progress: Progress = lambda size: None) -> Path:
    """Brings a checkpoint from a mirror into a run directory, under the name that its step has there.

    One that has the name already makes way, as it does for a commit.

    Args:
        store: The place.
        key: The checkpoint.
        root: The run directory.
        progress: Hears of the bytes as they arrive.

    Returns:
        Its path.

    Raises:
        AbsentError: It is not there (any more).
        DamagedCheckpointError: Something there is not what was sent.
        OSError: The disk does not take it.
    """
    data, manifest = manifest_of(store, key)
    place = root / names.staging(key.run, manifest.step, key.attempt)
    with suppress(FileNotFoundError):
        files.remove_tree(place)
    folder = commit.make_new(place)
    try:
        for file in manifest.files:
            _fetch(store, key, file, folder, progress)
        files.write_new(folder / names.MANIFEST, data)
        files.sync_directory(folder)
        target = root / names.checkpoint(manifest.step)
        commit.make_way(root, manifest.step)
        files.rename_new(place, target)
        files.sync_directory(root)
    except BaseException:
        files.remove_open(folder, place)
        raise
    finally:
        folder.close()
    return Path(str(target))


def _fetch(store: ObjectStore, key: CheckpointKey, file: File, folder: Folder, progress: Progress) -> None:
    above, _, name = file.path.rpartition("/")
    with files.below(folder, above, make=True) as inside:
        fd = files.open_new(inside / name)
        try:
            for offset in range(0, file.size, digest.BLOCK_BYTES):
                end = min(file.size, offset + digest.BLOCK_BYTES)
                block = store.get_range(key.of(file.path), offset, end)
                if len(block) != end - offset or digest.of([block]) != digest.at(file.digests, offset):
                    raise DamagedCheckpointError(
                        f"{store.url}/{key.of(file.path)} is not what was sent: the block at {offset:,} differs",
                        [f"{file.path} differs at {offset:,}"],
                    )
                files.write_all(fd, block)
                progress(len(block))
            os.fsync(fd)
        finally:
            os.close(fd)
        files.sync_directory(inside)
