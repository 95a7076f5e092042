"""What was said of a place, and whether it is true: looked at by a reader who has nothing of the program but its names.

It reads the manifests and compares every byte with what was saved.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from beyond.place import Place
from helpers.support import RUN
from holdfast.remote import keys
from holdfast.remote.keys import CheckpointKey
from holdfast.store import names
from holdfast.store.manifest import Manifest, decode

Saved = dict[str, dict[str, bytes]]
"""The files of checkpoints, by the attempts and their paths."""


@dataclass
class Promises:
    """What somebody was told.

    Args:
        place: The place.
        saved: What was saved, wherever.
        best: The attempt that each refers to as the best.
    """

    place: Place
    saved: Saved
    best: dict[str, str] = field(default_factory=dict)
    mirrored: list[CheckpointKey] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    """Attempts, as pins name them."""
    begun: dict[int, str] = field(default_factory=dict)
    """The attempts that starts go on from, by their terms."""
    is_strict: bool = True
    """Whether a manifest without all of its files is wrong, too, and not only to take it for a checkpoint."""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place.look = self.look

    def look(self) -> None:
        """Notes what is wrong right now."""
        if (problem := self.broken()) and problem not in self.problems:
            self.problems.append(problem)

    def say(self, key: CheckpointKey) -> None:
        """Somebody is told that a checkpoint is mirrored."""
        self.mirrored.append(key)
        self.look()

    def pin(self, attempt: str) -> None:
        """Somebody is told that a checkpoint is pinned."""
        self.pinned.add(attempt)
        self.look()

    def begin(self, term: int, attempt: str) -> None:
        """A start begins to go on from a checkpoint."""
        self.begun[term] = attempt
        self.look()

    def broken(self) -> str:
        """Which promise is broken; empty where all are kept."""
        whole = self.whole()
        for key in whole:
            for path, data in self.saved[key.attempt].items():
                if self.place.objects[key.of(path)] != data:
                    return f"{path} of {key.sequence} is not what was saved"
        if self.mirrored and max(self.mirrored) > max(whole, default=CheckpointKey("", 0, 0, "")):
            return f"{max(self.mirrored).sequence} was mirrored and there are {[key.sequence for key in whole]}"
        there = {key.attempt for key in whole}
        if self.pinned - there:
            return "a pinned checkpoint is lost"
        if self.begun and self.begun[max(self.begun)] not in there:
            return "the checkpoint is lost that the newest start goes on from"
        if self.mirrored and self._needed() - there:
            return "the best checkpoint is lost"
        return ""

    def whole(self) -> list[CheckpointKey]:
        """The checkpoints, the newest first."""
        whole = []
        for key in sorted(self.place.objects, reverse=True):
            parsed = keys.file_of(key)
            if parsed is None or parsed[1] != names.MANIFEST or parsed[0].run != RUN:
                continue
            manifest = _decoded(self.place.objects[key])
            sizes = [len(self.place.objects.get(parsed[0].of(file.path), b"absent")) for file in manifest.files]
            if sizes == [file.size for file in manifest.files]:
                whole.append(parsed[0])
            elif self.is_strict:
                self.problems.append(f"{parsed[0].sequence} is published and not whole")
        return whole

    def _needed(self) -> set[str]:
        """The best checkpoint that the newest one that was mirrored refers to, where that was mirrored too."""
        best = self.best.get(max(self.mirrored).attempt)
        return {key.attempt for key in self.mirrored if key.attempt == best}


@lru_cache(maxsize=1000)
def _decoded(data: bytes) -> Manifest:
    return decode(data)
