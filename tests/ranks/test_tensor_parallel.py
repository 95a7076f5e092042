"""A tensor-parallel training that was killed and resumed ends as one that never was, and goes on in one process."""

import re
from pathlib import Path

import pytest

from helpers.full import in_full
from helpers.support import holdfast
from ranks.conftest import Job, Ranks


def told(job: Job, what: str) -> str:
    """What the ranks say of all weights and moments together, in which they are one."""
    (found,) = set(re.findall(rf"rank \d {what} with (\w+)", job.output))
    return str(found)


BOTH = in_full("each of the two alone, and tests/state/test_sharding.py of pieces that are cut twice")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "size"), [("tp", 2), pytest.param("fsdp_tp", 4, marks=BOTH)])
def test_killed_and_resumed_it_ends_with_the_same_bytes_and_one_process_has_the_same_tensors(
    ranks: Ranks, tmp_path: Path, kind: str, size: int
) -> None:
    whole = Ranks(tmp_path / "whole", ranks.launcher)
    whole.folder.mkdir()
    expected = whole.start(size, kind=kind, model="normed", until=12).digests()
    job = ranks.start(size, kind=kind, model="normed", until=12, stand=[1, 7])
    job.processes[1].wait_for("rank 1 stands")
    asked = holdfast("save", ranks.run, "--wait")
    assert asked.returncode == 0, asked.stdout + asked.stderr + job.output
    job.kill()
    (saved,) = ranks.saved()
    assert saved["step"] == 7
    # Who shares the work on the same samples has the same running statistics.
    own = {file["path"] for file in ranks.manifest(7)["files"] if ".own-" in file["path"]}
    assert own == (set() if kind == "tp" else {f"model.own-0000{rank}.safetensors" for rank in (2, 3)})
    pieces = {name: len(one["pieces"]) for name, one in ranks.manifest(7)["tensors"]["model"].items()}
    cut = 2 if kind == "tp" else 4
    assert (pieces["1.weight"], pieces["3.weight"]) == (cut, 2), pieces
    alone = ranks.start(1, kind="alone", model="normed", until=8)
    assert alone.wait() == [0], alone.output
    (ranks.folder / "go").touch()
    again = ranks.start(size, kind=kind, model="normed", until=12)
    assert again.digests() == expected
    assert told(alone, "begins") == told(again, "begins")
