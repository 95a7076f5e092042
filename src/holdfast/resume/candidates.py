"""The checkpoints that a start with a mirror may go on from, here and there, in one order; and who may start.

Functions of data alone: nothing is read or asked here.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from holdfast.errors import MirrorTakenError
from holdfast.mirror.seen import Remote, Seen
from holdfast.store.catalog import Entry
from holdfast.text import shown

_WITHOUT = "to go on with what is on this disk, and leave the mirror alone: --resume local (in Python, resume='local')"


class Candidate(NamedTuple):
    """A checkpoint to go on from: on this disk, or in the mirror.

    Args:
        term: The term that it counts for.
        sequence: The number of its commit.
        attempt: Its identity.
        local: It, where it is on this disk.
        remote: It, where it is in the mirror.
    """

    term: int
    sequence: int
    attempt: str
    local: Entry | None = None
    remote: Remote | None = None

    @property
    def step(self) -> int:
        """Its step; 0 where nobody knows."""
        return self.local.step if self.local is not None else self.remote.step if self.remote is not None else 0


def in_order(entries: Sequence[Entry], seen: Seen, run: str) -> list[Candidate]:
    """Returns the candidates of a run, the newest first; of one that is here and there, here comes first.

    Args:
        entries: The catalog of the run directory, newest commit first. What has no manifest is none.
        seen: The mirror.
        run: The identity of the run.
    """
    here = [
        Candidate(entry.term, entry.manifest.sequence, entry.manifest.attempt, local=entry)
        for entry in entries
        if entry.manifest is not None and entry.manifest.run == run
    ]
    there = [
        Candidate(each.key.term, each.key.sequence, each.key.attempt, remote=each)
        for each in seen.published
        if each.key.run == run
    ]
    # The mirror says where one belongs that it has: what was sent by hand may count for less than its manifest says.
    terms: dict[str, int] = {}
    for each in there:
        terms[each.attempt] = max(each.term, terms.get(each.attempt, 0))
    both = [each._replace(term=terms.get(each.attempt, each.term)) for each in (*here, *there)]
    return sorted(both, key=lambda c: (-c.term, -c.sequence, c.attempt, c.local is None))  # stable: copies come last


def best_of(ordered: Sequence[Candidate], attempt: str, step: int) -> tuple[str, Remote | None] | None:
    """Returns the checkpoint of a step that another speaks of: its attempt, and it where the mirror has it.

    Several may be of that step: of two machines that went on from the same one each has saved one. It is the newest
    that is not newer than the one that speaks of it.

    Args:
        ordered: The candidates, as `in_order` gives them.
        attempt: The attempt of the one that speaks of it.
        step: The step.
    """
    older = ordered[next((i for i, each in enumerate(ordered) if each.attempt == attempt), len(ordered)) :]
    good = [each for each in older if each.step == step and (each.remote is None or not each.remote.problem)]
    if not good:
        return None
    best = good[0].attempt
    return best, next((each.remote for each in good if each.attempt == best and each.remote is not None), None)


class Start(NamedTuple):
    """A start that wants to claim a run, as far as it has chosen.

    Args:
        root: The run directory, for people to read.
        url: The mirror, for people to read.
        run: The identity of the run that it goes on with, or begins.
        begins: True where it begins the run, and nothing is gone on with.
        last: The last term of the run that was claimed in the run directory before this start; 0 for none.
        attempt: The checkpoint that it goes on from; None for none.
        name: That one, for people to read.
        damaged: The attempts that turned out to be damaged, here and there.
    """

    root: str
    url: str
    run: str
    begins: bool
    last: int
    attempt: str | None
    name: str = ""
    damaged: Collection[str] = ()


def require_allowed(start: Start, seen: Seen) -> None:
    """Refuses a start that another run's checkpoints, or another start of its own run, are in the way of.

    A place that belongs to none is free. One that belongs to another run is not. Of its own run a start goes on that
    was made where the last one was; or where what it goes on from is the newest that the last one has sent; or, as
    long as that has sent nothing, the same that the last one has gone on from: nothing is forked in silence.

    Raises:
        MirrorTakenError: That is so.
    """
    if seen.owner is None:
        return
    if seen.owner != start.run:
        raise _of_another_run(start, seen.owner)
    if start.last >= seen.newest:
        return
    newest = seen.newest_of(seen.newest, start.damaged)
    if newest is not None:
        if start.attempt != newest.key.attempt:
            raise _not_the_newest(start, seen, newest)
    elif not seen.is_claim_known or start.attempt != seen.parent:
        raise _not_the_same(start, seen)


def _of_another_run(start: Start, owner: str) -> MirrorTakenError:
    if start.begins:
        return MirrorTakenError(
            f"{start.url} has the checkpoints of run {owner}, and this start begins run {start.run} anew",
            hint="to go on with that run, start in an empty output_dir with resume_from_checkpoint: auto (--resume"
            " auto); to begin anew, give a mirror that no run has used",
        )
    return MirrorTakenError(
        f"{start.url} has the checkpoints of run {owner}, and {start.root} those of run {start.run}",
        hint="give each run a mirror of its own; to go on with that run, start in an empty output_dir",
    )


def _not_the_newest(start: Start, seen: Seen, newest: Remote) -> MirrorTakenError:
    return MirrorTakenError(
        f"{_last_start(seen)} has had this run since it was here last, and has mirrored step {newest.step}: this start"
        f" would go on from {start.name or 'nothing'}, and leave that out",
        hint=f"to go on from step {newest.step}, start with resume_from_checkpoint: auto and, where {start.root} has"
        f" newer ones of its own, in an empty output_dir; or give a mirror that no run has used; {_WITHOUT}",
    )


def _not_the_same(start: Start, seen: Seen) -> MirrorTakenError:
    went_on = f"from checkpoint {seen.parent}" if seen.parent else "from no checkpoint"
    how = f"went on {went_on}" if seen.is_claim_known else "has said nothing that can be read"
    return MirrorTakenError(
        f"{_last_start(seen)} has had this run since it was here last, {how}, and has mirrored nothing yet: this start"
        f" would go on from {start.name or 'nothing'}",
        hint="let that start mirror what it has, and start again; or go on from the checkpoint that it went on from:"
        f" name it; or give a mirror that no run has used; {_WITHOUT}",
    )


def _last_start(seen: Seen) -> str:
    return f"{shown(seen.host) or 'another start'} (term {seen.newest})"
