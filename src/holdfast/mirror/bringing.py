"""A checkpoint that a start wants is brought while training goes on, as long as nothing waits to be sent."""

import time
from collections.abc import Callable

from holdfast.errors import AbsentError, DamagedCheckpointError, NoSpaceError
from holdfast.mirror.wanted import Wanted, WantedList
from holdfast.remote.download import download
from holdfast.remote.object_store import ObjectStore
from holdfast.run.directory import RunDirectory
from holdfast.store import files, names, pins
from holdfast.store.catalog import Entry
from holdfast.store.folder import exists

RESERVE_BYTES = 16 << 20
"""The bytes that are left free beside what is pulled, as beside what is saved."""


class _GivesWayError(Exception):
    """The pull makes way for something that is on this disk only. It begins anew later."""


def bring(
    store: ObjectStore, directory: RunDirectory, wanted: Wanted, entries: list[Entry], show: Callable[[], None]
) -> None:
    """Brings a checkpoint under its name, and writes down what became of it, unless something is to be sent meanwhile.

    Args:
        store: The mirror.
        directory: The run directory.
        wanted: The checkpoint.
        entries: Those that are here, the newest first.
        show: Called as bytes arrive.

    Raises:
        MirrorUnavailableError: It is to be tried again.
        MirrorAccessError: The place refuses.
    """
    wanted_list = WantedList(directory)
    manifests = [entry.manifest for entry in entries if entry.manifest is not None]
    if any(manifest.attempt == wanted.attempt for manifest in manifests):
        wanted_list.remove(wanted)
        return

    def progress(size: int) -> None:
        show()
        if pins.queued(directory.control):
            raise _GivesWayError

    begun = time.monotonic()
    try:
        _require_room(directory, wanted, manifests[0].size if manifests else 0)
        download(store, wanted.key, directory.folder, progress)
    except _GivesWayError:
        return
    except (AbsentError, DamagedCheckpointError, NoSpaceError, OSError) as error:
        wanted_list.finish(wanted, str(error))
    else:
        wanted_list.finish(wanted, seconds=time.monotonic() - begun)


def _require_room(directory: RunDirectory, wanted: Wanted, next_size: int) -> None:
    """Checks that its name is free, and that there is room for it and the next checkpoint.

    Raises:
        NoSpaceError: There is not.
    """
    name = names.checkpoint(wanted.step)
    if exists(directory.folder / name):
        raise NoSpaceError(f"another has its name here; holdfast pull brings {name} elsewhere")
    free, _ = files.free_space(directory.folder)
    if free < wanted.bytes + next_size + RESERVE_BYTES:
        raise NoSpaceError(
            f"it has {wanted.bytes:,} bytes, and {directory.root} has {free:,} free, of which the next checkpoint takes"
            f" {next_size:,}"
        )
