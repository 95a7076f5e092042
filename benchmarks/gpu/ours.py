"""A `Checkpointer` on the loop of the tables, asked for a save from the loop."""

import contextlib
import json
from pathlib import Path
from typing import Any

from benchmarks.peers.saver import Saver
from benchmarks.states import State
from holdfast import Checkpointer
from holdfast.engine.pending_save import PendingSave

_LIMIT_SECONDS = 120.0


class Ours(Saver):
    """The native layout."""

    title = "holdfast, native"
    package = "holdfast-torch"
    syncs = True

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self.said: list[str] = []
        self._run = folder / "run"
        self._pending: PendingSave | None = None
        self._checkpointer = Checkpointer(
            self._run,
            resume=False,
            save_at_end=False,
            save_on_exception=False,
            say=self.said.append,
            model=state.saved,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
        )
        self._checkpointer.__enter__()
        self._checkpointer.resume()

    def save(self, number: int) -> Path:
        """Asks for the boundary that training is at."""
        self._pending = self._checkpointer.save()
        return self._run / f"checkpoint-{self._checkpointer.step_count}"

    def wait(self) -> None:
        """Waits for the answer."""
        assert self._pending is not None
        self._pending.wait(_LIMIT_SECONDS)

    def boundary(self) -> None:
        """The update is done."""
        self._checkpointer.step()

    def staging(self) -> dict[str, Any] | None:
        """Returns what the journal says of the staging memory; None while it is being made."""
        kept = ("bytes", "seconds", "locked", "problem", "reason")
        for event in self.events():
            if event["event"] == "staging":
                return {name: event[name] for name in kept if name in event}
        return None

    def events(self) -> list[dict[str, Any]]:
        """Returns the journal."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self._run / "events.jsonl").read_text().splitlines()]
        return []

    def status(self) -> dict[str, Any]:
        """Returns what `holdfast status` would show of how it saves."""
        now = self._checkpointer._engine.run.status.now
        names = ("capture", "staging_bytes", "writes", "held_seconds")
        return {name: getattr(now, name) for name in names}

    def close(self) -> None:
        """Ends the run."""
        self._checkpointer.close()
