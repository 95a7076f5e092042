"""What the configuration promises of the trigger file, sentence by sentence, in real trainings."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from helpers.full import FULL
from helpers.trainings import BLOCKED, Training, answers, events
from helpers.waiting import wait_until

SAVED_BY_A_TRAINER = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
}


def test_creating_the_file_saves_a_full_checkpoint_within_the_interval(training: Training) -> None:
    process = training.start(dynamic_checkpoint={"enabled": True, "check_interval": 7})
    training.wait_for_step(3)
    before = json.loads((training.run / ".holdfast/status.json").read_text())["step"]
    training.trigger.touch()
    (saved,) = training.wait_for_saves(1)
    assert saved["step"] % 7 == 0 and saved["step"] > before
    assert not training.trigger.exists()
    manifest = training.manifest(f"checkpoint-{saved['step']}")
    assert {file["path"] for file in manifest["files"]} == SAVED_BY_A_TRAINER
    assert [reason["door"] for reason in manifest["reasons"]] == ["trigger_file"]
    process.send(signal.SIGTERM)
    assert process.wait() == 75


TIMES = 50 if FULL else 15


def test_the_file_can_be_created_again_without_end_also_while_a_save_runs(training: Training) -> None:
    process = training.start()
    training.wait_for_step(1)
    for count in range(1, 6):
        training.trigger.touch()
        training.wait_for_saves(count)
        wait_until(lambda: not training.trigger.exists())
    for _ in range(TIMES):  # many of these meet a save that is under way; not one may be lost
        training.trigger.touch()
        wait_until(lambda: not training.trigger.exists())
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    asked = [event["id"] for event in events(training.run, "request") if event["door"] == "trigger_file"]
    assert len(asked) == 5 + TIMES and all(answers(training.run)[id]["saved"] for id in asked)


def test_from_python_with_a_text_that_becomes_the_label(training: Training) -> None:
    process = training.start(dynamic_checkpoint={"enabled": True, "check_interval": 0, "trigger_file_path": "save-me"})
    training.wait_for_step(1)
    (training.run / "save-me").write_text("before the new\nlearning rate\x1b[31m")
    (saved,) = training.wait_for_saves(1)
    (reason,) = training.manifest(f"checkpoint-{saved['step']}")["reasons"]
    assert (reason["label"], reason["why"]) == ("before the new learning rate [31m", "save-me")
    (asked,) = wait_until(lambda: events(training.run, "request"))
    (answer,) = wait_until(lambda: answers(training.run)).values()
    kept = training.run / ".holdfast" / "claimed" / asked["id"]
    assert asked["claimed"] == answer["claimed"] == str(kept.absolute())
    assert kept.read_text() == "before the new\nlearning rate\x1b[31m"
    process.send(signal.SIGTERM)
    process.wait()


def test_the_file_is_off_unless_enabled(training: Training) -> None:
    process = training.start(dynamic_checkpoint={"check_interval": 1})
    training.wait_for_step(1)
    training.trigger.touch()
    training.wait_for_step(40)
    assert training.trigger.exists() and not training.saved()
    process.send(signal.SIGTERM)
    process.wait()


def test_the_file_is_looked_at_once_more_when_training_ends(training: Training) -> None:
    process = training.start(max_steps=30, dynamic_checkpoint={"enabled": True, "check_interval": 1000})
    wait_until(lambda: training.run.exists())
    training.trigger.touch()
    assert process.wait() == 0
    (saved,) = training.saved()
    assert (saved["step"], saved["doors"]) == (30, ["trigger_file"]) and not training.trigger.exists()


def test_a_request_that_meets_a_scheduled_save_is_one_checkpoint_with_both_reasons(training: Training) -> None:
    process = training.start(max_steps=40, save_strategy="steps", save_steps=20)
    wait_until(lambda: training.run.exists())
    (training.run / "axolotl_checkpoint.save").touch()
    process.send(signal.SIGCONT)
    assert process.wait() == 0
    assert [(event["step"], event["doors"]) for event in training.saved()] == [
        (5, ["trigger_file"]),
        (20, ["schedule"]),
        (40, ["schedule"]),
    ]
    shutil.rmtree(training.run)
    process = training.start(
        max_steps=40, save_strategy="steps", save_steps=20, dynamic_checkpoint={"enabled": True, "check_interval": 20}
    )
    wait_until(lambda: training.run.exists())
    training.trigger.touch()
    assert process.wait() == 0
    assert [(event["step"], event["doors"]) for event in training.saved()] == [
        (20, ["schedule", "trigger_file"]),
        (40, ["schedule"]),
    ]
    assert {reason["door"] for reason in training.manifest("checkpoint-20")["reasons"]} == {"schedule", "trigger_file"}


def test_fault_26_a_file_left_over_from_before_the_start_is_served_once(training: Training) -> None:
    """The file is there before the run starts."""
    training.run.mkdir()
    training.trigger.touch()
    process = training.start(max_steps=30)
    assert process.wait() == 0
    assert [event["step"] for event in training.saved()] == [5]


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "stranger"])
def test_what_is_no_plain_file_of_ours_is_reported_and_left_alone(training: Training, kind: str) -> None:
    training.run.mkdir()
    if kind == "directory":
        training.trigger.mkdir()
    elif kind == "fifo":
        os.mkfifo(training.trigger)
    elif kind == "link":
        (training.folder / "target").write_text("secret")
        training.trigger.symlink_to(training.folder / "target")
    else:
        training.trigger.touch()
        try:
            os.chown(training.trigger, 12345, -1)
        except PermissionError:
            pytest.skip("only root can make a stranger's file")
    process = training.start(max_steps=40)
    assert process.wait() == 0
    assert not training.saved() and os.path.lexists(training.trigger)
    assert process.output.count(f"{training.trigger.name} ") >= 1
    assert len(events(training.run, "refused")) == 1


def test_fault_25_a_file_that_cannot_be_removed_makes_one_save_and_one_warning_over_restarts_too(
    training: Training,
) -> None:
    """chattr +i on the file of a Trainer, over two starts."""
    training.run.mkdir()
    training.trigger.touch()
    if subprocess.run(["chattr", "+i", training.trigger], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i needs root and a file system that knows it")
    try:
        first = training.start(max_steps=40)
        assert first.wait() == 0
        second = training.start("--resume", "auto", max_steps=60)
        assert second.wait() == 0
    finally:
        subprocess.run(["chattr", "-i", training.trigger], check=True)
    assert [event["step"] for event in training.saved()] == [5]
    assert first.output.count("cannot be removed") == 1 and second.output.count("cannot be removed") == 0


def test_a_crash_between_the_claim_and_the_save_does_not_lose_the_request(training: Training) -> None:
    at_once = {"enabled": True, "check_interval": 0}
    process = training.start(program=BLOCKED, dynamic_checkpoint=at_once, save_strategy="steps", save_steps=2)
    training.wait_for_step(3)
    training.trigger.write_text("do not lose me")
    wait_until(lambda: events(training.run, "request"))
    assert not training.trigger.exists()
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (asked,) = events(training.run, "request")
    (training.folder / "go").touch()
    again = training.start("--resume", "auto", program=BLOCKED, dynamic_checkpoint=at_once, max_steps=6)
    assert again.wait() == 0
    answer = answers(training.run)[asked["id"]]
    assert answer["saved"] and answer["step"] == 2, "nothing is new since, but it has a label of its own"
    (reason,) = training.manifest("checkpoint-2")["reasons"]
    assert reason["label"] == "do not lose me"
