"""The loops of the examples: few lines of ours, and killed and resumed they end as they do without Holdfast.

Those whose libraries only `make test-trainers` installs are skipped elsewhere.
"""

import json
import signal
from pathlib import Path

import pytest

from field.program import STEPS
from field.rows import PROGRAMS, ROWS
from helpers.support import holdfast
from helpers.trainings import Launcher, Process
from helpers.waiting import wait_until
from ranks.conftest import torch_launcher

__all__ = ["torch_launcher"]

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPS = sorted(path.name for path in EXAMPLES.glob("*_loop.py"))
PACKAGES = {row.env["EXAMPLE"]: row for row in ROWS if "EXAMPLE" in row.env}


@pytest.mark.parametrize("name", LOOPS)
def test_at_most_six_lines_are_of_holdfast(name: str) -> None:
    lines = (EXAMPLES / name).read_text().splitlines()
    marked = {line for line in lines if line.endswith("  # holdfast")}
    assert 3 <= len(marked) <= 6
    code = [line for line in lines[lines.index("import argparse") :] if not line.lstrip().startswith("#")]
    ours = {line for line in code if "ckpt" in line.replace("ckpt.step_count", "") or "holdfast" in line}
    assert ours == marked, "what is marked is all that there is"


@pytest.mark.parametrize("name", LOOPS)
def test_killed_and_resumed_it_ends_as_without_holdfast(
    torch_launcher: Launcher,
    tmp_path: Path,
    name: str,
) -> None:
    if missing := PACKAGES[name].missing:
        pytest.skip(f"SKIPPED, NOT PASSED: {', '.join(missing)} not installed")
    run = tmp_path / "run"

    def start(out: Path, **env: str) -> Process:
        program = f"import runpy; runpy.run_path({str(PROGRAMS / 'example.py')!r}, run_name='__main__')"
        return torch_launcher.start(out, cwd=tmp_path, program=program, EXAMPLE=name, **env)

    alone = start(tmp_path / "alone", FIELD_PLAIN="1")
    killed = start(run, FIELD_HOLDS="7")
    at_seven = tmp_path / "run.at-7"
    wait_until(lambda: at_seven.exists() or killed.code is not None, 60, "step 7")
    assert at_seven.exists(), killed.output
    assert holdfast("save", run, "--wait").returncode == 0
    killed.send(signal.SIGKILL)
    killed.wait()
    resumed = start(run)
    assert [alone.wait(), resumed.wait()] == [0, 0], alone.output + resumed.output
    assert STEPS > 7 and "checkpoint-7: step 7" in resumed.output, resumed.output
    assert json.loads((tmp_path / "run.result.json").read_text()) == json.loads(
        (tmp_path / "alone.result.json").read_text()
    )
