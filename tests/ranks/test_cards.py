"""Ranks compare what is on their cards without bringing it to the host, and see the smallest difference."""

import re
from pathlib import Path

from helpers.trainings import Launcher
from ranks.conftest import Job, free_port


def test_what_is_on_cards_is_compared_and_the_smallest_difference_is_seen(
    tmp_path: Path, torch_launcher: Launcher
) -> None:
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RUN": str(tmp_path / "run")}
    program = "from ranks.cards import run\nrun()"
    job = Job([torch_launcher.start(cwd=tmp_path, program=program, RANK=str(r), **env) for r in range(2)])
    assert job.wait() == [0, 0], job.output
    (line,) = re.findall(r"^.* between the ranks: .*", job.output, re.M)
    assert line.startswith("model.blocks, model.element, model.exchanged differ between the ranks: each saves its own")
    assert "the ranks compared what they hold (" in job.output
    files = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert "model.own-00001.safetensors" in files
