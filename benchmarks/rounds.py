"""Savers in turns: one state, everybody who saves it, and what each round finds."""

import gc
import shutil
from pathlib import Path
from typing import Any

from benchmarks import loop, turns
from benchmarks.measure import remove, save_once
from benchmarks.memory import Ballast
from benchmarks.ours import Native, NativeAtOnce
from benchmarks.plan import Plan
from benchmarks.raw import RawFile, copy_seconds
from benchmarks.states import State

Values = dict[str, list[float]]

# Blocks of training with a save, of each saver in each round.
_BLOCKS = 3


class Rounds:
    """One state, and everybody who saves it."""

    def __init__(self, state: State, folder: Path, plan: Plan, filled: Ballast | None) -> None:
        self._state = state
        self._folder = folder
        self._filled = filled
        self._number = 0
        self._expected = state.digests()
        self._peers: dict[str, turns.PeerTurn] = {}
        self.missing: list[str] = []
        """A line for each peer that could not save at all."""
        for name, peer in plan.peers.items():
            try:
                self._peers[name] = turns.PeerTurn(peer, state, folder / name, self._expected)
            except Exception as error:  # noqa: BLE001 - whatever it cannot do here, the others can be compared
                self.missing.append(f"{peer.title}: left out, {type(error).__name__}: {error}")
            self._refill()
        self.turns: dict[str, turns.Turn] = {**turns.of_ours(state, self._expected), **self._peers}

    def measure(self, rounds: int) -> dict[str, Any]:
        """Saves and loads, every saver in each round, and each round begins with another one."""
        raw, names = RawFile(self._folder, self._state.size), list(self.turns)
        found: dict[str, Values] = {name: {} for name in names}
        disk, copied = [], []
        for turn in range(rounds):
            disk.append(raw.seconds())
            copied.append(copy_seconds(self._state.size))
            shift = turn * len(names) // rounds
            for name in names[shift:] + names[:shift]:
                directory = self._new_directory()
                for column, value in self.turns[name](directory).items():
                    found[name].setdefault(column, []).append(value)
                shutil.rmtree(directory)
                self._refill()
        written, read = zip(*disk, strict=True)
        return {"bytes": self._state.size, "raw": written, "raw read": read, "copy": copied, "savers": found}

    def measure_lost(self, rounds: int) -> dict[str, Any]:
        """Training time that a save costs, every saver in each round."""
        lost: Values = {name: [] for name in ("native", "attach", *self._peers)}
        plain = []
        for turn in range(rounds):
            for name, values in lost.items():
                directory = self._new_directory()
                if name == "native":
                    blocks = loop.native(self._state, directory, _BLOCKS)
                elif name == "attach":
                    blocks = loop.attached(self._state, directory, _BLOCKS)
                else:
                    saver = self._peers[name].saver
                    blocks = loop.with_saver(self._state, saver, 1_000 + turn * _BLOCKS, _BLOCKS)
                    for path in saver.folder.iterdir():
                        remove(path)
                values += blocks.lost()
                plain += blocks.plain
                shutil.rmtree(directory)
                self._refill()
        self._state.drop_gradients()
        return {"step": plain, "savers": lost}

    def close(self) -> None:
        """Ends everybody's threads and processes."""
        for peer in self._peers.values():
            peer.saver.close()

    def _new_directory(self) -> Path:
        self._number += 1
        return new_directory(self._folder / f"turn-{self._number}")

    def _refill(self) -> None:
        # What a turn has left in cycles holds tensors that a load has replaced since.
        gc.collect()
        if self._filled is not None:
            self._filled.fill()


def measure_size(state: State, folder: Path, plan: Plan, filled: Ballast | None) -> dict[str, Any]:
    """Ours alone, at one size: stall and time to durable in a long step, and how long an update at once must wait."""
    raw: list[float] = []
    found: Values = {"stall": [], "durable": [], "safe": []}
    for _ in range(plan.rounds):
        raw.append(RawFile(folder, state.size).seconds()[0])
        for kind, columns in {Native: ("stall", "durable"), NativeAtOnce: ("safe",)}.items():
            with kind(state, new_directory(folder / kind.__name__)) as saver:
                # The reserve grows after the first one; a second that comes at once waits for that.
                for _ in range(2 if kind is NativeAtOnce else 1):
                    save_once(saver, 0)
                _, seconds = save_once(saver, 0)
            for column in columns:
                found[column].append(seconds[column])
            shutil.rmtree(folder / kind.__name__)
            if filled is not None:
                filled.fill()
    shutil.rmtree(folder)
    return {"bytes": state.size, "raw": raw, **found}


def new_directory(folder: Path) -> Path:
    """Makes a directory, and gives it back."""
    folder.mkdir()
    return folder
