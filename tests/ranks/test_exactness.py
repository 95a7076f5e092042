"""A training of several ranks that was killed and resumed ends as one that never was."""

from pathlib import Path

import pytest

from helpers.support import holdfast
from helpers.waiting import wait_until
from ranks.conftest import Ranks


@pytest.mark.parametrize(("kind", "cards"), [("ddp", ""), ("fsdp", ""), ("fsdp", "lazy")])
def test_killed_and_resumed_it_ends_with_the_same_bytes_in_every_rank(
    ranks: Ranks, tmp_path: Path, kind: str, cards: str
) -> None:
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(kind=kind).digests()
    # Rank 1 stands in an evaluation, so that the other is at its gate or in a collective: wherever the save finds it.
    job = ranks.start(kind=kind, stand=[1, 7], cards=cards)
    job.processes[1].wait_for("rank 1 stands")
    asked = holdfast("save", ranks.run, "--wait")
    assert asked.returncode == 0, asked.stdout + asked.stderr + job.output
    job.kill()
    (saved,) = ranks.saved()
    assert saved["step"] == 7
    assert ranks.manifest(7)["world_size"] == 2
    (ranks.folder / "go").touch()
    assert ranks.start(kind=kind, cards=cards, ask_every=4 if cards else 0).digests() == expected


def test_weights_that_an_evaluation_has_gathered_are_saved_as_shards(ranks: Ranks, tmp_path: Path) -> None:
    plain = Ranks(tmp_path / "plain", ranks.launcher)
    plain.folder.mkdir()
    plain.start(kind="fsdp", until=4, settings={"save_steps": 4}).digests()
    ranks.start(kind="fsdp", until=4, evaluates=True, settings={"save_steps": 4}).digests()
    compared = holdfast("diff", ranks.run / "checkpoint-4", plain.run / "checkpoint-4")
    assert "tensors: 16 the same, 0 not" in compared.stdout, compared.stdout + compared.stderr
    pieces = [one["pieces"] for one in ranks.manifest(4)["tensors"]["model"].values()]
    assert {len(each) for each in pieces} == {1, 2}, "all weights but the last bias are cut in two"


def test_what_is_alike_on_all_ranks_is_written_once_and_spread(ranks: Ranks) -> None:
    ranks.start(until=2, settings={"save_steps": 2}).digests()
    tensors = ranks.manifest(2)["tensors"]
    assert set(tensors) == {"model", "optimizer"}
    pieces = [piece for part in tensors.values() for one in part.values() for piece in one["pieces"]]
    assert all(len(one["pieces"]) == 1 for part in tensors.values() for one in part.values())
    assert len({piece["file"] for piece in pieces}) == 4, "two files of each rank"
    wait_until(lambda: holdfast("verify", ranks.run).returncode == 0)
