"""DeepSpeed itself, beside the story that `test_trainers.py` tells with its three stages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from field.rows import DEEPSPEED, PROGRAMS, ROWS
from ranks.conftest import free_port

MISSING = [name for row in ROWS if "deepspeed" in row.packages for name in row.missing]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="SKIPPED, NOT PASSED: deepspeed not installed")
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", **DEEPSPEED}


@pytest.mark.timeout(300)
def test_a_plain_loop_with_its_engine_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(PROGRAMS / "deepspeed_engine.py"), str(run)]
    env = {**os.environ, **ALONE, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    refused = [line for line in ended.stdout.splitlines() if line.startswith("refused: ")]
    assert [line.split(",")[0] for line in refused] == [
        "refused: model: a plain loop cannot save DeepSpeed's DeepSpeedEngine",
        "refused: optimizer: a plain loop cannot save DeepSpeed's DeepSpeedZeroOptimizer",
    ]
    assert not run.exists()
