"""One turn of a saver: what is measured of it in one round. Ours are opened and closed in each; the others stay."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import attached_saves
from benchmarks.attached import Attached
from benchmarks.measure import bytes_on_disk, load_once, load_twice, remove, save_once
from benchmarks.memory import Peak
from benchmarks.ours import Native, NativeAtOnce
from benchmarks.peers.saver import Saver
from benchmarks.states import State

Turn = Callable[[Path], dict[str, float]]
"""Measures in an empty directory. Gives seconds and bytes by column."""

OURS = {
    "native": Native.title,
    "native_at_once": NativeAtOnce.title,
    "attach": Attached.title,
    "attach_at_once": f"{Attached.title}, update at once",
}


def of_ours(state: State, expected: Mapping[str, str]) -> dict[str, Turn]:
    """Turns of ours by name: each layout, the next update when the state is written, and at once."""
    return {
        "native": lambda folder: _native(Native, state, folder, expected),
        "native_at_once": lambda folder: _native(NativeAtOnce, state, folder, None),
        "attach": lambda folder: _attach(state, folder, expected, at_once=False),
        "attach_at_once": lambda folder: _attach(state, folder, None, at_once=True),
    }


class PeerTurn:
    """The turns of another saver. The first is a warm-up, in which its memory is watched.

    Args:
        kind: The saver.
        state: What it saves.
        folder: Where.
        expected: The state's digests.
    """

    def __init__(self, kind: type[Saver], state: State, folder: Path, expected: Mapping[str, str]) -> None:
        self._expected = expected
        self._number = 1
        folder.mkdir()
        with Peak() as peak:
            self.saver = kind(state, folder)
            path, _ = save_once(self.saver, 0)
        remove(path)
        self._memory = peak.extra

    def __call__(self, folder: Path) -> dict[str, float]:
        """Measures one save and two loads."""
        path, seconds = save_once(self.saver, self._number)
        self._number += 1
        found: dict[str, float] = {**seconds, "memory": self._memory, "disk": bytes_on_disk(path)}
        found |= load_twice(self.saver.state, lambda path: load_once(self.saver, path), path, self._expected)
        remove(path)
        return found


def _native(kind: type[Native], state: State, folder: Path, expected: Mapping[str, str] | None) -> dict[str, float]:
    with Peak() as peak:
        saver = kind(state, folder).__enter__()
        save_once(saver, 0)
        save_once(saver, 0)
    path, seconds = save_once(saver, 0)
    saver.__exit__(None, None, None)
    found: dict[str, float] = {**_without_safe(kind is Native, seconds), "memory": peak.extra}
    found["disk"] = bytes_on_disk(path)
    if expected is not None:
        found |= load_twice(state, lambda path: load_once(saver, path), path, expected)
    return found


def _attach(state: State, folder: Path, expected: Mapping[str, str] | None, *, at_once: bool) -> dict[str, float]:
    path, seconds, memory = attached_saves.save(state, folder, at_once=at_once)
    found: dict[str, float] = {**_without_safe(not at_once, seconds), "memory": memory}
    found["disk"] = bytes_on_disk(path)
    if expected is not None:
        found |= load_twice(state, lambda path: attached_saves.load(state, path), path, expected)
    return found


def _without_safe(covered: bool, seconds: Mapping[str, Any]) -> dict[str, float]:
    # Where training comes to the update later than the write ends, nobody waits for the snapshot.
    return {name: value for name, value in seconds.items() if not (covered and name == "safe")}
