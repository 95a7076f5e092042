"""The start of a run that has a mirror: the newest checkpoint, here or there, and the claim of the run.

To be read from top to bottom. The run directory is this process's own by now, and nothing is saved before it ends.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from logging import Logger
from pathlib import Path

from holdfast.errors import (
    AbsentError,
    CheckpointError,
    DamagedCheckpointError,
    MirrorTakenError,
    NoCheckpointError,
    NoSpaceError,
)
from holdfast.layouts.layout import Layout
from holdfast.mirror.bringing import RESERVE_BYTES
from holdfast.mirror.calls import Calls
from holdfast.mirror.queue import Queue
from holdfast.mirror.seen import Remote, Seen
from holdfast.mirror.wanted import Wanted, WantedList
from holdfast.resume import choose
from holdfast.resume.candidates import Candidate, Start, best_of, in_order, require_allowed
from holdfast.resume.choose import ResumePoint
from holdfast.run.run import Run
from holdfast.store import catalog, files, names, pins, terms
from holdfast.store.catalog import Entry
from holdfast.store.verify import verify
from holdfast.text import quoted, shown

_MOST_NAMED = 5


class MirroredStart:
    """One start of a run that has a mirror.

    Args:
        run: The run, entered: what it goes on with is not known yet.
        calls: Its mirror.
        wanted: The checkpoint to go on from, as `resume_from_checkpoint` has it.
        layout: The layout that this training reads.
        log: Takes a line for the user.
    """

    def __init__(self, run: Run, calls: Calls, wanted: str | bool | None, layout: Layout, log: Logger) -> None:
        self._run = run
        self._new = uuid.uuid4().hex  # the run that begins, if one does
        self._calls = calls
        self._wanted = wanted
        self._layout = layout
        self._log = log
        self._claimed_before = run.catalog.claimed
        self._was_empty = all(entry.manifest is None for entry in choose.entries_in(run.root))
        self._damaged_here: set[str] = set()
        self._damaged_there: set[str] = set()
        self._pulled: set[str] = set()
        self._events: list[dict[str, object]] = []

    def go_on(self) -> ResumePoint | None:
        """Chooses what the training goes on from, claims the run, and returns the choice; None where it begins anew.

        What was mirrored between the look and the claim is looked at again: after the claim nothing comes any more.

        Raises:
            MirrorTakenError: The mirror is of another run, or another start of this one is in the way.
            MirrorError: The store does not do what it is asked for.
            CheckpointError: There is nothing that could be gone on from, and there should be.
        """
        with self._calls:
            while True:
                seen = self._look()
                point = self._choose(seen)
                if self._claim(point, seen):
                    self._bring_what_belongs_to(point, seen)
                    self._tell(point, seen)
                    return point
                if point is not None:
                    point.folder.close()

    def go_on_from_older(self, damaged: ResumePoint, problems: Sequence[str]) -> ResumePoint:
        """Chooses again, after the chosen one turned out to be damaged while it was read.

        The claim stands, and names the damaged one: that is what a start elsewhere may go on from, if it has it whole,
        until this one has sent something.

        Raises:
            NoCheckpointError: There is no other.
            DamagedCheckpointError: It was named, so that no other will do.
            MirrorError: The store does not do what it is asked for.
        """
        if not choose.takes_newest(self._wanted):
            raise choose.refused(damaged, problems)
        choose.tell_of_skipped(damaged.path, problems, self._log)
        if damaged.manifest is not None:
            self._pass_over(damaged.manifest.attempt, here=True)
        with self._calls:
            seen = self._look()
            older = self._choose(seen)
            if older is None:
                raise NoCheckpointError(f"there is no other checkpoint in {self._run.root} or {self._calls.url}")
            self._require_allowed(older, seen)
            self._bring_what_belongs_to(older, seen)
        return older

    def _look(self) -> Seen:
        """Looks at the mirror: for the run that is here, where it may go on."""
        run = _run_of(choose.entries_in(self._run.root)) if self._wanted else None
        return self._calls.look(run or self._new, self._run.lease.holder.token)

    def _claim(self, point: ResumePoint | None, seen: Seen) -> bool:
        """Claims the run; False where what was seen, and so the choice, may not be the newest any more."""
        run, token = self._run, self._run.lease.holder.token
        identity, parent = self._require_allowed(point, seen)
        run.settle(identity, parent)
        present = choose.entries_in(run.root)
        least = catalog.term_to_write(present, run.catalog.claimed, identity) + 1
        claimed = self._calls.claim(identity, token, parent, least)
        if claimed.term is not None:
            greatest = max((each.key.sequence for each in seen.published), default=0)
            first = catalog.next_sequence(present, identity, greatest + 1)
            run.claim(terms.Term(identity, claimed.term, first, self._calls.url))
        return claimed.is_current

    def _require_allowed(self, point: ResumePoint | None, seen: Seen) -> tuple[str, str | None]:
        """Refuses a choice that may not be gone on from; returns the identity of the run, and of the checkpoint."""
        attempt = point.manifest.attempt if point is not None and point.manifest is not None else None
        identity = self._identity(point, seen)
        require_allowed(self._start(identity, attempt, point.path.name if point is not None else ""), seen)
        return identity, attempt

    def _choose(self, seen: Seen) -> ResumePoint | None:
        if not choose.takes_newest(self._wanted):
            return choose.select_checkpoint(self._run.root, self._wanted, self._layout, self._log)
        entries = choose.entries_in(self._run.root)
        run = _run_of(entries) or seen.owner
        if run is not None and run != seen.owner:
            require_allowed(self._start(run, None), seen)
        for entry in entries:
            if entry.manifest is None:  # it has no place in the order either, and could be the newest
                choose.tell_of_skipped(entry.path, [_why_not_at_hand(entry)], self._log)
        refusal = passed = None
        for candidate in in_order(entries, seen, run) if run is not None else ():
            try:
                point = (
                    self._at_hand(candidate.local) if candidate.local is not None else self._brought(candidate, seen)
                )
            except MirrorTakenError as error:  # who claimed the last term saw it there, and went on from another
                refusal, passed = refusal or error, passed or candidate.remote
                continue
            if point is not None:
                assert point.manifest is not None
                if passed is not None:
                    self._log.warning(
                        f"{_name_of(passed)} in the mirror, the newest there, is left out: {shown(seen.host)}"
                        f" (term {seen.newest}) went on from {point.path.name}"
                    )
                choose.tell_of_numbers(point.path, point.manifest, entries, self._log)
                return point
        if refusal is not None:
            raise refusal
        self._require_nothing(entries, seen)
        return None

    def _at_hand(self, entry: Entry) -> ResumePoint | None:
        """Opens a checkpoint of this disk; None where it is not good, which is said."""
        assert entry.manifest is not None
        if entry.manifest.attempt in self._damaged_here:
            return None
        try:
            with choose.opening(entry.path) as folder:
                return ResumePoint(folder, choose.checked_unasked(folder, self._layout, self._log))
        except DamagedCheckpointError as error:
            choose.tell_of_skipped(entry.path, error.problems, self._log)
            self._pass_over(entry.manifest.attempt, here=True)
            return None

    def _brought(self, candidate: Candidate, seen: Seen) -> ResumePoint | None:
        """Brings a checkpoint from the mirror, and opens it; None where it is not good, which is said."""
        remote = candidate.remote
        assert remote is not None
        attempt = candidate.attempt
        if attempt in self._damaged_there:
            return None
        name = f"{_name_of(remote)} in the mirror"
        try:
            if problem := self._why_not_brought(remote):
                raise DamagedCheckpointError(problem, [problem])
            require_allowed(self._start(remote.key.run, attempt, name), seen)
            with choose.opening(self._pull(remote)) as folder:
                return ResumePoint(folder, choose.checked_unasked(folder, self._layout, self._log))
        except (AbsentError, DamagedCheckpointError) as error:
            problems = getattr(error, "problems", None) or [str(error)]
            self._log.warning(f"skipped {name}: {'; '.join(problems)}")
            self._pass_over(attempt, here=False)
            return None

    def _why_not_brought(self, remote: Remote) -> str:
        if remote.problem or remote.layout == self._layout.name:
            return remote.problem
        return f"its layout is {quoted(remote.layout)}, and this training reads {self._layout.name!r}"

    def _pull(self, remote: Remote) -> Path:
        """Brings a checkpoint into the run directory.

        Raises:
            CheckpointError: The disk does not take it.
            AbsentError: It is not there any more.
            DamagedCheckpointError: It is not what was sent.
        """
        root, what = self._run.root, f"{names.checkpoint(remote.step)} of {self._calls.url}"
        free, _ = files.free_space(self._run.folder)
        if free < remote.size + RESERVE_BYTES:
            raise CheckpointError(
                f"{what} has {remote.size:,} bytes, and {root} has {free:,} free",
                hint="make room there, or choose another output_dir",
            )
        begun = time.monotonic()
        try:
            path = self._calls.pull(remote)
        except (OSError, NoSpaceError) as error:
            raise CheckpointError(f"{what} cannot be brought to {root}: {error}", hint="is the disk full?") from error
        seconds = time.monotonic() - begun
        self._pulled.add(remote.key.attempt)
        self._damaged_here.discard(remote.key.attempt)
        self._log.info(f"pulled {what}: {remote.size:,} bytes in {seconds:.1f} s")
        self._events.append({"step": remote.step, "bytes": remote.size, "seconds": round(seconds, 3)})
        return path

    def _require_nothing(self, entries: Sequence[Entry], seen: Seen) -> None:
        """Checks that there is nothing to go on from, and that nothing must be.

        Raises:
            NoCheckpointError: There is something, or something must be.
        """
        root, url = self._run.root, self._calls.url
        if entries or seen.published:
            raise NoCheckpointError(
                f"none of the {len(entries)} checkpoints in {root} and the {len(seen.published)} in {url} can be"
                " resumed from",
                hint=f"look with: holdfast verify {root}; to start from zero all the same, choose another output_dir"
                " and another mirror",
            )
        if self._wanted is True:
            raise NoCheckpointError(
                f"there is no checkpoint in {root} or in {url} to resume from",
                hint="give 'auto': a run that has none yet then starts from zero",
            )
        self._log.info(f"no checkpoint in {root} or in {url} yet: starting from zero")

    def _identity(self, point: ResumePoint | None, seen: Seen) -> str:
        """Returns the identity of the run that goes on, or begins, with a choice."""
        if point is not None:
            return point.continues(self._run.root) or self._new
        takes_over = choose.takes_newest(self._wanted) and seen.owner is not None
        return seen.owner if takes_over and seen.owner is not None else self._new

    def _start(self, run: str, attempt: str | None, name: str = "") -> Start:
        last = terms.last(self._claimed_before, run, self._calls.url)
        begins = run == self._new and not choose.takes_newest(self._wanted)
        return Start(str(self._run.root), self._calls.url, run, begins, last, attempt, name, self._damaged_there)

    def _pass_over(self, attempt: str, *, here: bool) -> None:
        if here:
            self._damaged_here.add(attempt)
        if not here or attempt in self._pulled:  # it was good when it came; to bring it again would not end
            self._damaged_there.add(attempt)

    def _bring_what_belongs_to(self, point: ResumePoint | None, seen: Seen) -> None:
        """Brings what the next saves would not bring by themselves, as far as it is not here.

        That is a Trainer's best checkpoint, and, to a directory in which the run has saved nothing since it was
        elsewhere: the marks of what is pinned or was asked for, and what is pinned, has a label or a slot. Whatever was
        deleted here later stays so.
        """
        self._bring_best(point, seen)
        if not self._was_elsewhere(seen):
            return
        for attempt in filter(names.is_token, seen.pins):
            with suppress(OSError):
                pins.pin(self._run.directory.control, attempt)
        for attempt in filter(names.is_token, seen.asked):
            with suppress(OSError):
                pins.mark_as_asked_for(self._run.directory.control, attempt)
        self._want([r for r in seen.published if not r.problem and (r.is_named or r.key.attempt in seen.pins)])

    def _was_elsewhere(self, seen: Seen) -> bool:
        """Tells whether nothing was saved here since another directory had the run, by this start or one before it."""
        identity = self._run.identity
        mine = {term.number for term in self._claimed_before if term.run == identity}
        if terms.last(self._claimed_before, identity, self._calls.url) < seen.newest:
            return True
        return not any(e.manifest is not None and e.term in mine for e in choose.entries_in(self._run.root))

    def _bring_best(self, point: ResumePoint | None, seen: Seen) -> None:
        """Has a Trainer's best checkpoint be here, under the name by which it is looked for, if it can be."""
        if point is None or point.manifest is None or (step := choose.best_step(point)) is None:
            return
        ordered = in_order(choose.entries_in(self._run.root), seen, point.manifest.run)
        best = best_of(ordered, point.manifest.attempt, step)
        path = self._run.root / names.checkpoint(step)
        present = catalog.read(path).manifest if verify(path, full=False).good else None
        if best is None or (present is not None and present.attempt == best[0]):
            return
        attempt, remote = best
        if remote is None:
            if present is not None:
                self._log.warning(f"{path.name} is not the best so far: that is {attempt}, which has another name here")
        elif attempt not in self._damaged_there:
            try:
                self._pull(remote)  # what has the name makes way
            except (AbsentError, CheckpointError) as error:
                self._log.warning(f"{path.name}, the best so far, cannot be brought from the mirror: {error}")

    def _want(self, remotes: Sequence[Remote]) -> None:
        """Has the mirror's process bring, while training goes on, what is to stay here, each under its name."""
        entries, wanted = choose.entries_in(self._run.root), []
        present = {entry.manifest.attempt for entry in entries if entry.manifest is not None}
        for remote in remotes:
            name = names.checkpoint(remote.step)
            if remote.key.attempt in present | self._damaged_there:
                continue
            if (self._run.root / name).exists():
                self._log.warning(
                    f"{name} of the mirror (commit {remote.key.sequence}), which is to stay, is not brought: another"
                    f" has its name here; holdfast pull {self._calls.url} DIR brings it elsewhere"
                )
                continue
            wanted.append(Wanted(*remote.key, remote.step, remote.size))
        if wanted:
            steps = ", ".join(names.checkpoint(each.step) for each in wanted[:_MOST_NAMED])
            more = f" and {len(wanted) - _MOST_NAMED} more" if len(wanted) > _MOST_NAMED else ""
            self._log.info(f"brought from the mirror while training goes on, for they are to stay: {steps}{more}")
        try:
            WantedList(self._run.directory).begin(wanted)
        except OSError as error:
            self._log.warning(f"what is to stay cannot be brought from the mirror: {error}")

    def _tell(self, point: ResumePoint | None, seen: Seen) -> None:
        run = self._run
        host, url = f"{shown(seen.host)} had it" if seen.host else "it was", self._calls.url
        if seen.owner is not None and self._was_empty:
            from_where = f"step {point.manifest.step}" if point is not None and point.manifest else "zero"
            self._log.info(f"took run {run.identity} over from {url}, where {host} last: going on from {from_where}")
        elif point is not None and point.manifest is not None:
            self._tell_of_what_is_left_out(point, seen)
        run.begin()
        while self._events:
            run.journal.write("pulled", **self._events.pop(0))
        run.journal.write("claimed", mirror=url, term=run.term, before=seen.newest)

    def _tell_of_what_is_left_out(self, point: ResumePoint, seen: Seen) -> None:
        """Names and keeps the newest of what was saved here and is not gone on from, nor can be by anybody."""
        manifest, before = point.manifest, terms.last(self._claimed_before, self._run.identity, self._calls.url)
        assert manifest is not None
        own = (
            (entry, entry.manifest)
            for entry in choose.entries_in(self._run.root)
            if entry.manifest is not None and entry.manifest.run == manifest.run and entry.path != point.path
            if entry.manifest.attempt not in self._pulled
        )
        for number, (entry, other) in enumerate(own):
            is_unseen = not number and before < seen.newest and not self._was_mirrored(other.attempt, seen)
            if other.sequence > manifest.sequence or (is_unseen and other.attempt != manifest.parent):
                with suppress(OSError):  # no rule would keep it, and nobody else has it
                    pins.mark_as_asked_for(self._run.directory.control, other.attempt)
                self._log.warning(
                    f"{entry.path.name} was saved here while {shown(seen.host) or 'another start'} had the run, or"
                    f" before that and not mirrored: it is left out and stays, and {point.path.name}, which that has"
                    " mirrored, is gone on from"
                )
                return

    def _was_mirrored(self, attempt: str, seen: Seen) -> bool:
        answer = Queue(self._run.directory).answer_to(attempt)
        return any(each.key.attempt == attempt for each in seen.published) or (answer is not None and answer.mirrored)


def _run_of(entries: Sequence[Entry]) -> str | None:
    return next((entry.manifest.run for entry in entries if entry.manifest is not None and entry.doubt is None), None)


def _why_not_at_hand(entry: Entry) -> str:
    return "made by plain transformers: name it to resume from it" if entry.foreign else entry.problem or "damaged"


def _name_of(remote: Remote) -> str:
    return f"commit {remote.key.sequence}" if remote.problem else names.checkpoint(remote.step)
