"""The checkpoints that wait for a mirror, and what became of each: files in the private directory of a run.

The thread that saves puts a checkpoint in, before it applies retention: what waits is held like a pin. The mirror's
process writes the answer, durably, and takes the checkpoint out after that. So what has an answer waits no more.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from holdfast.errors import WaitTimeoutError
from holdfast.run.directory import RunDirectory
from holdfast.store import files, names, pins
from holdfast.store.folder import Folder, status_of
from holdfast.text import quoted

Kind = Literal["scheduled", "requested", "stop"]

_ANSWERS = "mirror-answers"
# Answers are kept for askers that come back late; the oldest beyond this many go when a run starts.
_ANSWERS_KEPT = 1000
_MOST_BYTES = 64 << 10
_MOST_WORDS = 2000
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Queued:
    """A checkpoint that waits for the mirror.

    Args:
        attempt: The attempt that it is of, which stays when it is renamed.
        step: Its step.
        sequence: The number of its commit. In one directory a later one is greater.
        bytes: The size of its files.
        kind: The reason for which it was saved: a scheduled one is skipped when a later one waits.
        protected: The attempts that are needed beside it: the best one, the one that was resumed from. None where the
            disk did not show them: then any may be.
        at: The time, in seconds since the epoch.
    """

    attempt: str
    step: int
    sequence: int
    bytes: int
    kind: Kind
    protected: tuple[str, ...] | None = ()
    at: float = field(default_factory=time.time)

    def in_short(self) -> dict[str, Any]:
        """Returns what a status shows of it."""
        return {"step": self.step, "kind": self.kind, "bytes": self.bytes}


@dataclass(frozen=True)
class Answer:
    """The outcome of a checkpoint in the queue.

    Args:
        attempt: The attempt that it is of.
        step: Its step.
        sequence: The number of its commit.
        mirrored: True where a reader of the mirror finds it, whole.
        term: The term that it counts for, where `mirrored`.
        why: The reason, where not.
        bytes: The size of its files.
        seconds: From the first try to the end.
        at: The time, in seconds since the epoch.
    """

    attempt: str
    step: int
    sequence: int
    mirrored: bool
    term: int = 0
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0
    at: float = field(default_factory=time.time)

    def place(self) -> dict[str, Any]:
        """Returns what a status shows of it, where it is mirrored: its place there, and since when it is there."""
        return {
            "term": self.term,
            "sequence": self.sequence,
            "step": self.step,
            "attempt": self.attempt,
            "at": self.at,
        }


class Queue:
    """The queue of one run. Several processes may hold it.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def put(self, queued: Queued) -> None:
        """Puts a checkpoint in, durably; one that is in it already has its words replaced.

        Raises:
            OSError: The disk does not take it.
        """
        control = self._directory.control
        for name in (pins.QUEUE, _ANSWERS):
            with suppress(FileExistsError):
                files.make_directory(control / name)
        files.sync_directory(control)
        with suppress(FileNotFoundError), Folder.open(control / _ANSWERS) as answers:
            files.remove(answers / queued.attempt)
        with Folder.open(control / pins.QUEUE) as folder:
            files.replace(folder / queued.attempt, json.dumps(asdict(queued)).encode())

    def waiting(self) -> list[Queued]:
        """Returns what waits, in the order of commits. What cannot be understood is taken out."""
        waiting = []
        for attempt in sorted(pins.queued(self._directory.control)):
            if self.answer_to(attempt) is not None:
                self._take_out(attempt)  # a crash came in between, or the control directory was made anew
            elif (queued := self._read(attempt)) is not None:
                waiting.append(queued)
        return sorted(waiting, key=lambda each: (each.sequence, each.at))

    def answer(self, answer: Answer) -> bool:
        """Answers a checkpoint, and takes it out; False where it waits no more, because somebody else has answered.

        Raises:
            OSError: The disk does not take it.
        """
        control = self._directory.control
        if answer.attempt not in pins.queued(control):
            return False
        content = {**asdict(answer), "why": answer.why[:_MOST_WORDS]}
        with Folder.open(control / _ANSWERS) as folder:
            files.replace(folder / answer.attempt, json.dumps(content).encode())
        self._take_out(answer.attempt)
        return True

    def refuse(self, queued: Queued, why: str) -> bool:
        """Answers that a checkpoint is not mirrored; False where it waits no more."""
        return self.answer(
            Answer(queued.attempt, queued.step, queued.sequence, mirrored=False, why=why, bytes=queued.bytes)
        )

    def drop(self, queued: Queued, why: str) -> None:
        """Takes a checkpoint out for want of room, with an answer where there is room for one."""
        try:
            self.refuse(queued, why)
        except OSError:
            self._take_out(queued.attempt)

    def answer_to(self, attempt: str) -> Answer | None:
        """Returns the answer to a checkpoint; None where there is none (yet)."""
        try:
            with Folder.open(self._directory.control / _ANSWERS) as folder:
                content = _object(files.read(folder / attempt, limit=_MOST_BYTES))
            kinds = {"attempt": str, "step": int, "sequence": int, "mirrored": bool, "term": int, "why": str}
            answer = Answer(**_checked(content, kinds | {"bytes": int, "seconds": (int, float), "at": (int, float)}))
        except (OSError, ValueError):
            return None
        return answer if answer.attempt == attempt else None

    def answers(self) -> list[Answer]:
        """Returns all answers that are kept."""
        try:
            with Folder.open(self._directory.control / _ANSWERS) as folder:
                attempts = folder.names()
        except OSError:
            return []
        return [answer for attempt in attempts if (answer := self.answer_to(attempt)) is not None]

    def wait(self, attempt: str, timeout: float | None, check: Callable[[], None]) -> Answer | None:
        """Waits for the answer to a checkpoint.

        Args:
            attempt: The attempt that it is of.
            timeout: Seconds to wait at most; None waits as long as `check` lets it.
            check: Called between looks; raises when there is nothing to wait for any more.

        Returns:
            The answer; None where the checkpoint does not wait, and has no answer.

        Raises:
            WaitTimeoutError: The time is up.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            waits = attempt in pins.queued(self._directory.control)  # before the answer, which comes first
            if (answer := self.answer_to(attempt)) is not None or not waits:
                return answer
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    "the checkpoint is durable on this disk, and was not mirrored in time: it is still being tried",
                    hint=f"look at: holdfast status {self._directory.root}",
                )
            check()
            time.sleep(_POLL_SECONDS)

    def give_up(self, why: str) -> list[Queued]:
        """Answers all that waits that it is not mirrored: nobody will send it. Returns what that was."""
        return [queued for queued in self.waiting() if self.refuse(queued, why)]

    def forget_old_answers(self) -> None:
        """Removes the oldest answers beyond a thousand."""
        with suppress(OSError), Folder.open(self._directory.control / _ANSWERS) as folder:
            by_age = sorted(folder.names(), key=lambda name: status_of(folder / name).st_mtime)
            for name in by_age[:-_ANSWERS_KEPT]:
                files.remove(folder / name)

    def _read(self, attempt: str) -> Queued | None:
        try:
            with Folder.open(self._directory.control / pins.QUEUE) as folder:
                content = _object(files.read(folder / attempt, limit=_MOST_BYTES))
            kinds = {"attempt": str, "step": int, "sequence": int, "bytes": int, "kind": str}
            content = _checked(content, kinds | {"protected": (list, type(None)), "at": (int, float)})
            needed = content["protected"]
            protected = None if needed is None else tuple(filter(names.is_token, map(str, needed)))
            if content["kind"] not in get_args(Kind) or content["attempt"] != attempt:
                raise ValueError(f"its kind is {quoted(content['kind'])}, and its attempt {quoted(content['attempt'])}")
        except OSError:
            return None  # it has just been answered, or the disk fails
        except ValueError:
            self._take_out(attempt)
            return None
        return Queued(**{**content, "protected": protected})

    def _take_out(self, attempt: str) -> None:
        with suppress(FileNotFoundError), Folder.open(self._directory.control / pins.QUEUE) as folder:
            files.remove(folder / attempt)


def _object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _checked(content: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    if set(content) != set(kinds):
        raise ValueError("it has other fields than it should have")
    for key, kind in kinds.items():
        if not isinstance(content[key], kind) or (kind is not bool and isinstance(content[key], bool)):
            raise ValueError(f"its {key} is of the wrong kind")
    return content
