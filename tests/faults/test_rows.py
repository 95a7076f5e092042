"""Every fault and every threat has a test or a reason, and the page tells of nothing that is gone."""

from pathlib import Path

import pytest

from faults.rows import ROWS, TESTS, outcome_of, proofs, rows_of

PAGE = TESTS.parent / "docs" / "faults.md"


def test_all_faults_and_threats_are_counted() -> None:
    numbers = [*(f"{number:02}" for number in range(1, 54)), *(f"S{number:02}" for number in range(1, 21))]
    assert list(ROWS)[: len(numbers)] == numbers and list(ROWS)[len(numbers) :] == sorted(set(ROWS) - set(numbers))


@pytest.mark.parametrize("number", ROWS)
def test_each_has_a_test_or_says_why_not(number: str) -> None:
    assert ROWS[number].limit or any(number in proof.rows for proof in proofs()), ROWS[number].what


def test_each_proof_names_rows_that_there_are_says_how_and_has_a_name_of_its_own() -> None:
    assert len(proofs()) > 40
    for proof in proofs():
        assert set(proof.rows) <= set(ROWS), proof.name
        assert len(proof.how) > 10 and proof.how.endswith("."), f"{proof.name}: its docstring says how it injects"
    names = [proof.name for proof in proofs()]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_a_name_tells_its_rows_and_its_outcome() -> None:
    name = "test_fault_37_38_the_others_train_on"
    assert (rows_of(name), outcome_of(name)) == (("37", "38"), "the others train on")
    assert rows_of("test_security_s04_s16_it_is_refused") == ("S04", "S16")
    assert rows_of("test_fault_27_security_s07_s09_it_is_left_alone") == ("27", "S07", "S09")
    assert rows_of("test_faults_are_counted") == () == rows_of("test_fault_7_is_none")


def test_the_page_has_every_row_and_no_test_that_is_gone() -> None:
    written = Path(PAGE).read_text()
    for number, row in ROWS.items():
        assert f"| {number} | {row.what} |" in written, f"make test-faults writes {PAGE.name} anew"
    outcomes = {proof.outcome for proof in proofs()}
    told = [line.split(" | ")[3] for line in written.splitlines() if line.startswith("| ") and line.count(" | ") == 5]
    stale = [outcome for outcome in told if outcome not in outcomes | {"what holds then"}]
    assert not stale, f"make test-faults writes {PAGE.name} anew: {stale}"
