"""How a run is opened: by the one process that trains it, or by all ranks together."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import DamagedCheckpointError, HoldfastError, RanksError
from holdfast.ranks.channel import Channel
from holdfast.resume import choose as resuming
from holdfast.resume.choose import ResumePoint, select_checkpoint
from holdfast.run.lease import Holder
from holdfast.run.run import Run
from holdfast.store import catalog

# Verifying the checkpoint that is resumed from, and reading it, takes as long as it is large.
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Opened:
    """A run that is open, and what it goes on from."""

    run: Run
    chosen: ResumePoint | None


def open_single(root: Path, resume: str | bool | None, layout: str, say: Callable[[str], None]) -> Opened:
    """Opens a run in the process that trains it, or in rank 0.

    Raises:
        RunBusyError: Another process trains in the directory.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """
    chosen = select_checkpoint(root, resume, layout, say)
    manifest = chosen.manifest if chosen else None
    continues = chosen.continues(root) if chosen else None
    return Opened(Run.open(root, continues=continues, parent=manifest.attempt if manifest else None), chosen)


def open_rank0(
    channel: Channel, root: Path, resume: str | bool | None, layout: str, say: Callable[[str], None]
) -> Opened:
    """Opens a run in rank 0, and returns when all other ranks have seen the same run and the same checkpoint.

    Raises:
        RanksError: A rank does not see them.
    """
    try:
        opened = open_single(root, resume, layout, say)
    except HoldfastError as error:
        channel.put("start", _told_of_error(error))
        _wait_until_heard(channel)
        raise
    holder = asdict(opened.run.lease.holder)
    channel.put("start", {"holder": holder, "parent": opened.run.parent, **_told_of(opened.chosen)})
    answers = [channel.get(f"ready/{rank}", _LONGEST_SECONDS) for rank in channel.others]
    problems = [answer for answer in answers if answer]
    channel.put("go", problems)
    if problems:
        _wait_until_heard(channel)
        opened.run.close("failed: ranks", 1)
        raise RanksError("\n".join(problems))
    return opened


def open_follower(channel: Channel, root: Path) -> Opened:
    """Opens the same run in another rank.

    Raises:
        RanksError: Rank 0 could not open it, or some rank does not see it.
    """
    told = channel.get("start", _LONGEST_SECONDS)
    if "error" in told:
        channel.put(f"heard/{channel.rank}", True)
        raise _of_rank_0(told)
    problem = ""
    opened = None
    try:
        opened = _same(channel.rank, root, told)
    except HoldfastError as error:
        problem = f"{error} ({error.hint})" if error.hint else str(error)
    channel.put(f"ready/{channel.rank}", problem)
    problems = channel.get("go", _LONGEST_SECONDS)
    if problems or opened is None:
        channel.put(f"heard/{channel.rank}", True)
        raise RanksError("\n".join(problems))
    return opened


def barrier_after_read(channel: Channel | None, number: int, failure: Exception | None) -> None:
    """Returns when every rank has read its part of the checkpoint, and it is what was written.

    Args:
        channel: Between the ranks; None where there is one process.
        number: How many checkpoints were tried before.
        failure: What has become of it here.

    Raises:
        DamagedCheckpointError: What some rank read is not what was written.
        RanksError: Another rank has failed otherwise.
        Exception: The failure.
    """
    if channel is None:
        if failure is not None:
            raise failure
        return
    damaged = (failure.problems or [str(failure)]) if isinstance(failure, DamagedCheckpointError) else []
    failed = "" if failure is None or damaged else f"rank {channel.rank}: {failure}"
    answers = _told_by_all(channel, f"read/{number}", {"damaged": damaged, "failed": failed})
    if errors := [answer["failed"] for answer in answers if answer["failed"]]:
        _hear_of_the_end(channel)
        raise failure if failed and failure is not None else RanksError("\n".join(errors))
    if problems := list(dict.fromkeys(problem for answer in answers for problem in answer["damaged"])):
        raise DamagedCheckpointError("; ".join(problems), problems)


def fall_back(channel: Channel | None, number: int, take: Callable[[], ResumePoint]) -> ResumePoint:
    """Has all ranks take another checkpoint, when the one that they read is damaged.

    Args:
        channel: Between the ranks; None where there is one process.
        number: How many checkpoints were tried before.
        take: Finds the other. Rank 0 alone calls it.

    Raises:
        CheckpointError: There is no other.
        RanksError: Rank 0 has found none, or a rank does not see it.
    """
    if channel is None:
        return take()
    told: dict[str, Any] = {}
    problem, found, failure = "", None, None
    if channel.rank == 0:
        try:
            found = take()
            told = _told_of(found)
        except HoldfastError as error:
            told, failure = _told_of_error(error), error
        channel.put(f"instead/{number}", told)
    else:
        told = channel.get(f"instead/{number}", _LONGEST_SECONDS)
        try:
            found = None if "error" in told else _seen(channel.rank, told)
        except HoldfastError as error:
            problem = f"{error} ({error.hint})" if error.hint else str(error)
    problems = [answer for answer in _told_by_all(channel, f"seen/{number}", problem) if answer]
    if found is not None and not problems:
        return found
    _hear_of_the_end(channel)
    raise failure or (_of_rank_0(told) if "error" in told else RanksError("\n".join(problems)))


def _told_by_all(channel: Channel, key: str, mine: Any) -> list[Any]:
    """What each rank tells under a key, in their order."""
    channel.put(f"{key}/{channel.rank}", mine)
    if channel.rank == 0:
        channel.put(key, [channel.get(f"{key}/{rank}", _LONGEST_SECONDS) for rank in range(channel.size)])
    found: list[Any] = channel.get(key, _LONGEST_SECONDS)
    return found


def _hear_of_the_end(channel: Channel) -> None:
    if channel.rank:
        channel.put(f"heard/{channel.rank}", True)
    else:
        _wait_until_heard(channel)


def _wait_until_heard(channel: Channel) -> None:
    """Rank 0 may be the one that serves the store: it does not end before the others know why."""
    for rank in channel.others:
        with suppress(RanksError):
            channel.get(f"heard/{rank}", channel.seconds)


def _same(rank: int, root: Path, told: dict[str, Any]) -> Opened:
    run = Run.join(root, Holder(**told["holder"]), told["parent"], rank)
    return Opened(run, None if told["checkpoint"] is None else _seen(rank, told))


def _seen(rank: int, told: dict[str, Any]) -> ResumePoint:
    """The checkpoint that rank 0 has told of, as this rank sees it."""
    path = Path(told["checkpoint"])
    entry = catalog.read(path) if path.is_dir() else None
    seen = entry.manifest.sha256 if entry is not None and entry.manifest is not None else None
    if entry is None or seen != told["sha256"]:
        raise RanksError(
            f"rank {rank} on {socket.gethostname()} (process {os.getpid()}) does not see {path} as rank 0 sees it",
            hint="all ranks must see the same storage under the same path",
        )
    return ResumePoint(path, entry.manifest)


def _told_of(chosen: ResumePoint | None) -> dict[str, Any]:
    manifest = chosen.manifest if chosen is not None else None
    return {
        "checkpoint": None if chosen is None else str(chosen.path),
        "sha256": None if manifest is None else manifest.sha256,
    }


def _told_of_error(error: HoldfastError) -> dict[str, Any]:
    return {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}


def _of_rank_0(told: dict[str, Any]) -> RanksError:
    error = RanksError(f"rank 0: {told['error']}", hint=told["hint"])
    error.exit_code = told["exit_code"]
    return error


class Resumption:
    """The checkpoint that is read before training begins, in all ranks the same.

    Args:
        opened: The run, and what was chosen when it was opened.
        channel: To the other ranks; None where there are none.
        resume: What to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        say: Prints a line for the user.
    """

    def __init__(
        self,
        opened: Opened,
        channel: Channel | None,
        resume: str | bool | None,
        layout: str,
        say: Callable[[str], None],
    ) -> None:
        self._run = opened.run
        self._channel = channel
        self._resume, self._layout, self._say = resume, layout, say
        self._tried = 0
        self.chosen = opened.chosen
        """The checkpoint; None for a training that begins anew."""

    def has_read(self, failure: Exception | None) -> None:
        """Returns when all ranks have read the checkpoint. Raises what has become of it in any, the failure first."""
        barrier_after_read(self._channel, self._tried, failure)

    def fall_back(self, damaged: DamagedCheckpointError) -> ResumePoint:
        """Takes an older checkpoint, in all ranks alike, because the one that was read is damaged.

        Raises:
            CheckpointError: No other will do.
        """
        chosen, root = self.chosen, self._run.root
        assert chosen is not None
        problems = damaged.problems or [str(damaged)]
        found = fall_back(
            self._channel,
            self._tried,
            lambda: resuming.fall_back(chosen, problems, root, self._resume, self._layout, self._say),
        )
        self.chosen = found
        self._tried += 1
        if found.manifest is not None:
            self._run.go_on_from(found.manifest.attempt)
        return found
