"""Buffers that differ between ranks: each rank goes on with its own, and another number of ranks with rank 0's."""

import re
from pathlib import Path

from helpers.support import holdfast
from ranks.conftest import Ranks


def test_each_rank_resumes_the_running_statistics_of_its_own(ranks: Ranks, tmp_path: Path) -> None:
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(kind="ddp_own", model="batched", until=9).digests()
    job = ranks.start(kind="ddp_own", model="batched", until=9, stand=[1, 5])
    job.processes[1].wait_for("rank 1 stands")
    asked = holdfast("save", ranks.run, "--wait")
    assert asked.returncode == 0, asked.stdout + asked.stderr + job.output
    job.kill()
    (ranks.folder / "go").touch()
    assert ranks.start(kind="ddp_own", model="batched", until=9).digests() == expected


def test_another_number_of_ranks_takes_those_of_rank_0_and_says_so(ranks: Ranks) -> None:
    left = ranks.start(kind="fsdp", model="batched", until=3, settings={"save_steps": 3})
    assert left.wait() == [0, 0], left.output
    alone = ranks.start(1, kind="alone", model="batched", until=4)
    assert alone.wait() == [0], alone.output
    (notice,) = re.findall(r"2 processes saved it and 1 go on.*", alone.output)
    assert "buffers of model that differed between them are those of rank 0" in notice
