import json
import os
from pathlib import Path

import pytest

from helpers.museum import EXHIBITS
from helpers.support import ASKED, RUN, SCHEDULED, commit_checkpoint, holdfast, holdfast_begun
from holdfast.store import pins
from holdfast.store.folder import Folder


def test_checkpoints_are_listed_newest_commit_first_with_who_asked_and_the_label(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 100)
    commit_checkpoint(tmp_path, 50, reasons=(SCHEDULED, ASKED))
    commit_checkpoint(tmp_path, 100)
    (old,) = tmp_path.glob("superseded-*")
    found = holdfast("list", tmp_path)
    assert found.returncode == 0 and found.stderr == ""
    head, *rows = (line.split("  ") for line in found.stdout.splitlines())
    assert [cell.strip() for cell in head if cell] == [
        "CHECKPOINT",
        "STEP",
        "COMMIT",
        "WRITTEN (UTC)",
        "SIZE",
        "PINNED",
        "SLOT",
        "ASKED BY",
        "LABEL",
    ]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert [row[0] for row in cells] == ["checkpoint-100", "checkpoint-50", old.name]
    assert cells[1] == [
        "checkpoint-50",
        "50",
        "2",
        "2026-01-02 03:04:05",
        "34 B",
        "-",
        "-",
        "save_strategy steps, holdfast save",
        "before lr",
    ]


def test_json_describes_each(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 50, reasons=(ASKED,), parent="b" * 32)
    (tmp_path / "checkpoint-60").mkdir()
    content = json.loads(holdfast("list", tmp_path, "--json").stdout)
    assert content["run"] == str(tmp_path)
    good, torn = content["checkpoints"]
    assert set(good) == {
        "path",
        "step",
        "problem",
        "sequence",
        "term",
        "run",
        "attempt",
        "parent",
        "created",
        "bytes",
        "pinned",
        "slots",
        "reasons",
        "not_finite",
    }
    assert (good["path"], good["step"], good["problem"]) == (str(tmp_path / "checkpoint-50"), 50, None)
    assert (good["sequence"], good["run"], good["parent"], good["reasons"]) == (1, RUN, "b" * 32, [ASKED])
    assert set(torn) == {"path", "step", "problem"} and "not finished" in torn["problem"]


def test_a_run_without_checkpoints_is_no_error_and_one_that_is_not_there_is_4(tmp_path: Path) -> None:
    empty = holdfast("list", tmp_path)
    assert (empty.returncode, empty.stdout) == (0, f"no checkpoint in {tmp_path} yet\n")
    for root in (tmp_path / "missing", Path(__file__)):
        found = holdfast("list", root)
        assert found.returncode == 4 and f"there is no directory {root}" in found.stderr


def test_every_kind_of_damage_is_listed_and_nothing_breaks(tmp_path: Path) -> None:
    for number, exhibit in enumerate(EXHIBITS):
        exhibit.in_a_run(tmp_path).rename(tmp_path / f"checkpoint-{7 if exhibit.good else 100 + number}")
        for beside in ("elsewhere", "weights", "manifest", "outside"):
            if (tmp_path / beside).exists():
                (tmp_path / beside).rename(tmp_path / f"{beside}-{number}")
        if exhibit.good:
            (tmp_path / "checkpoint-7").rename(tmp_path / f"superseded-7-{number:032x}")
    found = holdfast("list", tmp_path)
    assert found.returncode == 0 and len(found.stdout.splitlines()) == 1 + len(EXHIBITS)
    assert "made by plain transformers" in found.stdout and "cut short" in found.stdout


def test_what_a_manifest_says_moves_no_cursor_and_breaks_no_line(tmp_path: Path) -> None:
    evil = {**ASKED, "why": "\x1b[2J\nfake line", "label": "\ud800", "door": "\x07"}
    commit_checkpoint(tmp_path, 7, reasons=(evil,), created="\x1b]0;title\x07")
    found = holdfast("list", tmp_path)
    assert found.returncode == 0, found.stderr
    assert all(line.isprintable() for line in found.stdout.splitlines()) and len(found.stdout.splitlines()) == 2


def test_a_label_of_letters_that_a_terminal_has_not_hides_no_checkpoint(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 7, reasons=({**ASKED, "label": "gr\u00f6\u00dfer \u2713"},))
    listed = holdfast_begun("list", tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    output, errors = listed.communicate()
    assert (listed.returncode, errors) == (0, "")
    assert r"gr\xf6\xdfer \u2713" in output


def test_who_may_not_look_at_the_pins_still_sees_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(control: Folder) -> frozenset[str]:
        raise PermissionError(13, "Permission denied", str(control / "pins"))

    commit_checkpoint(tmp_path, 7)
    (tmp_path / ".holdfast").mkdir(mode=0o700)
    monkeypatch.setattr(pins, "pinned", refused)
    assert holdfast("list", tmp_path).stdout.splitlines()[1].split()[-4] == "?"
    (one,) = json.loads(holdfast("list", tmp_path, "--json").stdout)["checkpoints"]
    assert one["pinned"] is None


def test_a_link_in_the_place_of_the_control_directory_hides_no_checkpoint(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 7)
    (tmp_path / ".holdfast").symlink_to("/tmp")
    listed = holdfast("list", tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[1].split()[-4] == "?"
