from pathlib import Path

import pytest

from fixtures import make_damaged
from helpers.museum import DAMAGED, EXHIBITS, Exhibit
from helpers.support import content_of
from holdfast.store import catalog
from holdfast.store.verify import verify


def test_the_museum_is_what_its_script_makes(tmp_path: Path) -> None:
    make_damaged.make(tmp_path)
    assert content_of(tmp_path) == content_of(DAMAGED)
    assert sorted(exhibit.kind for exhibit in EXHIBITS) == sorted(path.name for path in DAMAGED.iterdir())


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.kind)
def test_fault_15_16_security_s04_every_kind_of_damage_is_found_and_named(exhibit: Exhibit) -> None:
    """A committed checkpoint of each kind of damage: bits, files, names, links, versions, and manifests that lie."""
    report = verify(DAMAGED / exhibit.kind / "checkpoint-7")
    assert report.good == exhibit.good
    if not exhibit.good and not report.entry.foreign:
        assert len(report.problems) == 1 and exhibit.problem in report.problems[0]


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.kind)
def test_every_kind_of_damage_is_listed_and_nothing_breaks(exhibit: Exhibit) -> None:
    (entry,) = catalog.entries(DAMAGED / exhibit.kind)
    assert (entry.path.name, entry.step) == ("checkpoint-7", 7)
    assert entry.foreign == (exhibit.kind == "foreign")


def test_the_script_makes_a_good_checkpoint_when_it_does_no_damage(tmp_path: Path) -> None:
    make_damaged.whole(tmp_path / "checkpoint-7")
    assert verify(tmp_path / "checkpoint-7").good
