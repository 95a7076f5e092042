"""What the documentation promises of signals, in real trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.full import in_full
from helpers.support import holdfast
from helpers.trainings import BLOCKED, SAVE_THAT_FAILS, Process, Training, answers, events
from helpers.waiting import wait_until


def loads(directory: Path) -> bool:
    """Whether plain transformers loads a model and its tokenizer from there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(directory)
    return bool(AutoModelForCausalLM.from_pretrained(directory).num_parameters())


def test_ctrl_c_saves_leaves_the_model_and_ends_with_75(training: Training) -> None:
    process = training.start()
    training.wait_for_step(5)
    process.send(signal.SIGINT)
    assert process.wait() == 75
    (saved,) = training.saved()
    assert saved["doors"] == ["signal"]
    assert loads(training.run) and loads(Path(saved["path"]))
    assert (training.run / "model.safetensors").read_bytes() == Path(saved["path"], "model.safetensors").read_bytes()
    for said in ("saving the last boundary", "stopped after a good save", "--resume auto", "can be loaded from out"):
        assert said in process.output
    again = training.start("--resume", "auto", max_steps=saved["step"] + 3)
    assert again.wait() == 0
    assert f"resumed from out/checkpoint-{saved['step']}" in again.output
    assert "Saving model checkpoint to out/" in again.output and "/proc/" not in again.output


# From the second save on, nothing comes back from the disk.
A_DISK_THAT_HANGS = """
import os, threading
from holdfast.store import commit
original, saves = commit.Attempt.seal, []
def seal(self, *args, **kwargs):
    saves.append(self)
    if len(saves) > 1:
        threading.Event().wait()
    return original(self, *args, **kwargs)
commit.Attempt.seal = seal
from holdfast.cli.app import main
main()
"""


def test_a_second_ctrl_c_leaves_a_step_that_does_not_end_after_a_good_save(training: Training) -> None:
    process = training.start(program=BLOCKED)
    training.wait_for_step(3)
    process.send(signal.SIGINT)
    pressed = time.monotonic()
    (saved,) = training.wait_for_saves(1)
    wait_until(lambda: time.monotonic() - pressed > 1.1)
    process.send(signal.SIGINT)
    assert process.wait(5) == 75 and saved["step"] == 3
    assert training.holdfast("verify", "out").wait() == 0


def test_fault_31_a_stop_in_a_step_that_does_not_end_is_saved_and_over_within_its_grace(training: Training) -> None:
    """SIGTERM to a Trainer whose forward never returns."""
    process = training.start("--set", "stop_grace_seconds=2", program=BLOCKED)
    training.wait_for_step(3)
    process.send(signal.SIGTERM)
    assert process.wait(10) == 75
    (saved,) = training.saved()
    assert saved["step"] == 3 and "did not end within 2 s" in process.output
    assert events(training.run, "end")[-1]["code"] == 75


def test_a_stop_whose_save_does_not_come_within_the_grace_ends_with_the_signal(training: Training) -> None:
    process = training.start(
        "--set", "stop_grace_seconds=2", program=A_DISK_THAT_HANGS, save_strategy="steps", save_steps=2
    )
    training.wait_for_saves(1)
    process.send(signal.SIGTERM)
    assert process.wait(15) == 143
    assert "no checkpoint was saved within 2 s" in process.output and len(training.saved()) == 1


def test_fault_32_a_second_ctrl_c_abandons_the_save_and_leaves_what_was_committed(training: Training) -> None:
    """Ctrl+C while fsync hangs, again at once, and again a second later."""
    process = training.start(program=A_DISK_THAT_HANGS, save_strategy="steps", save_steps=2)
    training.wait_for_saves(1)
    training.wait_for_step(3)
    process.send(signal.SIGINT)
    wait_until(lambda: events(training.run, "request"))
    pressed = time.monotonic()
    process.send(signal.SIGINT)  # within a second of the first: one press of a nervous hand
    wait_until(lambda: time.monotonic() - pressed > 1.1)
    assert process.code is None
    process.send(signal.SIGINT)
    assert process.wait(5) == 130
    assert [event["step"] for event in training.saved()] == [2]
    (asked,) = events(training.run, "request")
    assert not answers(training.run)[asked["id"]]["saved"]
    assert training.holdfast("verify", "out").wait() == 0
    assert events(training.run, "end")[-1]["code"] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_fault_32_repeating_sigterm_abandons_nothing(training: Training, number: signal.Signals) -> None:
    """SIGTERM, or SIGUSR2, twenty-one times in a row."""
    process = training.start(program=BLOCKED)
    training.wait_for_step(3)
    for _ in range(20):
        process.send(number)
    wait_until(lambda: events(training.run, "request"))
    process.send(number)
    (training.folder / "go").touch()
    assert process.wait() == 75
    (saved,) = training.saved()
    assert saved["step"] == 3, "the last boundary, not one that is still to come"
    assert not (training.run / "model.safetensors").exists()


def test_sigusr1_saves_and_goes_on(training: Training) -> None:
    process = training.start()
    training.wait_for_step(2)
    for count in (1, 2, 3):
        process.send(signal.SIGUSR1)
        training.wait_for_saves(count)
    after = training.saved()[-1]["step"]
    training.wait_for_step(after + 10)
    process.send(signal.SIGTERM)
    assert process.wait() == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_stop_before_the_first_step_ends_at_once(training: Training, number: signal.Signals, code: int) -> None:
    process = training.start(program=BLOCKED, block_at=0)
    process.wait_for("***** Running training *****")
    process.send(number)
    assert process.wait(5) == code
    assert not training.saved() and "nothing to save" in process.output
    assert training.start(max_steps=3).wait() == 0, "the lease was not given back"


def test_a_stop_before_the_first_new_step_of_a_resumed_run_ends_with_75(training: Training) -> None:
    assert training.start(max_steps=4, save_strategy="steps", save_steps=4).wait() == 0
    process = training.start("--resume", "auto", program=BLOCKED, block_at=0)
    process.wait_for("***** Running training *****")
    process.send(signal.SIGTERM)
    assert process.wait(5) == 75
    assert "nothing is new since" in process.output


def test_a_save_asked_for_before_the_first_step_is_of_step_0_and_a_resume_of_it_goes_on(training: Training) -> None:
    """A stop then saves nothing, asked for by a command too: the state is that of the checkpoint."""
    process = training.start(program=BLOCKED, block_at=0)
    process.wait_for("***** Running training *****")
    process.send(signal.SIGUSR1)
    (saved,) = training.wait_for_saves(1)
    assert saved["step"] == 0
    stopped = holdfast("stop", training.run, "--wait")
    assert stopped.returncode == 1 and "no step was taken yet, so there is nothing to save" in stopped.stderr
    assert process.wait() == 143
    process = training.start("--resume", "auto", program=BLOCKED, block_at=0)
    process.wait_for("***** Running training *****")
    assert "checkpoint-0" in holdfast("save", training.run, "--wait").stdout
    stopped = holdfast("stop", training.run, "--wait")
    assert stopped.returncode == 0 and "step=0" in stopped.stdout
    assert process.wait() == 75 and len(training.saved()) == 1
    assert training.start("--resume", "auto", max_steps=3).wait() == 0


def test_a_stop_that_meets_the_last_step_leaves_a_finished_training(training: Training) -> None:
    process = training.start(program=BLOCKED, max_steps=4)
    training.wait_for_step(3)
    process.send(signal.SIGTERM)
    wait_until(lambda: events(training.run, "request"))
    (training.folder / "go").touch()
    assert process.wait() == 0
    assert [event["step"] for event in training.saved()] == [3]
    assert events(training.run, "end")[-1]["outcome"] == "finished" and loads(training.run)


OWN_HANDLER = """
import signal
def own(number, frame):
    print("own handler", flush=True)
signal.signal(signal.SIGUSR1, own)
import sys
from holdfast.cli.app import main
try:
    main()
finally:
    print("restored", signal.getsignal(signal.SIGUSR1) is own, signal.getsignal(signal.SIGINT), flush=True)
"""


def test_fault_36_the_users_own_handler_is_called_and_restored(training: Training) -> None:
    """A script with handlers of its own for SIGUSR1 and SIGTERM attaches to its Trainer."""
    process = training.start(program=OWN_HANDLER)
    training.wait_for_step(1)
    process.send(signal.SIGUSR1)
    training.wait_for_saves(1)
    process.wait_for("own handler")
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    assert "restored True" in process.output and "default_int_handler" in process.output


def test_a_stop_whose_save_fails_ends_with_1_and_says_so(training: Training) -> None:
    process: Process = training.start("--set", "stop_grace_seconds=4", program=SAVE_THAT_FAILS)
    training.wait_for_step(2)
    process.send(signal.SIGTERM)
    assert process.wait() == 1
    # On a slow machine the grace may be over before training has ended by itself.
    assert any(said in process.output for said in ("the last save FAILED", "its last try failed")), process.output
    assert "checkpoint failed" in process.output
    assert events(training.run, "failed") and not list(training.run.glob("checkpoint-*"))
    assert not list(training.run.glob(".tmp-*"))


@in_full("tests/ranks/test_launchers.py: after a stop under torchrun the ranks end with 0")
def test_under_torchrun_a_good_stop_ends_with_0_so_that_the_agent_does_not_start_it_again(training: Training) -> None:
    (training.folder / "config.yml").write_text(yaml.safe_dump(training.config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--max-restarts", "1"]
    with (training.folder / "agent.txt").open("w") as output:
        agent = subprocess.Popen(
            [*command, "-m", "holdfast", "train", "config.yml"],
            cwd=training.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    training.wait_for_step(2)
    status = json.loads((training.run / ".holdfast/status.json").read_text())
    os.kill(status["pid"], signal.SIGUSR2)  # to the process itself: a signal to the agent ends the agent with 1
    assert agent.wait(60) == 0, (training.folder / "agent.txt").read_text()
    assert len(training.saved()) == 1 and len(events(training.run, "start")) == 1
    assert (events(training.run, "end")[0]["outcome"], events(training.run, "end")[0]["code"]) == ("stopped", 0)
