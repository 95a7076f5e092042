import re
from pathlib import Path

import pytest

import holdfast
from helpers.support import RESUMABLE, commit_checkpoint
from holdfast.errors import UnsupportedError
from holdfast.layouts.export import export
from holdfast.layouts.layout import BY_NAME, NATIVE, TRANSFORMERS

SOURCE = Path(holdfast.__file__).parent


def test_layouts_are_known_by_the_names_that_manifests_have() -> None:
    assert BY_NAME == {"native": NATIVE, "transformers": TRANSFORMERS}


def test_only_a_trainers_layout_minds_files_that_no_manifest_lists() -> None:
    unlisted = ["pytorch_model.bin", "notes.txt"]
    assert NATIVE.why_refused(unlisted) == {}
    assert TRANSFORMERS.why_refused(unlisted) == {
        "pytorch_model.bin": "it holds pytorch_model.bin, which its manifest does not list and a Trainer would read"
    }


def test_each_layout_says_what_a_resume_lacks_in_as_many_processes_as_wrote_it() -> None:
    assert NATIVE.missing(["training.json", "random.json"], 2) == ["random-00001.json"]
    whole = [path for path in RESUMABLE if path != "rng_state.pth"]
    assert TRANSFORMERS.missing([*whole, "rng_state_0.pth"], 2) == ["rng_state_1.pth"]


def test_a_layout_that_this_version_does_not_know_is_not_exported(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, {"a.json": b"{}"}, layout="of tomorrow")
    with pytest.raises(UnsupportedError, match=r"is 'of tomorrow', which this version does not know$"):
        export(checkpoint, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_nobody_compares_the_names_of_layouts_to_know_what_to_do() -> None:
    names = r"""((native|transformers|layout)\.NAME|["'](native|transformers)["'])"""
    comparing = re.compile(rf"[=!]= {names}|{names} [=!]=")
    lines = [line for path in SOURCE.rglob("*.py") for line in path.read_text().splitlines() if comparing.search(line)]
    assert lines == []
