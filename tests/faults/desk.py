"""A training in a child that is asked, answers, and tells where it stands through memory alone, whatever fails."""

import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.harness import Child, forked
from helpers.loops import Loop
from helpers.waiting import wait_until
from holdfast.errors import HoldfastError

_ASKED, _ANSWERED, _STEP, _END = range(0, 32, 8)
_TEXT, _SIZE = 64, 4096


class Desk:
    """What the test and the child share. Files, which the disk may refuse, would not do."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self.child: Child | None = None

    def _get(self, place: int) -> int:
        found: int = struct.unpack_from("q", self._memory, place)[0]
        return found

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, place, value)

    @property
    def step(self) -> int:
        """The step that training has reached."""
        return self._get(_STEP)

    def reach(self, step: int) -> None:
        """Tells that training has come to a step; the child's."""
        self._set(_STEP, step)

    @property
    def is_to_end(self) -> bool:
        """Whether the test wants training to end; the child's."""
        return bool(self._get(_END))

    def begin(self) -> None:
        """Lets the child train, and waits until it does."""
        assert self.child is not None
        child = self.child
        wait_until(lambda: self.step or child.has_ended(), 60, f"a first step: {self.child.said()}")
        assert self.step, self.child.said()

    def require_progress(self, steps: int = 5) -> None:
        """Training goes on."""
        assert self.child is not None
        to = self.step + steps
        wait_until(lambda: self.step >= to, 60, f"{steps} more steps: {self.child.said()}")

    def ask(self) -> None:
        """Asks for a save."""
        self._set(_ASKED, self._get(_ASKED) + 1)

    def answered(self) -> bool:
        """Whether every save that was asked for was answered."""
        return self._get(_ANSWERED) == self._get(_ASKED)

    def answer(self) -> str:
        """Asks, if nothing is open, and waits: "saved N", or the reason why not."""
        assert self.child is not None
        if self.answered():
            self.ask()
        wait_until(self.answered, 60, f"an answer: {self.child.said()}")
        return self.said()

    def said(self) -> str:
        """The last answer."""
        return self._memory[_TEXT:].rstrip(b"\0").decode(errors="replace")

    def printed(self) -> str:
        """What the child has printed."""
        assert self.child is not None
        return self.child.said()

    def end(self) -> int:
        """Lets training end, and gives the exit code."""
        assert self.child is not None
        self._set(_END, 1)
        return self.child.wait()

    def stop(self, limit: float = 60.0) -> int:
        """Stops it by SIGTERM, and gives the exit code."""
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGTERM)
        return self.child.wait(limit)

    def trains(self, run: Path, changes: dict[str, Any]) -> None:
        """What the child does."""
        loop = Loop(run, **changes)
        with loop.ckpt:
            threading.Thread(target=self._serve, args=(loop,), daemon=True).start()
            for batch in loop.ckpt.batches(until=1_000_000):
                loop.update(batch)
                self.reach(loop.ckpt.step_count)
                if self.is_to_end:
                    break
                time.sleep(0.01)  # not to be a thousand steps further when the test looks

    def _serve(self, loop: Loop) -> None:
        while True:
            if not self.answered():
                try:
                    said = f"saved {loop.ckpt.save().wait().step}"
                except (HoldfastError, OSError) as error:
                    said = str(error)
                text = said.encode()[: _SIZE - _TEXT]
                self._memory[_TEXT:] = text.ljust(_SIZE - _TEXT, b"\0")
                self._set(_ANSWERED, self._get(_ANSWERED) + 1)
            time.sleep(0.01)


@contextmanager
def training(run: Path, output: Path, **changes: Any) -> Iterator[Desk]:
    """A training in a child, which goes on until it is told otherwise. `changes` are its `Checkpointer`'s."""
    desk = Desk()
    with forked(lambda wait: desk.trains(run, changes), output) as desk.child:
        desk.begin()
        yield desk
