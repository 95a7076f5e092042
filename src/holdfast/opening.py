"""How a run is opened: by the one process that trains it, or by all ranks together."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, RanksError
from holdfast.ranks.channel import Channel
from holdfast.resuming import Chosen, choose
from holdfast.run.lease import Holder
from holdfast.run.run import Run
from holdfast.store import catalog

# Rank 0 verifies the checkpoint that is resumed from, which takes as long as it is large.
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Opened:
    """A run that is open, and what it goes on from."""

    run: Run
    chosen: Chosen | None


def alone(root: Path, resume: str | bool | None, layout: str, say: Callable[[str], None]) -> Opened:
    """Opens a run in the process that trains it, or in rank 0.

    Raises:
        RunBusyError: Another process trains in the directory.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """
    chosen = choose(root, resume, layout, say)
    manifest = chosen.manifest if chosen else None
    continues = chosen.continues(root) if chosen else None
    return Opened(Run.open(root, continues=continues, parent=manifest.attempt if manifest else None), chosen)


def lead(channel: Channel, root: Path, resume: str | bool | None, layout: str, say: Callable[[str], None]) -> Opened:
    """Opens a run in rank 0, and returns when all other ranks have seen the same run and the same checkpoint.

    Raises:
        RanksError: A rank does not see them.
    """
    try:
        opened = alone(root, resume, layout, say)
    except HoldfastError as error:
        channel.put("start", {"error": str(error), "hint": error.hint, "exit_code": error.exit_code})
        _wait_until_heard(channel)
        raise
    chosen, manifest = opened.chosen, opened.chosen.manifest if opened.chosen else None
    channel.put(
        "start",
        {
            "holder": asdict(opened.run.lease.holder),
            "parent": opened.run.parent,
            "checkpoint": None if chosen is None else str(chosen.path),
            "sha256": None if manifest is None else manifest.sha256,
        },
    )
    answers = [channel.get(f"ready/{rank}", _LONGEST_SECONDS) for rank in channel.others]
    problems = [answer for answer in answers if answer]
    channel.put("go", problems)
    if problems:
        _wait_until_heard(channel)
        opened.run.close("failed: ranks", 1)
        raise RanksError("\n".join(problems))
    return opened


def follow(channel: Channel, root: Path) -> Opened:
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


def _wait_until_heard(channel: Channel) -> None:
    """Rank 0 may be the one that serves the store: it does not end before the others know why."""
    for rank in channel.others:
        with suppress(RanksError):
            channel.get(f"heard/{rank}", channel.seconds)


def _same(rank: int, root: Path, told: dict[str, Any]) -> Opened:
    run = Run.join(root, Holder(**told["holder"]), told["parent"], rank)
    if told["checkpoint"] is None:
        return Opened(run, None)
    path = Path(told["checkpoint"])
    entry = catalog.read(path) if path.is_dir() else None
    seen = entry.manifest.sha256 if entry is not None and entry.manifest is not None else None
    if entry is None or seen != told["sha256"]:
        raise RanksError(
            f"rank {rank} on {socket.gethostname()} (process {os.getpid()}) does not see {path} as rank 0 sees it",
            hint="all ranks must see the same storage under the same path",
        )
    return Opened(run, Chosen(path, entry.manifest))


def _of_rank_0(told: dict[str, Any]) -> RanksError:
    error = RanksError(f"rank 0: {told['error']}", hint=told["hint"])
    error.exit_code = told["exit_code"]
    return error
