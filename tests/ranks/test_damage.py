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
