"""The opening of a run and of the checkpoint that it goes on from, in one process or in all ranks together.

To be read from top to bottom: a run is opened; its checkpoint is read elsewhere, by every rank; if it turns out to be
damaged, all fall back to the same older one.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from logging import Logger
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.arguments import LOCAL
from holdfast.errors import (
    FAILED,
    DamagedCheckpointError,
    HoldfastError,
    RanksError,
    RunNotFoundError,
    exit_code_of,
)
from holdfast.layouts.layout import Layout
from holdfast.mirror.calls import Calls
from holdfast.ranks.channel import Channel
from holdfast.remote.apart import require_apart, shares_disk
from holdfast.remote.location import location_of
from holdfast.resume.choose import ResumePoint, entries_in, opening, select_checkpoint, select_older
from holdfast.resume.mirrored import MirroredStart
from holdfast.resume.waiting import ALIVE, Waiting
from holdfast.run.directory import RunDirectory
from holdfast.run.lease import Holder
from holdfast.run.needed import identity_of
from holdfast.run.run import Run
from holdfast.settings import WITHOUT_MIRROR, SaveSettings
from holdfast.store import catalog

# Verifying the checkpoint that is resumed from, and reading it, takes as long as it is large.
_LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 1.0

SelectOlder = Callable[[ResumePoint, Sequence[str]], ResumePoint]
"""Selects another checkpoint, from the damaged one and its problems."""


class Wish(NamedTuple):
    """A start, as its user gave it.

    Args:
        root: The run directory.
        wanted: The checkpoint to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        log: Takes a line for the user.
        settings: The settings of its saves, its mirror among them.
    """

    root: Path
    wanted: str | bool | None
    layout: Layout
    log: Logger
    settings: SaveSettings


def open_run(channel: Channel | None, wish: Wish) -> "Resumption":
    """Opens a run in each process that trains it.

    Args:
        channel: Between the ranks; None where there is one process.
        wish: The start. Rank 0's counts.

    Raises:
        RunBusyError: Another process trains in the directory.
        NoCheckpointError: `wanted` names something that cannot be resumed from.
        MirrorError: The mirror cannot be used, or is of another run.
        RanksError: A rank does not see the same run and the same checkpoint as rank 0, or rank 0 could open none.
    """
    if channel is None:
        return open_single(wish)
    if channel.rank == 0:
        return open_rank0(channel, wish)
    return open_follower(channel, wish.root, wish.log)


def open_single(wish: Wish, channel: Channel | None = None) -> "Resumption":
    """Opens a run in the only process that trains it, or in rank 0, which does not tell the others yet."""
    root, wanted, layout, log, settings = wish
    if settings.mirror is not None and wanted != LOCAL:
        return _open_mirrored(wish, settings.mirror, channel)
    if settings.mirror is None:
        _tell_of_what_means_nothing(settings, log)
    point = select_checkpoint(root, wanted, layout, log)
    manifest = point.manifest if point else None
    continues = point.continues(root) if point else None
    run = Run.open(root, continues=continues, parent=manifest.attempt if manifest else None, log=log)
    if settings.mirror is not None:
        log.warning(
            f"the mirror {settings.mirror} is left alone by this start: what another machine has saved there is not"
            f" looked at, and nothing is sent there; holdfast push {root} sends it"
        )
    return Resumption(
        run, point, channel, lambda damaged, problems: select_older(damaged, problems, root, wanted, layout, log)
    )


def _tell_of_what_means_nothing(settings: SaveSettings, log: Logger) -> None:
    """Names the settings of a mirror where there is none."""
    if changed := [name for name, default in WITHOUT_MIRROR.items() if getattr(settings, name) != default]:
        log.warning(f"{', '.join(changed)}: without mirror: nothing is mirrored, and this has no meaning")


def _last_here(root: Path) -> str | None:
    """Returns the run that was trained here last: one that is refused is still that; None where there was none."""
    try:
        return identity_of(RunDirectory.open(root), entries_in(root)) or None
    except RunNotFoundError:
        return None


def _open_mirrored(wish: Wish, url: str, channel: Channel | None) -> "Resumption":
    """Opens a run that has a mirror, where what it goes on from may lie there, and claims it."""
    root, wanted, layout, log, settings = wish
    location, endpoint = location_of(url), settings.mirror_endpoint
    url = location.url
    require_apart(location, root)
    run = Run.enter(root, continues=_last_here(root), log=log)
    if shares_disk(location, root):
        log.warning(f"the mirror {url} is on the same file system as {root}: what takes one takes both")
    try:
        waiting = Waiting(run, channel, log)
        calls = Calls(url, endpoint, settings.mirror_region, run.folder, waiting.show)
        start = MirroredStart(run, calls, wanted, layout, log)
        point = start.go_on()
        waiting.end()
    except BaseException as error:
        run.close(f"failed: {type(error).__name__}", _code_of(error))
        run.let_go()
        raise
    return Resumption(run, point, channel, start.go_on_from_older)


def open_rank0(channel: Channel, wish: Wish) -> "Resumption":
    """Opens a run in rank 0, and returns when all other ranks have seen the same run and the same checkpoint."""
    try:
        opened = open_single(wish, channel)
    except HoldfastError as error:
        channel.put("start", _error_message(error))
        _wait_until_heard(channel)
        raise
    holder = asdict(opened.run.lease.holder)
    words = {"holder": holder, "parent": opened.run.parent, "term": opened.run.term}
    channel.put("start", {**words, **_point_message(opened.chosen)})
    answers = [channel.get(f"ready/{rank}", _LONGEST_SECONDS) for rank in channel.others]
    problems = [answer for answer in answers if answer]
    channel.put("go", problems)
    if problems:
        _wait_until_heard(channel)
        opened.run.close("failed: ranks", 1)
        raise RanksError("\n".join(problems))
    return opened


def open_follower(channel: Channel, root: Path, log: Logger) -> "Resumption":
    """Opens the run that rank 0 has opened in another rank."""
    start = _from_rank0(channel, "start")
    if "error" in start:
        channel.put(f"heard/{channel.rank}", True)
        raise _error_of_rank0(start)
    problem = ""
    opened = None
    try:
        run = Run.join(root, Holder(**start["holder"]), start["parent"], channel.rank, log)
        run.term = start["term"]
        point = None if start["checkpoint"] is None else _seen_here(channel.rank, start)
        opened = Resumption(run, point, channel)
    except HoldfastError as error:
        problem = _with_hint(error)
    channel.put(f"ready/{channel.rank}", problem)
    problems = channel.get("go", _LONGEST_SECONDS)
    if problems or opened is None:
        channel.put(f"heard/{channel.rank}", True)
        raise RanksError("\n".join(problems))
    return opened


class Resumption:
    """An open run, and the checkpoint that its training goes on from: in all ranks the same.

    Args:
        run: The run, open.
        chosen: The checkpoint; None for a training that begins anew.
        channel: To the other ranks; None where there are none.
        select: Selects an older checkpoint; None in a rank that follows rank 0.
    """

    def __init__(
        self, run: Run, chosen: ResumePoint | None, channel: Channel | None, select: SelectOlder | None = None
    ) -> None:
        self.run = run
        self.chosen = chosen
        """The checkpoint as of now; None for a training that begins anew."""
        self._channel = channel
        self._select = select
        self._tried = 0

    def barrier_after_read(self, failure: Exception | None) -> None:
        """Returns when every rank has read its part of the checkpoint, and it is what was written.

        Args:
            failure: The error that the reading ended with in this rank, if any.

        Raises:
            DamagedCheckpointError: Some rank read other bytes than were written.
            RanksError: Another rank has failed otherwise.
            Exception: The failure.
        """
        channel = self._channel
        if channel is None:
            if failure is not None:
                raise failure
            return
        damaged = (failure.problems or [str(failure)]) if isinstance(failure, DamagedCheckpointError) else []
        failed = "" if failure is None or damaged else f"rank {channel.rank}: {failure}"
        answers = _all_gather(channel, f"read/{self._tried}", {"damaged": damaged, "failed": failed})
        if errors := [answer["failed"] for answer in answers if answer["failed"]]:
            _end_together(channel)
            raise failure if failed and failure is not None else RanksError("\n".join(errors))
        if problems := list(dict.fromkeys(problem for answer in answers for problem in answer["damaged"])):
            raise DamagedCheckpointError("; ".join(problems), problems)

    def close(self) -> None:
        """Lets go of the checkpoint's directory: nothing is read from it any more."""
        if self.chosen is not None:
            self.chosen.folder.close()

    def fall_back(self, damaged: DamagedCheckpointError) -> ResumePoint:
        """Takes an older checkpoint, in all ranks alike, because the one that was read is damaged.

        Raises:
            CheckpointError: No other will do.
            RanksError: Rank 0 has none, or a rank does not see it.
        """
        problems = damaged.problems or [str(damaged)]
        older = self._select_older(problems) if self._channel is None else self._agree_on_older(self._channel, problems)
        self.close()
        self.chosen = older
        self._tried += 1
        if older.manifest is not None:
            self.run.go_on_from(older.manifest.attempt)
        return older

    def _select_older(self, problems: Sequence[str]) -> ResumePoint:
        assert self.chosen is not None and self._select is not None
        return self._select(self.chosen, problems)

    def _agree_on_older(self, channel: Channel, problems: Sequence[str]) -> ResumePoint:
        """Has rank 0 select an older checkpoint, and returns it when every rank sees it."""
        message: dict[str, Any] = {}
        unseen, older, failure = "", None, None
        if channel.rank == 0:
            try:
                older = self._select_older(problems)
                message = _point_message(older)
            except HoldfastError as error:
                message, failure = _error_message(error), error
            channel.put(f"instead/{self._tried}", message)
        else:
            message = _from_rank0(channel, f"instead/{self._tried}")
            try:
                older = None if "error" in message else _seen_here(channel.rank, message)
            except HoldfastError as error:
                unseen = _with_hint(error)
        refusals = [answer for answer in _all_gather(channel, f"seen/{self._tried}", unseen) if answer]
        if older is not None and not refusals:
            return older
        _end_together(channel)
        raise failure or (_error_of_rank0(message) if "error" in message else RanksError("\n".join(refusals)))


def _from_rank0(channel: Channel, key: str) -> Any:
    """Waits for what rank 0 chooses: as long as it makes progress, in no collective, for a pull has no limit.

    Raises:
        RanksError: It has made none for too long, or the store is gone.
    """
    seen, since, looked = None, time.monotonic(), 0.0

    def check() -> None:
        nonlocal seen, since, looked
        if (now := time.monotonic()) - looked < _LOOK_SECONDS:
            return
        looked, alive = now, channel.all([ALIVE]) if channel.all_there([ALIVE]) else None
        if alive != seen:
            seen, since = alive, now
        if now - since > _LONGEST_SECONDS:
            channel.get(key, 0.0)  # says who waited for what, in vain

    return channel.wait_for_all([key], check)[0]


def _all_gather(channel: Channel, key: str, own: Any) -> list[Any]:
    """Returns the value that each rank gave under a key, in their order."""
    channel.put(f"{key}/{channel.rank}", own)
    if channel.rank == 0:
        channel.put(key, [channel.get(f"{key}/{rank}", _LONGEST_SECONDS) for rank in range(channel.size)])
    values: list[Any] = channel.get(key, _LONGEST_SECONDS)
    return values


def _end_together(channel: Channel) -> None:
    if channel.rank:
        channel.put(f"heard/{channel.rank}", True)
    else:
        _wait_until_heard(channel)


def _wait_until_heard(channel: Channel) -> None:
    """Keeps rank 0, which may be the one that serves the store, from ending before the others know why."""
    for rank in channel.others:
        with suppress(RanksError):
            channel.get(f"heard/{rank}", channel.seconds)


def _seen_here(rank: int, message: dict[str, Any]) -> ResumePoint:
    """Opens the checkpoint that rank 0 has chosen, in another rank, and proves that it is the same one.

    Raises:
        RanksError: This rank sees none under that path, or another.
    """
    try:
        with opening(Path(message["checkpoint"])) as folder:
            point = ResumePoint(folder, catalog.read(folder).manifest)
            why = _why_another(_point_message(point), message)
    except DamagedCheckpointError as error:
        why = "; ".join(error.problems)
    if why:
        raise RanksError(
            f"rank {rank} on {socket.gethostname()} (process {os.getpid()}) does not see {message['checkpoint']} as"
            f" rank 0 sees it: {why}",
            hint="all ranks must see the same storage under the same path, and nobody may exchange a checkpoint there",
        )
    return point


def _why_another(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Says in which way the checkpoint of this rank is not that of rank 0; empty where it is the same."""
    if ours["sha256"] != theirs["sha256"]:
        return f"its manifest is {ours['sha256'] or 'missing'} here and {theirs['sha256'] or 'missing'} there"
    # Rank 0 holds it open, so that no other has its number; on another host the same directory may have another.
    if ours["host"] == theirs["host"] and ours["inode"] != theirs["inode"]:
        return f"it is another directory of the same manifest, {ours['inode']} here and {theirs['inode']} there"
    return f"here it is {ours['doubt']}" if ours["doubt"] and not theirs["doubt"] else ""


def _point_message(point: ResumePoint | None) -> dict[str, Any]:
    if point is None:
        return {"checkpoint": None}
    return {
        "checkpoint": str(point.path),
        "sha256": None if point.manifest is None else point.manifest.sha256,
        "host": socket.gethostname(),
        "inode": point.folder.status().st_ino,
        "doubt": catalog.doubt_of(point.folder),
    }


def _code_of(error: BaseException) -> int:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return exit_code_of(error)
    return error.exit_code if isinstance(error, HoldfastError) else FAILED


def _error_message(error: HoldfastError) -> dict[str, Any]:
    return {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}


def _error_of_rank0(message: dict[str, Any]) -> RanksError:
    error = RanksError(f"rank 0: {message['error']}", hint=message["hint"])
    error.exit_code = message["exit_code"]
    return error


def _with_hint(error: HoldfastError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
