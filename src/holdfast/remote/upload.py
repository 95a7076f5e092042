"""The commit of a checkpoint to a mirror: files first, all seen there, the manifest last and only where none is.

Nothing that is read there is believed without a manifest, so an upload that is cut off at any request leaves nothing
that could be taken for a checkpoint, and the next try sends what is missing. Before it is said that a checkpoint is
there, the run's terms are read once more. A start claims its term and then reads what is there, so either it sees this
checkpoint, or it is seen here and nothing is said.
"""

import os
from collections.abc import Iterator

from holdfast.errors import DamagedCheckpointError, MirrorError, MirrorUnavailableError
from holdfast.remote import terms
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import RemoteCheckpoint, listing_of
from holdfast.remote.object_store import ObjectStore, Progress, unheard
from holdfast.store import digest, files, names, reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import MOST_BYTES, File, Manifest, ManifestError, decode


def upload(
    store: ObjectStore, folder: Folder, term: int, claimed: int | None, progress: Progress = unheard
) -> CheckpointKey:
    """Brings a checkpoint of this disk to a mirror. Returns when every reader there finds it, whole.

    Args:
        store: The place.
        folder: The checkpoint's directory, held open; nothing in it is changed.
        term: The term that it is sent under: the one that it counts for in its run directory.
        claimed: The term that this start has claimed: nothing is sent once a later one has. None sends what counts for
            an earlier term as well: it is never the newest there.
        progress: Hears of the bytes as they are read here, or are there already.

    Raises:
        MirrorTakenError: A later start has claimed the run.
        DamagedCheckpointError: The directory is no whole checkpoint, or another has its name there.
        MirrorUnavailableError: It is to be tried again; what is there already is not sent again.
        MirrorAccessError: Trying again would end alike.
        MirrorError: The checkpoint has been deleted there.
        OSError: The disk cannot be read.
    """
    data = files.read(folder / names.MANIFEST, limit=MOST_BYTES)
    try:
        manifest = decode(data)
    except ManifestError as error:
        raise _damaged(folder, str(error)) from error
    key = CheckpointKey(manifest.run, term, manifest.sequence, manifest.attempt)
    there = _looked_at(store, key, claimed)
    for file in manifest.files:
        if there.sizes.get(file.path) == file.size:
            progress(file.size)
        else:
            _send(store, folder, key, file, progress)
    _require_all(store, manifest, _looked_at(store, key, claimed))
    if not store.put_absent(key.manifest, data):
        raise DamagedCheckpointError(f"{store.url} has another checkpoint under the name of {folder}")
    there = _looked_at(store, key, claimed)
    _require_all(store, manifest, there)
    if there.sizes.get(names.MANIFEST) != len(data):
        raise MirrorUnavailableError(f"{store.url}: the manifest of {folder} is not there as it was sent")
    return key


def _looked_at(store: ObjectStore, key: CheckpointKey, claimed: int | None) -> RemoteCheckpoint:
    """Looks for what is there of a checkpoint. Refuses where a later start has the run, or it is deleted there."""
    listing = listing_of(store, key.run)
    if claimed is not None and listing.newest_term > claimed:
        raise terms.taken_over(store, key.run, listing.newest_term, claimed)
    if key.attempt in listing.doomed:
        raise MirrorError(f"{store.url} has deleted this checkpoint by its own rules, or is about to")
    return listing.of(key)


def _send(store: ObjectStore, folder: Folder, key: CheckpointKey, file: File, progress: Progress) -> None:
    try:
        with files.open_inside(folder, file.path) as fd:
            if (size := os.fstat(fd).st_size) != file.size:
                raise _damaged(folder, reading.size_problem(file, size))
            store.put_file(key.of(file.path), file.size, _blocks(fd, folder, file, progress))
    except FileNotFoundError as error:
        raise _damaged(folder, reading.unreadable(file, error)) from error


def _blocks(fd: int, folder: Folder, file: File, progress: Progress) -> Iterator[bytes]:
    """Reads a file as it is sent. What is not what was saved ends the upload of it, and is never there."""
    for offset in range(0, file.size, digest.BLOCK_BYTES):
        block = digest.block_at(fd, offset)
        if digest.of([block]) != digest.at(file.digests, offset):
            raise _damaged(folder, reading.changed(file))
        if hasattr(os, "posix_fadvise"):  # nobody reads it again soon, and training may need the memory
            os.posix_fadvise(fd, offset, len(block), os.POSIX_FADV_DONTNEED)
        progress(len(block))
        yield block


def _require_all(store: ObjectStore, manifest: Manifest, there: RemoteCheckpoint) -> None:
    """Checks that every file is there: the answer to a request proves nothing by itself."""
    if problem := there.problem_of(manifest):
        raise MirrorUnavailableError(f"{store.url} has not all that was sent: {problem}")


def _damaged(folder: Folder, problem: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{folder} is damaged, and is not sent: {problem}", [problem])
