"""Every trainer of the matrix, in the same story. `make test-trainers` runs all and writes docs/trainers.md."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
from field.rows import REFUSED, ROWS, Refused, Row
from field.story import Story
from holdfast.errors import UnsupportedError

ALL = bool(os.environ.get("HOLDFAST_TRAINERS"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_asked_signalled_killed_and_resumed_it_ends_as_if_never_interrupted(
    row: Row, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if not ALL:
        pytest.skip("make test-trainers runs it")
    if row.missing:
        pytest.skip(f"SKIPPED, NOT PASSED: {', '.join(row.missing)} not installed")
    story = Story(tmp_path, row.command, row.ranks, row.env)
    try:
        story.tell()
    finally:
        story.close()
        record_property("proved", ", ".join(story.proved))
        record_property("trainer", row.name)
        record_property("versions", row.versions)
        record_property("line", row.line)
    assert row.line in story.output


@pytest.mark.parametrize("refused", [pytest.param(each, id=each.name) for each in REFUSED])
def test_what_is_no_trainer_is_refused_in_the_words_of_the_page(refused: Refused) -> None:
    with pytest.raises(UnsupportedError) as caught:
        holdfast.attach(refused.make())
    assert str(caught.value).endswith(refused.words[0]) and refused.words[1] in str(caught.value.hint)
