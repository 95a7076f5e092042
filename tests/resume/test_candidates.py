"""Who may start with a mirror, and from what. The last test tries every story of two machines up to a length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from helpers.support import OTHER_RUN, RUN, manifest
from holdfast.errors import MirrorTakenError
from holdfast.mirror.seen import Remote, Seen
from holdfast.remote.keys import CheckpointKey
from holdfast.resume.candidates import Candidate, Start, best_of, in_order, require_allowed
from holdfast.store.catalog import Entry

A, B, C, D = (letter * 32 for letter in "abcd")


def here(term: int, sequence: int, attempt: str, run: str = RUN) -> Entry:
    path = Path("run") / f"checkpoint-{sequence}"
    known = manifest(sequence, sequence=sequence, attempt=attempt, run=run, term=term)
    return Entry(path, sequence, known, None, term=term)


def there(term: int, sequence: int, attempt: str) -> Remote:
    return Remote(CheckpointKey(RUN, term, sequence, attempt), sequence, 10, "transformers")


def seen(*published: Remote, newest: int = 1, parent: str | None = None, **changes: object) -> Seen:
    return replace(Seen(RUN, newest, "there", parent, True, published), **changes)  # type: ignore[arg-type]


def start(attempt: str | None = None, *, run: str = RUN, last: int = 0, begins: bool = False, **more: object) -> Start:
    return Start("run", "s3://bucket/run", run, begins, last, attempt, **more)  # type: ignore[arg-type]


def names(candidates: list[Candidate]) -> list[tuple[str, str]]:
    return [(each.attempt[0], "here" if each.local else "there") for each in candidates]


def test_one_order_of_what_is_here_and_there_by_term_and_number_and_here_wins() -> None:
    entries = [here(1, 12, C), here(1, 8, A), here(0, 30, D)]
    mirror = seen(there(2, 9, B), there(1, 8, A))
    assert names(in_order(entries, mirror, RUN)) == [
        ("b", "there"), ("c", "here"), ("a", "here"), ("a", "there"), ("d", "here")
    ]  # fmt: skip
    assert in_order(entries, mirror, OTHER_RUN) == []


def test_what_was_sent_under_a_later_term_than_it_was_saved_in_is_not_brought_where_it_is() -> None:
    """A start sends what the one before has left in its queue, under its own term."""
    entries, mirror = [here(1, 8, A), here(1, 7, B)], seen(there(2, 8, A))
    assert names(in_order(entries, mirror, RUN)) == [("a", "here"), ("a", "there"), ("b", "here")]


def test_what_was_sent_by_hand_from_elsewhere_is_here_where_the_mirror_has_it() -> None:
    """Its manifest has the term of whatever it went on from; sent by hand, it counts for less."""
    entries = [here(2, 12, D), here(2, 10, A)]
    mirror = seen(there(2, 11, B), there(2, 10, A), there(0, 12, D), newest=3)
    assert names(in_order(entries, mirror, RUN))[0] == ("b", "there")


def test_the_best_is_that_of_the_line_that_is_gone_on_with() -> None:
    fork, best = replace(here(1, 9, A), step=5), there(2, 9, B)._replace(step=5)
    ordered = in_order([fork], seen(there(2, 10, C), best), RUN)
    assert best_of(ordered, C, 5) == (B, best)
    assert best_of(ordered, A, 5) == (A, None), "what is newer than the one that speaks of it is not meant"
    assert best_of(ordered, C, 6) is None
    assert best_of(in_order([fork], seen(there(2, 10, C), best._replace(problem="cut")), RUN), C, 5) == (A, None)


def test_a_place_of_nobody_is_free_and_that_of_another_run_is_not() -> None:
    require_allowed(start(), Seen())
    require_allowed(start(A), Seen())
    with pytest.raises(MirrorTakenError, match=f"has the checkpoints of run {RUN}, and run those of run {OTHER_RUN}"):
        require_allowed(start(A, run=OTHER_RUN), seen())
    with pytest.raises(MirrorTakenError, match=f"of run {RUN}, and this start begins run {OTHER_RUN} anew") as raised:
        require_allowed(start(run=OTHER_RUN, begins=True), seen())
    assert raised.value.exit_code == 2 and "--resume auto" in (raised.value.hint or "")


@pytest.mark.parametrize("attempt", [None, A, D])
def test_a_start_where_the_last_one_was_may_go_on_from_whatever_it_likes(attempt: str | None) -> None:
    require_allowed(start(attempt, last=3), seen(there(3, 9, B), newest=3))
    require_allowed(start(attempt, last=4), seen(there(3, 9, B), newest=3))


def test_elsewhere_it_goes_on_from_the_newest_that_the_last_one_has_sent_or_not_at_all() -> None:
    mirror = seen(there(2, 10, C), there(2, 9, B), there(1, 8, A), newest=2, parent=A)
    for last in (0, 1):
        require_allowed(start(C, last=last), mirror)
        for attempt in (None, A, B, D):
            with pytest.raises(MirrorTakenError, match=r"there \(term 2\) .* has mirrored step 10") as raised:
                require_allowed(start(attempt, last=last), mirror)
            assert raised.value.exit_code == 2 and "--resume local" in (raised.value.hint or "")
    require_allowed(start(B, damaged={C}), mirror)
    require_allowed(start(A, damaged={C, B}), mirror)
    with pytest.raises(MirrorTakenError):
        require_allowed(start(D, damaged={C, B}), mirror)


@pytest.mark.parametrize("parent", [None, A])
def test_as_long_as_that_has_sent_nothing_it_goes_on_from_the_same_as_that(parent: str | None) -> None:
    mirror = seen(there(1, 9, B), there(1, 8, A), newest=2, parent=parent)
    require_allowed(start(parent, last=1), mirror)
    for attempt in {None, A, B} - {parent}:
        with pytest.raises(MirrorTakenError, match="has mirrored nothing yet") as raised:
            require_allowed(start(attempt, last=1, name="checkpoint-9"), mirror)
        assert "would go on from checkpoint-9" in str(raised.value)
    with pytest.raises(MirrorTakenError, match="has said nothing that can be read"):
        require_allowed(start(parent, last=1), replace(mirror, is_claim_known=False))


@dataclass(frozen=True)
class Machine:
    """A run directory, and the training in it, if any."""

    claimed: tuple[int, ...] = ()
    saved: tuple[tuple[int, int, int], ...] = ()
    """Term, number, attempt."""
    term: int = 0
    """The one that its training has claimed; 0 where none runs."""
    at: int = -1
    """The attempt that its training is at."""
    first: int = 1
    """The least number that it may give."""


@dataclass(frozen=True)
class World:
    """Two machines and a mirror. Attempts are numbers; `parents` has for each the one before it, or -1."""

    machines: tuple[Machine, Machine] = (Machine(), Machine())
    claims: tuple[int, ...] = ()
    """The parent of each term."""
    published: tuple[tuple[int, int, int], ...] = ()
    parents: tuple[int, ...] = ()
    refused: bool = False

    def line(self, attempt: int) -> set[int]:
        """An attempt and all that it goes on from."""
        line = set()
        while attempt >= 0:
            line.add(attempt)
            attempt = self.parents[attempt]
        return line

    def with_machine(self, number: int, machine: Machine) -> "World":
        machines = (machine, self.machines[1]) if number == 0 else (self.machines[0], machine)
        return replace(self, machines=machines)


def token(attempt: int) -> str:
    return f"{attempt:032x}"


def attempt_of(identity: str | None) -> int:
    return -1 if identity is None else int(identity, 16)


def started(world: World, number: int) -> Iterator[World]:
    """A start with `auto`, and, where the last one was elsewhere, ones that name a checkpoint of this disk."""
    machine = world.machines[number]
    entries = [here(term, sequence, token(attempt)) for term, sequence, attempt in machine.saved]
    newest = len(world.claims)
    parent = None if not newest or world.claims[-1] < 0 else token(world.claims[-1])
    published = sorted((there(t, s, token(a)) for t, s, a in world.published), key=lambda c: c.key, reverse=True)
    mirror = Seen(RUN if newest else None, newest, "there", parent, newest > 0, tuple(published))
    last = max(machine.claimed, default=0)
    candidates: list[Candidate | None] = [*in_order(entries, mirror, RUN)] or [None]
    for chosen in candidates:
        if chosen is not candidates[0] and (last >= newest or chosen is None or chosen.remote is not None):
            continue
        attempt = chosen.attempt if chosen else None
        try:
            require_allowed(start(attempt, last=last), mirror)
        except MirrorTakenError:
            yield replace(world, refused=True)
            continue
        saved = machine.saved
        if chosen is not None and chosen.remote is not None:
            saved += ((chosen.term, chosen.sequence, attempt_of(attempt)),)
        first = max([s for _, s, _ in (*saved, *world.published)], default=0) + 1
        claimed = Machine((*machine.claimed, newest + 1), saved, newest + 1, attempt_of(attempt), first)
        yield replace(world.with_machine(number, claimed), claims=(*world.claims, attempt_of(attempt)))


def steps(world: World) -> Iterator[World]:
    """All that can happen next."""
    for number, machine in enumerate(world.machines):
        other = world.machines[1 - number]
        if machine.term:
            number_of_it = max([machine.first, *(s + 1 for _, s, _ in machine.saved)])
            saved = (*machine.saved, (machine.term, number_of_it, len(world.parents)))
            grown = replace(machine, saved=saved, at=len(world.parents))
            yield replace(world.with_machine(number, grown), parents=(*world.parents, machine.at))
            sent = next((each for each in machine.saved if each[2] == machine.at), None)
            if sent is not None and machine.term == len(world.claims):  # otherwise it was taken over
                yield replace(world, published=tuple({*world.published, (machine.term, *sent[1:])}))
            yield world.with_machine(number, replace(machine, term=0))  # it ends, and its directory stays
        else:
            yield from started(world, number)
            yield world.with_machine(number, Machine())  # its disk is gone
            yield world.with_machine(number, replace(other, term=0, at=-1))  # a copy of the other's directory


def test_no_start_of_two_machines_leaves_out_what_was_mirrored() -> None:
    """Every story of starts, saves, uploads, ends, lost disks and copied directories, up to eight steps; and of one
    that has begun already, with a checkpoint that is mirrored and a copied directory.
    """
    begun = Machine((1,), ((1, 1, 0),), 1, 0)
    later = World((begun, replace(begun, term=0, at=-1)), (-1,), ((1, 1, 0),), (-1,))
    worlds, known, starts, refused = [World(), later], {World(), later}, 0, 0
    for _ in range(8):
        following = []
        for world in worlds:
            for after in steps(world):
                if after.refused:
                    refused += 1
                    continue
                if len(after.claims) > len(world.claims):
                    starts += 1
                    mirrored = {attempt for *_, attempt in world.published}
                    left_out = mirrored - after.line(after.claims[-1])
                    assert not left_out, f"{left_out} in {world}, after {after}"
                if after not in known:
                    known.add(after)
                    following.append(after)
        worlds = following
    assert starts > 1000 and refused > 100
