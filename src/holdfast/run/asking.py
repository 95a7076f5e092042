"""A run, seen from another process: it is asked for a checkpoint, and has said how it is. Torch is not loaded."""

import threading
from pathlib import Path
from typing import Any

from holdfast.arguments import require_seconds
from holdfast.errors import HoldfastError, RunNotAliveError, SaveError
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.lease import Holder
from holdfast.run.request import Answer, Request, clean_label
from holdfast.text import one_line

_MOST_BYTES = 8 << 20  # a hundred requests wait, each with the longest label


class AskedSave:
    """A save that another process was asked for.

    Args:
        directory: Its run directory.
        holder: The process.
        request: The request.
    """

    def __init__(self, directory: RunDirectory, holder: Holder, request: Request) -> None:
        self.id = request.id
        self._directory = directory
        self._holder = holder
        self._inbox = Inbox(directory)

    @property
    def answer(self) -> Answer | None:
        """The answer to the request; None as long as that is open."""
        lease.follow(self._directory, self._holder.token)
        return self._inbox.answer_to(self.id)

    def wait(self, timeout: float | None = None) -> Answer:
        """Waits until the checkpoint is durable.

        Args:
            timeout: Seconds to wait at most; None waits as long as the run is alive.

        Raises:
            WaitTimeoutError: The time is up. The request stands.
            RunNotAliveError: The process ended before it answered.
            SaveError: The save failed, or the checkpoint's name may not survive a power cut; the message says why.
        """
        require_seconds("timeout", timeout)
        answer = self.hear(timeout)
        if problem := problem_of(answer):
            raise SaveError(problem)
        return answer

    def hear(self, timeout: float | None = None) -> Answer:
        """Waits for the answer, whatever it is.

        Raises:
            WaitTimeoutError: The time is up. The request stands.
            RunNotAliveError: The process ended before it answered.
            HoldfastError: This is the main thread of that process, which would wait for itself.
        """
        is_own = lease.is_this_process(self._holder)
        if is_own and threading.current_thread() is threading.main_thread() and self.answer is None:
            raise HoldfastError(
                "this process trains the run, and would wait for itself",
                hint="do not wait here: on_saved= hears of the checkpoint; a plain loop waits with Checkpointer.save",
            )
        return self._inbox.wait(self.id, timeout, self._require_alive_or_answered)

    def _require_alive_or_answered(self) -> None:
        lease.follow(self._directory, self._holder.token)
        try:
            require_alive(self._directory)
        except RunNotAliveError:
            if self._inbox.answer_to(self.id) is None:
                root = self._directory.root
                raise RunNotAliveError(
                    f"the run in {root} ended before it answered; the request is served when it is resumed",
                    hint=f"see what it left with: holdfast list {root}",
                ) from None


def ask(root: Path, label: bytes, *, stop: bool, why: str) -> AskedSave:
    """Asks a run for a save.

    Args:
        root: The run directory.
        label: The label, as whoever asks has written it, and of a length that is checked.
        stop: True where training is to end after it.
        why: The command or function that asks.

    Raises:
        RunNotFoundError: There is no run in `root`.
        RunNotAliveError: No process trains it.
    """
    directory = RunDirectory.open(root)
    holder = require_alive(directory)
    # Whoever asks in the process of the training ends its own loop; this is heard as a command is.
    request = Request("command", stop=stop, label=clean_label(label), why=why)
    asked = AskedSave(directory, holder, request)
    Inbox(directory).submit(request)
    return asked


def problem_of(answer: Answer) -> str:
    """Says why an answer is not that of a durable checkpoint; empty where it is."""
    if not answer.saved:
        return f"the save failed at step {answer.step}: {one_line(answer.error)}"
    return "" if answer.durable else "the file system cannot promise that the checkpoint's name survives a power cut"


def living(directory: RunDirectory) -> Holder | None:
    """Returns the process that trains a run; None where none does."""
    holder = lease.read(directory)
    return holder if holder is not None and lease.is_alive(directory, holder) else None


def require_alive(directory: RunDirectory) -> Holder:
    """Returns the process that trains a run.

    Raises:
        RunNotAliveError: None does.
    """
    if (holder := living(directory)) is None:
        raise RunNotAliveError(
            f"no process is training the run in {directory.root}",
            hint=f"see what it left with: holdfast list {directory.root}",
        )
    return holder


def said_by(directory: RunDirectory) -> dict[str, Any]:
    """Returns what a run last wrote of itself; nothing where that cannot be read."""
    content = directory.read_json(directory.status, _MOST_BYTES)
    return content if isinstance(content, dict) else {}
