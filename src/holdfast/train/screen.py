"""The screen of `holdfast train`: a progress bar on a terminal, plain lines elsewhere."""

import logging
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from holdfast.run.status import Status
from holdfast.text import encodable, lines_shown


class Screen:
    """Prints lines, and keeps a progress bar below them where there is a terminal. Use it as a context manager."""

    def __init__(self) -> None:
        # Lines are data: no wrapping, no colours guessed from their content, no markup in what a user named.
        self._console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say(self, text: str) -> None:
        """Prints a line. Any thread may."""
        self._console.print(encodable(lines_shown(text), sys.stdout))

    def begin(self, step: int, max_steps: int) -> None:
        """Starts the progress bar."""
        if not self._console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=max_steps, completed=step, state="")
        self._bar.start()

    def step(self, status: Status) -> None:
        """Shows the step that was taken."""
        if self._bar is not None:
            self._bar.update(self._task, completed=status.step, state=describe(status))

    def log(self, logs: dict[str, Any], status: Status) -> None:
        """Prints what the trainer logs. The line begins as plain transformers' does, which people grep for."""
        shown = {key: _rounded(value) for key, value in logs.items()}
        self.say(str({**shown, "steps_per_second": status.rate or 0.0}))

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Goes on in silence. `| tee` dies of the Ctrl+C that is being served, and the save matters more."""
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class LogToScreen(logging.Handler):
    """Passes log records to the screen; written past it, they would land in the middle of the bar."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record's message, the empty lines around it left out."""
        if (text := record.getMessage().strip("\n")).strip():
            self._screen.say(text)


def describe(status: Status) -> str:
    """Returns the state of training in a few words: loss, rate, last checkpoint, what is pending."""
    parts = [f"loss {status.loss:.4f}"] if status.loss is not None else []
    parts += [f"{status.rate:.2f} steps/s"] if status.rate else []
    parts += [f"saved step {status.last_checkpoint['step']}"] if status.last_checkpoint else ["nothing saved yet"]
    parts += [f"{len(status.pending)} pending"] if status.pending else []
    parts += [f"{status.failed_saves} saves FAILED"] if status.failed_saves else []
    return " | ".join(parts)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
