"""Gradients that add up over updates, among ranks: each writes its share of them, and has it back."""

from pathlib import Path

import pytest

from ranks.conftest import Ranks


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_they_come_back_in_each_rank(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    settings = {"save_steps": 4}
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(2, kind=kind, until=8, adds_up=True, settings=settings).digests()
    job = ranks.start(2, kind=kind, until=4, adds_up=True, settings=settings)
    assert job.wait() == [0, 0], job.output
    entry = ranks.manifest(4)
    assert entry["requires"] == ["gradients"]
    files = {piece["file"] for one in entry["tensors"]["gradients"].values() for piece in one["pieces"]}
    assert len(files) == 2, "each rank writes some"
    again = ranks.start(2, kind=kind, until=8, adds_up=True, settings=settings)
    assert again.digests() == expected
