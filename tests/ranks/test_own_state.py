"""State that differs between ranks: it comes back to each, and another number of ranks is told what it cannot have."""

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.support import holdfast
from ranks.conftest import Job, Ranks


def told(job: Job, what: str) -> list[str]:
    """What all ranks told, in the order of ranks."""
    return [line for process in job.processes for line in re.findall(rf"rank \d {what} .*", process.output)]


def of_its_own(job: Job, when: str) -> list[str]:
    return [line.replace(when, "") for line in told(job, f"{when} (?:owning|queueing)")]


def resumed_as_one(ranks: Ranks, tmp_path: Path, size: int, until: int = 6, **orders: Any) -> Job:
    """Trains in one go, and again in two parts, which end alike; returns the first part."""
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(size, until=until, **orders)
    ends = expected.digests()
    first = ranks.start(size, until=until // 2, settings={"save_steps": until // 2}, **orders)
    assert first.wait() == [0] * size, first.output
    second = ranks.start(size, until=until, **orders)
    assert second.digests() == ends, second.output
    assert of_its_own(second, "begins") == of_its_own(first, "leaves")
    assert of_its_own(second, "leaves") == of_its_own(expected, "leaves")
    return first


def test_slices_of_an_optimizers_state_and_the_queues_of_some_ranks_come_back_to_each(
    ranks: Ranks, tmp_path: Path
) -> None:
    """Of three ranks, two have empty slices of the last layer, and another no queue.

    Not under DDP: of more than two ranks it adds gradients up in another order in its first step than later.
    """
    first = resumed_as_one(ranks, tmp_path, 3, kind="apart", optimizer="slices", queues=[1, 2])
    (line,) = re.findall(r"^.* between the ranks: .*", first.output, re.M)
    assert re.match(r"optimizer\.model\.0\.bias/momentum, .* and \d more differ between the ranks: each saves", line)
    assert ranks.manifest(3)["requires"] == ["own_objects", "own_optimizers"]
    files = {file["path"] for file in ranks.manifest(3)["files"]}
    assert {"queue.own-00001.json", "queue.own-00002.json", "queue.own-00001.safetensors"} <= files
    assert not files & {"queue.json", "queue.own-00000.json"}


def test_models_that_nobody_makes_alike_come_back_to_each_and_are_no_other_number_of_ranks(
    ranks: Ranks, tmp_path: Path
) -> None:
    resumed_as_one(ranks, tmp_path, 2, kind="apart", queues=[0, 1])
    assert ranks.manifest(3)["requires"] == ["own_models", "own_objects", "own_optimizers"]
    alone = ranks.start(1, kind="alone", queues=[0], until=9)
    assert alone.wait() == [1]
    assert "was saved by 2 processes, each with its own of what follows, and 1 go on:" in alone.output
    assert re.search(r"^  model\.0\.weight$", alone.output, re.M)
    assert re.search(r"^  optimizer\.model\.0\.weight/exp_avg$", alone.output, re.M)
    exported = holdfast("export", ranks.run / "checkpoint-3", tmp_path / "weights")
    assert (
        exported.returncode
        and "no one model: '0.bias' and 3 more of its tensors differ" in exported.stdout + exported.stderr
    )


@pytest.mark.parametrize(("optimizer", "count"), [("whole states", 8), ("zero", 12)])
def test_state_that_one_rank_has_whole_is_shared_out_by_name(
    ranks: Ranks, tmp_path: Path, optimizer: str, count: int
) -> None:
    first = resumed_as_one(ranks, tmp_path, 2, optimizer=optimizer)
    left = {line.partition(" owning ")[2] for line in told(first, "leaves owning")}
    for size, kind in ((3, "ddp"), (1, "ddp")):
        settings = {"resume": str(ranks.run / "checkpoint-3")}
        job = ranks.start(size, kind=kind, optimizer=optimizer, until=4, settings=settings)
        assert job.wait() == [0] * size, job.output
        begun = {line.partition(" owning ")[2] for line in told(job, "begins owning")}
        assert len(begun) == count and begun == left


def test_slices_cannot_be_shared_out_and_a_queue_is_rank_0s_for_who_wants_that(ranks: Ranks) -> None:
    first = ranks.start(2, kind="fsdp", queues=[0, 1], until=3, settings={"save_steps": 3})
    assert first.wait() == [0, 0], first.output
    assert ranks.manifest(3)["requires"] == ["own_objects"]
    again = ranks.start(2, kind="fsdp", queues=[0, 1], until=3)
    assert again.wait() == [0, 0], again.output
    refused = ranks.start(1, kind="alone", queues=[0], until=4)
    assert refused.wait() == [1]
    line = "queue: each of the 2 processes that saved it had its own; another number of them takes rank 0's"
    assert line in refused.output
    taken = ranks.start(1, kind="alone", queues=[0], until=4, settings={"strict": False})
    assert taken.wait() == [0], taken.output
    assert line in taken.output
    assert of_its_own(taken, "begins")[-1] == next(line for line in of_its_own(first, "leaves") if "queueing" in line)


def test_a_queue_that_rank_0_had_none_of_is_left_out_for_who_wants_that(ranks: Ranks) -> None:
    first = ranks.start(2, queues=[1], until=3, settings={"save_steps": 3})
    assert first.wait() == [0, 0], first.output
    line = "queue: of the 2 processes that saved it rank 0 had none; another number of them goes on without it"
    for strict, code in ((True, 1), (False, 0)):
        job = ranks.start(1, kind="alone", until=4, settings={"strict": strict})
        assert job.wait() == [code] and line in job.output, job.output


def test_gradients_that_nobody_has_added_up_over_the_ranks_come_back_to_each(ranks: Ranks, tmp_path: Path) -> None:
    resumed_as_one(ranks, tmp_path, 2, kind="apart", optimizer="slices", adds_up=True)
    assert {"gradients", "own_optimizers"} <= set(ranks.manifest(3)["requires"])
    assert "gradients.own-00001.safetensors" in {file["path"] for file in ranks.manifest(3)["files"]}


@pytest.mark.parametrize("size", [1, 3])
def test_slices_are_refused_by_name(ranks: Ranks, size: int) -> None:
    assert ranks.start(2, optimizer="slices", until=3, settings={"save_steps": 3}).wait() == [0, 0]
    kind = "ddp" if size > 1 else "alone"
    refused = ranks.start(size, kind=kind, optimizer="slices", until=4)
    assert refused.wait() == [1] * size
    assert re.search(r"^  optimizer\.model\.0\.weight/momentum$", refused.output, re.M)
