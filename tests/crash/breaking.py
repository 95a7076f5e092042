"""Breaks a recorded story everywhere, and looks whether what was promised is kept, before and after the recovery."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crash.disk import Disk, Tree, lay_out, what_matters
from crash.promises import RUN_FOLDER, Promises, broken, good_checkpoints, is_outcome_lost
from crash.recorder import Recorder
from crash.stories import opens
from holdfast.store import names


@dataclass
class Breaker:
    """Looks at states of a disk, each once.

    Args:
        folder: Where the states are laid out, one at a time.
    """

    folder: Path
    seen: dict[tuple[object, ...], str] = field(default_factory=dict)
    recoveries: list[tuple[Disk, Promises]] = field(default_factory=list)
    """What each recovery did to the disk, and what was promised before it."""

    def break_everywhere(
        self, disk: Disk, muted: frozenset[tuple[str, ...]] = frozenset(), limit: int = 200, begin: int = 0
    ) -> Iterator[str]:
        """Cuts the power at every moment from the `begin`-th event on; gives what is broken then, as it is found."""
        promises: dict[int, Promises] = {}
        for tree, count in disk.after_power_cuts(muted, limit):
            if count >= begin:
                made = promises.setdefault(count, Promises.at(disk, count))
                if found := self.look(tree, made):
                    yield f"{found} (power cut after {count} of {len(disk.events)} events)"

    def look(self, tree: Tree, made: Promises) -> str:
        """What is broken in one state; empty where nothing is."""
        told = tuple(frozenset(kind) for kind in (made.saved, made.doomed, made.asked, made.pinned, made.queued))
        key = (what_matters(tree), *told, made.newest, made.started, made.ended)
        if key not in self.seen:
            self.seen[key] = self._broken(tree, made)
        return self.seen[key]

    def _broken(self, tree: Tree, made: Promises) -> str:
        top = self.folder / f"state-{len(self.seen)}"
        lay_out(tree, top)
        root = top / RUN_FOLDER
        try:
            before = good_checkpoints(root)
            if is_outcome_lost(root, made):
                return "that the last start began, or how it ended, is lost"
            recorder = Recorder(top)
            with recorder.recording():
                opens(recorder)
            self.recoveries.append((recorder.disk, made))
            after = good_checkpoints(root)
            if found := broken(root, after, made):
                return found
            if before.keys() - after:
                return "the recovery removed a checkpoint"
            litter = [path.name for path in root.iterdir() if _is_litter(path.name)]
            return f"the recovery left {litter}" if litter else ""
        except AssertionError as error:
            return str(error)
        finally:
            shutil.rmtree(top)

    def break_recoveries(self, count: int, limit: int, seed: int = 0) -> Iterator[str]:
        """Cuts the power once more in a sample of the recoveries, at every moment of them."""
        chosen = random.Random(seed).sample(self.recoveries, min(count, len(self.recoveries)))
        for disk, made in chosen:
            for tree, _ in disk.after_power_cuts(limit=limit):
                if found := self.look(tree, made):
                    yield f"in a recovery: {found}"


def _is_litter(name: str) -> bool:
    return names.is_staging(name) or names.is_trash(name) or names.is_temporary(name)
