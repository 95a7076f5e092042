"""What the verbs promise, from another process than the training's."""

import json
import signal
from functools import partial
from pathlib import Path

from helpers.trainings import BLOCKED, SAVE_THAT_FAILS, Training, answers, events
from helpers.waiting import wait_until


def test_save_wait_prints_the_answer_and_the_checkpoint_is_there(training: Training) -> None:
    process = training.start()
    training.wait_for_step(1)
    asking = training.holdfast("save", "out", "--wait", "--label", "before lr")
    assert asking.wait() == 0
    (saved,) = training.saved()
    line = asking.output.splitlines()[-1]
    assert line.startswith(f"checkpoint saved step={saved['step']} path={saved['path']} bytes=") and "seconds=" in line
    assert training.holdfast("verify", saved["path"]).wait() == 0
    (reason,) = training.manifest(f"checkpoint-{saved['step']}")["reasons"]
    assert (reason["door"], reason["label"]) == ("command", "before lr")
    process.send(signal.SIGTERM)
    assert process.wait() == 75


def test_save_json_is_the_answer(training: Training) -> None:
    process = training.start()
    training.wait_for_step(1)
    asking = training.holdfast("save", "out", "--wait", "--json")
    assert asking.wait() == 0
    answer = json.loads(asking.output)
    assert answer["saved"] and (answer.pop("not_finite"), answer.pop("finite")) == ([], "")
    assert answer.pop("not_carried") == [] and answer.pop("claimed") == ""
    assert answer == {"request": answer["request"], **answers(training.run)[answer["request"]]}
    process.send(signal.SIGTERM)
    process.wait()


def test_save_in_the_middle_of_a_step_is_served_there_and_asking_again_gets_the_same_checkpoint(
    training: Training,
) -> None:
    process = training.start(program=BLOCKED)
    training.wait_for_step(3)
    asking = training.holdfast("save", "out")
    assert asking.wait() == 0 and "asked" in asking.output
    (saved,) = training.wait_for_saves(1)
    assert saved["step"] == 3
    again = training.holdfast("save", "out", "--wait", "--json")
    assert again.wait() == 0 and json.loads(again.output)["digest"] == saved["digest"]
    assert len(training.saved()) == 1, "nothing has changed, so nothing was saved again"
    (training.folder / "go").touch()
    process.send(signal.SIGTERM)
    process.wait()


def test_stop_and_save_stop_save_and_end_the_training(training: Training) -> None:
    for verb in (("stop",), ("save", "--stop")):
        process = training.start("--resume", "auto")
        process.wait_for("***** Running training *****")
        begun = training.saved()[-1]["step"] if training.saved() else 0
        wait_until(partial(_is_past, training, process.pid, begun))
        asking = training.holdfast(verb[0], "out", *verb[1:], "--wait")
        assert asking.wait() == 0
        assert process.wait() == 75


def _is_past(training: Training, pid: int, step: int) -> bool:
    """Tells if the training has taken a further step, as its own process says."""
    status = json.loads((training.run / ".holdfast/status.json").read_text())
    return bool(status["pid"] == pid and status["step"] > step)


def test_a_failed_save_is_answered_with_exit_code_1_and_training_goes_on(training: Training) -> None:
    process = training.start(program=SAVE_THAT_FAILS)
    training.wait_for_step(1)
    asking = training.holdfast("save", "out", "--wait")
    assert asking.wait() == 1
    assert "the save failed" in asking.output
    step = json.loads((training.run / ".holdfast/status.json").read_text())["step"]
    training.wait_for_step(step + 5)
    status = training.holdfast("status", "out")
    status.wait()
    assert "failed      1 saves" in status.output
    process.send(signal.SIGKILL)


def test_verbs_on_a_run_that_is_dead_or_not_there(training: Training) -> None:
    assert training.holdfast("save", "out", "--wait").wait() == 4
    process = training.start()
    training.wait_for_step(1)
    process.send(signal.SIGKILL)
    process.wait()
    for verb in ("save", "stop"):
        asking = training.holdfast(verb, "out", "--wait")
        assert asking.wait() == 4 and "no process is training" in asking.output
    status = training.holdfast("status", "out")
    assert status.wait() == 0 and "not running, it died" in status.output


def test_a_waiting_asker_learns_that_the_run_died(training: Training) -> None:
    process = training.start(program=BLOCKED)
    training.wait_for_step(3)
    asking = training.holdfast("save", "out", "--wait")
    wait_until(lambda: events(training.run, "request"))
    process.send(signal.SIGKILL)
    assert asking.wait() == 4 and "ended before it answered" in asking.output


def test_status_of_a_live_run_names_step_rate_loss_and_last_checkpoint(training: Training) -> None:
    process = training.start(logging_steps=2, save_strategy="steps", save_steps=5)
    training.wait_for_saves(1)

    def says(*words: str, json: bool) -> bool:
        asked = training.holdfast("status", "out", *(["--json"] if json else []))
        assert asked.wait() == 0
        return all(word in asked.output for word in words)

    # Between two saves, that is; while one is written the phase is another.
    wait_until(lambda: says("training (pid", "of 1000000", "steps/s", "loss", "checkpoint-", json=False))
    wait_until(lambda: says('"alive": true', '"phase": "training"', '"max_steps": 1000000', '"rate": ', json=True))
    process.send(signal.SIGTERM)
    assert process.wait() == 75


def test_a_second_start_on_a_live_run_is_refused(training: Training) -> None:
    process = training.start()
    training.wait_for_step(1)
    second = training.start()
    assert second.wait() == 1
    assert f"process {process.pid} is training the run" in second.output and "holdfast stop out" in second.output
    process.send(signal.SIGTERM)
    assert process.wait() == 75


def test_list_names_who_asked_and_the_label(training: Training) -> None:
    process = training.start(save_strategy="steps", save_steps=4)
    training.wait_for_saves(1)
    training.holdfast("save", "out", "--label", "mine", "--wait").wait()
    process.send(signal.SIGTERM)
    process.wait()
    listed = training.holdfast("list", "out")
    assert listed.wait() == 0
    lines = listed.output.splitlines()
    assert any("holdfast save" in line and "mine" in line for line in lines)
    assert any("save_strategy steps" in line for line in lines)
    assert Path(training.run, lines[1].split()[0]).is_dir()
