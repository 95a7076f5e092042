"""A `Checkpointer` on a plain loop: the native layout."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from benchmarks.peers.saver import Saver
from benchmarks.states import State
from holdfast import Checkpointer

_LIMIT_SECONDS = 120
_LOOK_SECONDS = 0.0005


class Native(Saver):
    """A save at a boundary, whose next update comes only when the state has been written: a long step.

    Use it as a context manager.
    """

    title = "holdfast, native"
    package = "holdfast-torch"
    syncs = True
    every: ClassVar[int | None] = 1
    """A save at every so many boundaries; None: on demand alone."""

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._journal = Saves(folder)
        self._checkpointer = Checkpointer(
            folder,
            save_steps=self.every,
            resume=False,
            say=_silent,
            save_on_exception=False,
            model=state.saved,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
        )

    def __enter__(self) -> Self:
        self._checkpointer.__enter__()
        self._checkpointer.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.__exit__(kind, error, trace)

    def prepare(self) -> None:
        """Comes to the update before a boundary that is to be saved; the steps before it are as short as can be."""
        assert self.every is not None
        self._update()
        while (self._checkpointer.step_count + 1) % self.every:
            self._checkpointer.step()
            self._update()

    def save(self, number: int) -> Path:
        """Comes to the boundary."""
        self._journal.expect()
        self._checkpointer.step()
        return self.folder / f"checkpoint-{self._checkpointer.step_count}"

    def wait(self) -> None:
        """Waits for the commit."""
        self._journal.wait()

    def load(self, path: Path) -> None:
        """Opens the run and resumes: all that comes before a first step."""
        self._checkpointer = Checkpointer(
            path.parent,
            resume=str(path),
            say=_silent,
            model=self.state.saved,
            optimizer=self.state.optimizer,
            scheduler=self.state.scheduler,
        )
        self._checkpointer.__enter__()
        self._checkpointer.resume()

    def after_load(self) -> None:
        """Closes the run."""
        self._checkpointer.close()

    def _update(self) -> None:
        with self._checkpointer.update():
            pass


class NativeAtOnce(Native):
    """The same where the next update comes at once, as a very short step's."""

    title = "holdfast, native, update at once"
    every = 4

    def gate(self) -> None:
        """Makes an update."""
        self._update()


class NativeOnDemand(Native):
    """Saves in a real loop, which marks its boundaries."""

    every = None

    def save(self, number: int) -> Path:
        """Asks, from the training thread. The boundary that is saved may be a later one."""
        self._journal.expect()
        self._checkpointer.save()
        return self.folder

    def boundary(self) -> None:
        """The update is done."""
        self._checkpointer.step()


class Saves:
    """Waits for a run's saves as somebody outside would: by its journal.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "events.jsonl"
        self._from = 0

    def expect(self) -> None:
        """A save is about to be asked for."""
        self._from = self._size()

    def wait(self) -> None:
        """Returns when it is answered."""
        limit, seen = time.perf_counter() + _LIMIT_SECONDS, self._from
        while time.perf_counter() < limit:
            if (size := self._size()) > seen:
                seen = size
                for event in self._events():
                    if event["event"] == "saved":
                        return
                    if event["event"] == "failed":
                        raise RuntimeError(f"{self._path.parent}: {event}")
            time.sleep(_LOOK_SECONDS)
        raise TimeoutError(f"{self._path.parent}: not saved within {_LIMIT_SECONDS} s")

    def _size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_size
        return 0

    def _events(self) -> Iterator[dict[str, str]]:
        with self._path.open("rb") as file:
            file.seek(self._from)
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


def _silent(text: str) -> None:
    pass
