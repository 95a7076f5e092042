"""One rank finds damage in what it alone reads: all ranks go on from the same older checkpoint, and it is said."""

import json
from pathlib import Path

from helpers.trainings import events
from ranks.conftest import Ranks

OF_RANK_1 = "model-00001-of-00002.safetensors"
EVERY_FOUR = {"save_steps": 4}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_all_ranks_fall_back_to_the_same_older_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(kind="fsdp", until=10).digests()
    ranks.start(kind="fsdp", until=8, settings=EVERY_FOUR).digests()
    flip_a_byte(ranks.run / "checkpoint-8" / OF_RANK_1)
    job = ranks.start(kind="fsdp", until=10)
    assert job.digests() == expected, job.output
    assert f"skipped checkpoint-8: {OF_RANK_1}" in job.output and "checkpoint-4: step 4" in job.output
    older = json.loads((ranks.run / "checkpoint-4" / "MANIFEST.json").read_text())["attempt"]
    last = [event for event in events(ranks.run) if event["event"] in ("start", "fell_back")][-1]
    assert last["parent"] == older


def test_where_no_checkpoint_is_left_all_ranks_end_with_the_reason(ranks: Ranks) -> None:
    ranks.start(kind="fsdp", until=4, settings=EVERY_FOUR).digests()
    flip_a_byte(ranks.run / "checkpoint-4" / OF_RANK_1)
    job = ranks.start(kind="fsdp", until=10)
    assert job.wait() == [1, 1]
    assert f"skipped checkpoint-4: {OF_RANK_1}" in job.output
    assert all("can be resumed from: checkpoint-4; what" in process.output for process in job.processes), job.output


# Rank 1 comes to the checkpoint when another directory has its name, which a copy of its manifest vouches for.
EXCHANGED_FOR_RANK_1 = """
import os, shutil
from pathlib import Path
from holdfast.resume import open_run
own = open_run._seen_here
def seen_here(rank, message):
    here = Path(message["checkpoint"])
    here.rename(here.with_name("aside"))
    shutil.copytree(here.with_name("aside"), here)
    with next(here.glob("*.safetensors")).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    return own(rank, message)
open_run._seen_here = seen_here
"""


def test_security_s23_a_rank_takes_the_checkpoint_that_rank_0_has_verified_or_none(ranks: Ranks) -> None:
    """Between two ranks' opening of a checkpoint another directory takes the name, with a copy of the manifest."""
    ranks.start(until=2, settings={"save_steps": 2}).digests()
    job = ranks.start(until=4, program=EXCHANGED_FOR_RANK_1)
    assert job.wait() == [1, 1], job.output
    for process in job.processes:
        assert "rank 1 on " in process.output and "checkpoint-2 as rank 0 sees it: it is another" in process.output
