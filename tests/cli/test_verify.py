import json
import os
from pathlib import Path

import pytest

from helpers.museum import EXHIBITS, Exhibit
from helpers.support import commit_checkpoint, content_of, holdfast

WHICH = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.kind)


def test_good_checkpoints_are_exit_code_0(tmp_path: Path) -> None:
    for step in (7, 8):
        commit_checkpoint(tmp_path, step)
    found = holdfast("verify", tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "checkpoint-8: good\ncheckpoint-7: good\n"
    one = holdfast("verify", tmp_path / "checkpoint-7", "--json")
    assert one.returncode == 0
    assert json.loads(one.stdout) == {
        "checkpoints": [
            {"path": str(tmp_path / "checkpoint-7"), "step": 7, "good": True, "problems": [], "notices": []}
        ]
    }


@WHICH
def test_fault_15_16_each_kind_of_damage_is_named_with_its_exit_code(tmp_path: Path, exhibit: Exhibit) -> None:
    """`holdfast verify` on every exhibit of the museum of damage."""
    path = exhibit.in_a_run(tmp_path)
    before = content_of(tmp_path)
    found = holdfast("verify", path)
    assert found.returncode == exhibit.code and "Traceback" not in found.stderr
    verdict = {0: "good", 3: "DAMAGED"}[exhibit.code] if exhibit.kind != "foreign" else "no manifest"
    assert found.stdout.startswith(f"checkpoint-7: {verdict}\n")
    if exhibit.code == 3:
        assert found.stdout.splitlines()[1] == f"  {exhibit.problem}" or exhibit.problem in found.stdout
        assert "1 of 1 checkpoints cannot be trusted: checkpoint-7" in found.stderr
        assert "never read" not in found.stdout
    assert content_of(tmp_path) == before


def test_damage_among_good_ones_is_exit_code_3_and_names_it(tmp_path: Path) -> None:
    for exhibit in EXHIBITS:
        if exhibit.kind == "bit_flip":
            exhibit.in_a_run(tmp_path)
    commit_checkpoint(tmp_path, 8)
    found = holdfast("verify", tmp_path)
    assert found.returncode == 3 and "checkpoint-8: good" in found.stdout
    assert found.stdout.endswith("checkpoint-7: DAMAGED\n  optimizer.pt: its bytes have changed since it was written\n")
    assert "1 of 2 checkpoints cannot be trusted: checkpoint-7" in found.stderr
    as_json = holdfast("verify", tmp_path, "--json")
    assert (as_json.returncode, as_json.stderr) == (3, "")
    assert [(one["step"], one["good"]) for one in json.loads(as_json.stdout)["checkpoints"]] == [(8, True), (7, False)]


def test_what_a_callback_added_is_a_notice(tmp_path: Path) -> None:
    path = commit_checkpoint(tmp_path, 7)
    (path / "merged").mkdir()
    (path / "merged" / "model.safetensors").write_bytes(b"x")
    (path / "a\x1b[2Jb").touch()
    Path(os.fsdecode(os.fsencode(path) + b"/\xff")).touch()
    found = holdfast("verify", path)
    assert found.returncode == 0, found.stderr
    assert all(line.isprintable() for line in found.stdout.splitlines())
    assert "  merged/model.safetensors: not in the manifest, and never read" in found.stdout
    (one,) = json.loads(holdfast("verify", path, "--json").stdout)["checkpoints"]
    assert one["good"] and len(one["notices"]) == 3


def test_a_checkpoint_may_be_named_by_a_dot_a_link_or_a_name_of_ones_own(tmp_path: Path) -> None:
    path = commit_checkpoint(tmp_path, 7)
    (tmp_path / "latest").symlink_to("checkpoint-7")
    for found in (holdfast("verify", ".", cwd=path), holdfast("verify", tmp_path / "latest")):
        assert (found.returncode, found.stdout) == (0, "checkpoint-7: good\n"), found.stderr
    path.rename(tmp_path / "best")
    assert holdfast("verify", tmp_path / "best").stdout == "best: good\n"
    (tmp_path / "best").rename(tmp_path / "checkpoint-9")
    assert holdfast("verify", ".", cwd=tmp_path / "checkpoint-9").returncode == 3


def test_nothing_to_verify_is_exit_code_4(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        found = holdfast("verify", path)
        assert found.returncode == 4 and found.stdout == ""
