from pathlib import Path

import pytest

from helpers.support import OTHER_RUN, RUN, commit_checkpoint, manifest
from holdfast.errors import SaveError
from holdfast.store import catalog, terms
from holdfast.store.terms import Term


@pytest.fixture
def control(tmp_path: Path) -> Path:
    (tmp_path / ".holdfast").mkdir(mode=0o700)
    return tmp_path / ".holdfast"


def term(run: str, number: int, first: int, mirror: str = "s3://bucket/run") -> Term:
    return Term(run, number, first, mirror)


def order(root: Path) -> list[tuple[int, int]]:
    """The steps of the checkpoints, the newest first, each with the term that it counts for."""
    return [(entry.step, entry.term) for entry in catalog.entries(root)]


def test_the_terms_that_were_claimed_here_are_noted_as_files_of_the_owner(control: Path) -> None:
    assert terms.claimed(control) == () == terms.claimed_in(control.parent)
    for each in (term(RUN, 3, 12), term(RUN, 1, 1), term(OTHER_RUN, 1, 4), term(RUN, 3, 12)):
        terms.note(control, each)
    expected = tuple(sorted((term(RUN, 1, 1), term(RUN, 3, 12), term(OTHER_RUN, 1, 4))))
    assert terms.claimed(control) == terms.claimed_in(control.parent) == expected
    assert (terms.last(expected, RUN), terms.last(expected, OTHER_RUN), terms.last((), RUN)) == (3, 1, 0)
    assert (terms.last(expected, RUN, "s3://bucket/run"), terms.last(expected, RUN, "s3://other")) == (3, 0)
    assert (terms.first_number(expected, RUN), terms.first_number((), RUN)) == (12, 1)
    assert {path.stat().st_mode & 0o777 for path in (control / "terms").iterdir()} == {0o600}


def test_what_is_no_term_says_nothing_nor_does_a_private_directory_of_others(control: Path) -> None:
    terms.note(control, term(RUN, 1, 1))
    for name in (f"{RUN}.01.1", f"{RUN}.1", f"{RUN}.0.1", f"{RUN}.{10**15}.1", "notes.txt"):
        (control / "terms" / name).touch()
    assert terms.claimed_in(control.parent) == (term(RUN, 1, 1),)
    control.chmod(0o777)
    assert terms.claimed_in(control.parent) == ()
    (control / "terms").rename(control / "else")
    (control / "terms").symlink_to("else")
    with pytest.raises(OSError, match=r"link|directory"):
        terms.claimed(control)


def test_of_one_run_the_greatest_term_is_the_newest_and_then_the_greatest_number(control: Path) -> None:
    """Another machine had the run in term 2, and knew nothing of the last numbers of term 1."""
    root = control.parent
    for step, term, sequence in ((10, 1, 1), (20, 1, 2), (30, 1, 3), (25, 2, 2), (15, 2, 3), (26, 3, 4)):
        commit_checkpoint(root, step, term=term, sequence=sequence)
    assert order(root) == [(26, 3), (15, 2), (25, 2), (30, 1), (20, 1), (10, 1)]


def test_what_names_no_term_counts_for_the_last_that_was_claimed_here_before_it(control: Path) -> None:
    root = control.parent
    for step, sequence in ((1, 1), (2, 2), (5, 7), (6, 9)):  # of a program that knows of no term
        commit_checkpoint(root, step, sequence=sequence)
    commit_checkpoint(root, 3, term=1, sequence=5)
    commit_checkpoint(root, 4, term=2, sequence=6)
    assert order(root) == [(4, 2), (3, 1), (6, 0), (5, 0), (2, 0), (1, 0)], "without the notes they come before all"
    terms.note(control, term(RUN, 1, 3))
    terms.note(control, term(RUN, 3, 9))
    assert order(root) == [(6, 3), (4, 2), (5, 1), (3, 1), (2, 0), (1, 0)]
    assert terms.of(manifest(sequence=9, run=OTHER_RUN), terms.claimed(control)) == 0, "the terms of another run"


def test_terms_of_several_runs_are_not_compared(control: Path) -> None:
    root = control.parent
    for step, run, term, sequence in (
        (10, OTHER_RUN, 1, 5),
        (11, OTHER_RUN, 2, 4),  # taken over, and so newer than number 5
        (20, RUN, 0, 6),
        (21, RUN, 0, 7),
    ):
        commit_checkpoint(root, step, run=run, term=term, sequence=sequence)
    assert [step for step, _ in order(root)] == [21, 20, 11, 10], "what was begun anew here is newer"
    commit_checkpoint(root, 12, run=OTHER_RUN, term=2, sequence=8)
    assert [step for step, _ in order(root)] == [12, 21, 20, 11, 10]


def test_what_is_saved_without_a_claim_does_not_come_before_what_it_goes_on_from(control: Path) -> None:
    root = control.parent
    commit_checkpoint(root, 10, term=1, sequence=9)
    commit_checkpoint(root, 11, term=2, sequence=3)
    commit_checkpoint(root, 12, run=OTHER_RUN, term=7, sequence=4)
    assert catalog.term_to_write(catalog.entries(root), (), RUN) == 2
    assert catalog.term_to_write(catalog.entries(root), (term(RUN, 3, 9),), RUN) == 3
    assert catalog.term_to_write([], (term(RUN, 3, 9),), RUN) == 3
    assert catalog.term_to_write([], (), RUN) == 0


def test_the_next_number_is_above_those_that_the_mirror_has(control: Path) -> None:
    commit_checkpoint(control.parent, 10, sequence=9)
    present = catalog.entries(control.parent)
    assert [catalog.next_sequence(present, RUN, least) for least in (1, 10, 11, 300)] == [10, 10, 11, 300]
    with pytest.raises(SaveError, match="no greater one is left"):
        catalog.next_sequence(present, RUN, 10**15)


def test_a_reader_that_knows_of_no_terms_is_refused_only_where_another_directory_had_the_run() -> None:
    claimed = [term(RUN, number, 1) for number in (1, 2, 4)] + [term(OTHER_RUN, 3, 1)]
    assert [terms.is_required(claimed, RUN, number) for number in range(6)] == [False, False, False, True, True, True]
