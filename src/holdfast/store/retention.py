"""What is deleted, and how: validity goes first, and the last good checkpoint never."""

import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import files, names
from holdfast.store.catalog import Entry
from holdfast.store.verify import verify

SCHEDULE = "schedule"


@dataclass(frozen=True)
class Keep:
    """How many checkpoints of each kind are kept; None keeps all.

    Args:
        scheduled: Of those that only the schedule asked for (`save_total_limit`).
        on_demand: Of those that somebody asked for (`dynamic_checkpoint.keep`).
    """

    scheduled: int | None
    on_demand: int | None


def surplus(found: Sequence[Entry], run: str, keep: Keep, spared: Iterable[Path] = ()) -> list[Path]:
    """The checkpoints of this run that are more than `keep` allows, oldest commit first.

    Only what verifies (names and sizes) counts as kept or is deleted; another run's checkpoints, damaged ones, and
    those in `spared` are left alone. The newest good checkpoint is never among the surplus.

    Args:
        found: The catalog, newest commit first.
        run: The identity of the run that asks.
        keep: The limits.
        spared: Checkpoints that something still needs: the one this run resumed from, the best one.
    """
    safe = {path.resolve() for path in spared}
    good = [e for e in found if e.manifest and e.manifest.run == run and verify(e.path, full=False).good]
    if good:
        safe.add(good[0].path.resolve())
    scheduled = [entry for entry in good if _only_scheduled(entry)]
    on_demand = [entry for entry in good if not _only_scheduled(entry)]
    over = {entry.path for entry in _beyond(scheduled, keep.scheduled) + _beyond(on_demand, keep.on_demand)}
    return [entry.path for entry in reversed(good) if entry.path in over and entry.path.resolve() not in safe]


def delete(root: Path, path: Path) -> None:
    """Deletes a checkpoint: its name goes first, durably, so that a crash leaves no half of one that looks whole."""
    doomed = root / names.trash(uuid.uuid4().hex)
    files.rename_new(path, doomed)
    files.sync_directory(root)
    files.remove_tree(doomed)


def sweep(root: Path) -> list[str]:
    """Removes what dead attempts, deletions and copies left. Only the holder of the run's lease may call this."""
    removed = []
    for path in sorted(root.iterdir()):
        with suppress(OSError):
            if names.is_temporary(path.name):
                path.unlink()
            elif (names.is_staging(path.name) or names.is_trash(path.name)) and not path.is_symlink():
                files.remove_tree(path)
            else:
                continue
            removed.append(path.name)
    return removed


def _only_scheduled(entry: Entry) -> bool:
    return entry.manifest is not None and all(r.get("door") == SCHEDULE for r in entry.manifest.reasons)


def _beyond(kept: list[Entry], limit: int | None) -> list[Entry]:
    return [] if limit is None else kept[limit:]
