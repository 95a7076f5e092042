"""Release notes come from the changelog, which has a section for what is released or is about to be."""

import pytest
from tools.notes import CHANGELOG, UNRELEASED, notes, sections

import holdfast

TWO = """# Changelog

Some words.

## [Unreleased]

### Added

- Something new.

## [0.2.0] - 2026-12-01

- Slots.

## [0.1.0]
"""


def test_each_version_has_its_own_text() -> None:
    assert sections(TWO) == {"Unreleased": "### Added\n\n- Something new.", "0.2.0": "- Slots.", "0.1.0": ""}
    assert notes(TWO, "0.2.0") == "# Holdfast 0.2.0\n\n- Slots.\n"
    with pytest.raises(LookupError, match=r"no section \[0.3.0\]; it has Unreleased, 0.2.0, 0.1.0"):
        notes(TWO, "0.3.0")


@pytest.mark.parametrize("heading", ["## 0.2.0", "## [0.2.0] 2026-12-01", "## [0.2.0] - soon", "## Added"])
def test_a_heading_that_names_no_version_is_an_error(heading: str) -> None:
    with pytest.raises(ValueError, match="names no version"):
        sections(TWO.replace("## [0.1.0]", heading))


def test_the_changelog_has_notes_for_this_version_or_for_what_will_be_it() -> None:
    known = sections(CHANGELOG.read_text())
    assert known.get(holdfast.__version__) or known.get(UNRELEASED)
