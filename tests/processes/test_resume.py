"""What is promised of checkpoints and of resuming, in real trainings that are killed."""

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.trainings import Training, events

STEPS = 40


def outcome(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """The sha256 of a finished run's weights, and its whole log but the times."""
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (weights,) = run.glob("*.safetensors")
    state = json.loads((last / "trainer_state.json").read_text())
    log = [
        {key: value for key, value in line.items() if not key.endswith(("runtime", "per_second"))}
        for line in state["log_history"]
    ]
    return hashlib.sha256(weights.read_bytes()).hexdigest(), log


# An epoch has 54 steps of 2 samples (12 are held out), so that 60 steps begin a second one. Dropout is on in the model.
EXACT = {
    "max_steps": 80,
    "val_set_size": 12,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "logging_steps": 7,
    "save_strategy": "steps",
    "save_steps": 1000,
    "warmup_steps": 5,
    "lr_scheduler": "cosine",
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_linear": True}


@pytest.mark.parametrize(
    ("kill_after", "changes"),
    [
        pytest.param(1, {}, id="first step", marks=in_full("the other steps of this test")),
        pytest.param(23, {}, id="mid-epoch", marks=in_full("the one with adapters")),
        pytest.param(54, {}, id="end of an epoch", marks=in_full("the one saved in an evaluation there")),
        pytest.param(61, {"eval_strategy": "epoch", "eval_steps": None}, id="second epoch, evaluated per epoch"),
        pytest.param(12, {"gradient_accumulation_steps": 3, "max_steps": 30}, id="accumulation"),
        pytest.param(20, LORA, id="lora"),
    ],
)
def test_a_killed_and_resumed_run_ends_as_if_never_interrupted(
    training: Training, tmp_path: Path, kill_after: int, changes: dict[str, Any]
) -> None:
    settings = {k: v for k, v in {**EXACT, **changes}.items() if v is not None}
    whole = Training(tmp_path / "whole", training.launcher, training.config)
    whole.folder.mkdir()
    ends = [whole.start(**settings)]
    program = STOPS_AT_A_STEP.replace("STEP", str(kill_after))
    process = training.start(**settings, program=program)
    assert process.wait() == -signal.SIGKILL, process.output
    (saved,) = training.saved()
    assert saved["step"] == kill_after
    ends.append(training.start("--resume", "auto", **settings))
    assert [end.wait() for end in ends] == [0, 0], ends[-1].output
    assert outcome(training.run) == outcome(whole.run)
    read = [ends[-1].output, *(path.read_text("latin-1") for path in training.run.rglob("*") if path.is_file())]
    assert not any("/proc/self/fd" in text for text in read), "by which the trainer loaded, and no name for people"


# Asks for a save through the trigger file after a step, and is killed two steps later, when it was answered.
STOPS_AT_A_STEP = """
import os, signal, time
from pathlib import Path
from trl import SFTTrainer
original = SFTTrainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == STEP - 1:
        Path("out/axolotl_checkpoint.save").touch()
    if self.state.global_step == STEP + 2:
        while '"event": "saved"' not in Path("out/events.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
SFTTrainer.training_step = step
import sys
sys.argv += ["--set", "dynamic_checkpoint.check_interval=1"]
from holdfast.cli.app import main
main()
"""


def three_checkpoints(training: Training) -> None:
    assert training.start(max_steps=30, save_strategy="steps", save_steps=10).wait() == 0


def test_fault_15_auto_skips_what_is_damaged_by_name_and_reason(training: Training) -> None:
    """A bit of the newest checkpoint's weights is flipped, and the next one lacks a file."""
    three_checkpoints(training)
    weights = training.run / "checkpoint-30" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (training.run / "checkpoint-20" / "optimizer.pt").unlink()
    verify = training.holdfast("verify", "out")
    assert verify.wait() == 3
    process = training.start("--resume", "auto", max_steps=12)
    assert process.wait() == 0
    for said in (
        "skipped checkpoint-30: model.safetensors: its bytes have changed",
        "skipped checkpoint-20: optimizer.pt: is missing",
        "resumed from out/checkpoint-10: step 10, epoch ",
    ):
        assert said in process.output


def test_nothing_good_while_directories_exist_is_an_error(training: Training) -> None:
    three_checkpoints(training)
    for path in training.run.glob("checkpoint-*/MANIFEST.json"):
        path.write_text("{}")
    process = training.start("--resume", "auto", max_steps=35)
    assert process.wait() == 1
    assert "none of the 3 checkpoints in out can be resumed from" in process.output and "zero" in process.output


def test_auto_starts_from_zero_where_there_is_nothing_and_true_does_not(training: Training) -> None:
    assert training.start("--resume", "true", max_steps=3).wait() == 1
    process = training.start(auto_resume_from_checkpoints=True, max_steps=3)
    assert process.wait() == 0 and "starting from zero" in process.output


def test_fault_17_a_start_in_a_used_directory_without_resume_says_so_and_keeps_what_is_there(
    training: Training,
) -> None:
    """A Trainer starts from zero in a directory with three checkpoints and saves a step that is there."""
    three_checkpoints(training)
    process = training.start(max_steps=10, save_strategy="steps", save_steps=10)
    assert process.wait() == 0
    assert "holds 3 checkpoints of earlier training" in process.output
    assert len(list(training.run.glob("superseded-10-*"))) == 1
    assert training.holdfast("verify", "out").wait() == 0


def test_a_branch_supersedes_and_auto_follows_the_newest_commit(training: Training) -> None:
    three_checkpoints(training)
    branch = training.start("--resume", "out/checkpoint-10", max_steps=20, save_strategy="steps", save_steps=10)
    assert branch.wait() == 0
    (superseded,) = training.run.glob("superseded-20-*")
    assert training.manifest("checkpoint-20")["parent"] == training.manifest("checkpoint-10")["attempt"]
    process = training.start("--resume", "auto", max_steps=22)
    assert process.wait() == 0
    assert "resumed from out/checkpoint-20" in process.output
    listed = training.holdfast("list", "out", "--json")
    listed.wait()
    paths = [Path(entry["path"]).name for entry in json.loads(listed.output)["checkpoints"]]
    assert paths == ["checkpoint-20", "checkpoint-30", superseded.name, "checkpoint-10"]


PLAIN = """
import sys
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
import json, torch
from pathlib import Path

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        x = torch.tensor([1 + (i * 3 + k) % 12 for k in range(8)])
        return {"input_ids": x, "labels": x}

torch.manual_seed(0)
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig.from_pretrained(MODEL))
args = TrainingArguments(
    "out", max_steps=40, save_steps=10, per_device_train_batch_size=2, report_to="none", use_cpu=True,
    disable_tqdm=True, logging_steps=3, seed=3,
)
trainer = Trainer(model, args, train_dataset=Rows())
if OURS:
    import holdfast
    holdfast.attach(trainer)
trainer.train(resume_from_checkpoint=RESUME)
model.save_pretrained("final")
assert ("holdfast.integrations.trainer.attach" in sys.modules) == OURS
"""


def plain(training: Training, *, ours: bool, resume: str | None, folder: Path) -> str:
    program = PLAIN.replace("MODEL", repr(training.config["base_model"]))
    program = program.replace("OURS", repr(ours)).replace("RESUME", repr(resume))
    folder.mkdir(exist_ok=True)
    process = training.launcher.start(cwd=folder, program=program)
    assert process.wait() == 0, process.output
    return hashlib.sha256((folder / "final" / "model.safetensors").read_bytes()).hexdigest()


def test_plain_transformers_and_ours_resume_each_others_checkpoints_to_the_same_bytes(
    training: Training, tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    whole = plain(training, ours=False, resume=None, folder=theirs)
    assert plain(training, ours=True, resume=None, folder=ours) == whole
    theirs_there, ours_here = theirs / "out/checkpoint-20", ours / "out/checkpoint-20"
    assert {p.name for p in ours_here.iterdir()} == {p.name for p in theirs_there.iterdir()} | {"MANIFEST.json"}
    assert plain(training, ours=False, resume=str(ours_here), folder=tmp_path / "a") == whole
    assert plain(training, ours=True, resume=str(theirs_there), folder=tmp_path / "b") == whole
    assert plain(training, ours=True, resume="auto", folder=ours) == whole


def test_a_foreign_checkpoint_is_skipped_by_auto_and_resumed_with_a_notice_when_named(
    training: Training, tmp_path: Path
) -> None:
    three_checkpoints(training)
    for path in training.run.glob("checkpoint-*/MANIFEST.json"):
        path.unlink()
    auto = training.start("--resume", "auto", max_steps=35)
    assert auto.wait() == 1 and "made by plain transformers: name it" in auto.output
    named = training.start("--resume", "out/checkpoint-30", max_steps=35)
    assert named.wait() == 0, named.output
    assert "was made without Holdfast" in named.output


def test_save_total_limit_counts_scheduled_checkpoints_and_leaves_the_others(training: Training) -> None:
    training.run.mkdir()
    training.trigger.touch()
    assert training.start(max_steps=60, save_strategy="steps", save_steps=10, save_total_limit=2).wait() == 0
    kept = sorted(int(path.name.split("-")[1]) for path in training.run.glob("checkpoint-*"))
    assert kept == [5, 50, 60]
    assert [Path(event["path"]).name for event in events(training.run, "deleted")] == [
        f"checkpoint-{step}" for step in (10, 20, 30, 40)
    ]


def test_keep_limits_on_demand_checkpoints(training: Training) -> None:
    process = training.start(dynamic_checkpoint={"enabled": True, "check_interval": 1, "keep": 2})
    training.wait_for_step(1)
    for count in range(1, 5):
        training.trigger.touch()
        training.wait_for_saves(count)
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    left = [training.manifest(path.name)["reasons"] for path in training.run.glob("checkpoint-*")]
    on_demand = [reasons for reasons in left if any(reason["door"] == "trigger_file" for reason in reasons)]
    assert len(on_demand) == 2 and len(left) <= 3, "beside them there is the one of the stop"


def test_changed_intervals_count_after_a_resume(training: Training) -> None:
    three_checkpoints(training)
    assert training.start("--resume", "auto", max_steps=40, save_strategy="steps", save_steps=4).wait() == 0
    assert [event["step"] for event in training.saved()] == [10, 20, 30, 32, 36, 40]


def test_a_checkpoint_can_be_moved_and_resumed_from_elsewhere(training: Training, tmp_path: Path) -> None:
    three_checkpoints(training)
    shutil.move(training.run / "checkpoint-20", tmp_path / "moved")
    process = training.start("--resume", str(tmp_path / "moved"), max_steps=25, output_dir="other")
    assert process.wait() == 0 and f"resumed from {tmp_path / 'moved'}" in process.output


# Asks for a save in the middle of the evaluation after the step 20, and is killed there when it was answered.
IN_AN_EVALUATION = """
import os, signal, time
from pathlib import Path
from trl import SFTTrainer
original = SFTTrainer.prediction_step
def step(self, *args, **kwargs):
    if self.state.global_step == AT:
        os.kill(os.getpid(), signal.SIGUSR1)
        while '"event": "saved"' not in Path("out/events.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
SFTTrainer.prediction_step = step
from holdfast.cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("at", "changes", "stage"),
    [
        pytest.param(20, {"logging_steps": 4}, "update", id="mid-epoch"),
        pytest.param(
            54, {"eval_strategy": "epoch", "eval_steps": None, "max_steps": 60}, "logged", id="end of an epoch"
        ),
    ],
)
def test_saved_in_an_evaluation_and_killed_there_ends_as_if_never_interrupted(
    training: Training, tmp_path: Path, at: int, changes: dict[str, Any], stage: str
) -> None:
    settings = {key: value for key, value in {**EXACT, **changes}.items() if value is not None}
    whole = Training(tmp_path / "whole", training.launcher, training.config)
    whole.folder.mkdir()
    ends = [whole.start(**settings)]
    process = training.start(**settings, program=IN_AN_EVALUATION.replace("AT", str(at)))
    assert process.wait() == -signal.SIGKILL, process.output
    assert training.manifest(f"checkpoint-{at}")["boundary"]["face"] == stage
    ends.append(training.start("--resume", "auto", **settings))
    assert [end.wait() for end in ends] == [0, 0], ends[-1].output
    assert outcome(training.run) == outcome(whole.run)
