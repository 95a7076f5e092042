"""Ours beside another checkout of it: each turn has the package of the one that it is of, and ratios are by round."""

from pathlib import Path

import pytest
from benchmarks import against

from helpers.full import in_full

ROOT = Path(__file__).parents[1]


# A checkout whose boundaries cost nothing.
OTHER = """
from contextlib import nullcontext
class Checkpointer:
    def __init__(self, run, **arguments): run.parent.with_name("was-here").touch()
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def resume(self): pass
    def update(self): return nullcontext()
    def step(self): pass
"""


@in_full("ratios of made-up turns")
def test_a_turn_measures_the_checkout_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "other" / "src" / "holdfast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OTHER)
    ((theirs, ours),) = against.measure([package.parent, ROOT / "src"], 1, 0.01, ["boundary"])
    assert 0 < theirs["boundary"] < ours["boundary"] < 1_000
    assert {path.name for path in tmp_path.iterdir()} == {"other", "was-here"}


def test_ratios_are_of_the_turns_of_one_round() -> None:
    measured = [[{"lost": 1.0}, {"lost": 0.5}], [{"lost": 4.0}, {"lost": 4.0}], [{"lost": 2.0}, {"lost": 1.5}]]
    line = against.tables(measured, ["lost"]).splitlines()[1]
    assert line.split() == ["training", "time", "lost,", "s", "2", "1.5", "0.75", "(0.50", "to", "1.00)"]
    measured[1][0]["lost"] = -0.1
    assert against.tables(measured, ["lost"]).endswith("less than the machine's noise")
