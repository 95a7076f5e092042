"""The proof on each kind of device, in interpreters of its own: a process that was forked cannot use CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.trainings import events

UNTIL = 24
AT = 10

# Asks in the middle of the step after AT, between backward and update, and dies there when it is answered.
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
from helpers.loops import Loop
device, run, fate = sys.argv[1:]
loop = Loop(Path(run), device=device, say=lambda line: None)

def ask_and_die():
    if fate == "dies" and loop.ckpt.step_count == {AT}:
        answer = loop.ckpt.save().wait()
        print(f"saved in {{answer.seconds:.3f}} s", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

loop.in_the_middle = ask_and_die
with loop.ckpt:
    for batch in loop.ckpt.batches(until={UNTIL}):
        loop.update(batch)
held = loop.ckpt._engine.gate.blocked_seconds
print(f"held for {{held:.4f}} s in all", file=sys.stderr, flush=True)
print(loop.losses[-1], loop.digest(), flush=True)
"""


def trained(device: str, run: Path, fate: str) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parents[1]
    # Of the source folder too: where there is no environment of ours, the package is installed nowhere.
    places = os.pathsep.join([str(tests), str(tests.parent / "src")])
    env = {**os.environ, "PYTHONPATH": places, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-c", PROGRAM, device, str(run), fate]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def test_killed_inside_a_step_and_resumed_it_ends_as_if_never_interrupted(tmp_path: Path, device: str) -> None:
    whole = trained(device, tmp_path / "whole", "lives")
    assert whole.returncode == 0, whole.stderr
    cut = trained(device, tmp_path / "cut", "dies")
    assert cut.returncode == -9, cut.stdout + cut.stderr
    assert [event["step"] for event in events(tmp_path / "cut", "saved")] == [AT]
    rest = trained(device, tmp_path / "cut", "lives")
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout == whole.stdout
    print(device, cut.stdout.strip(), "|", rest.stderr.strip())
