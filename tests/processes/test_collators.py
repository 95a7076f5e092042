"""Samples and collators that draw random numbers: what a resumed training draws for its batches, in real trainings."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.trainings import Launcher, Process, events

# 60 rows in batches of 4: an epoch has 15 batches. The collator draws from torch, the samples from Python and numpy.
MASKED = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch, holdfast
from transformers import (
    AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainerCallback,
    TrainingArguments,
)

given = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(given["model"])
tokenizer.add_special_tokens({"mask_token": "<mask>"})

class Rows(torch.utils.data.Dataset):
    def __init__(self, augmented):
        self.augmented = augmented
    def __len__(self):
        return 60
    def __getitem__(self, i):
        if i >= 60:
            raise IndexError(i)
        row = [4 + (i * 3 + k) % 12 for k in range(8 + i % 3)]
        if self.augmented:
            row[random.randrange(8)] = 4 + np.random.randint(12)
        return {"input_ids": row}

class Killed(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if (state.global_step, False) == (given["kill_after"], given["evaluating"]):
            self.save_and_die()
    def on_prediction_step(self, args, state, control, **kwargs):
        if (state.global_step, True) == (given["kill_after"], given["evaluating"]):
            self.save_and_die()
    def save_and_die(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        while '"event": "saved"' not in Path("out/events.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
model = BertForMaskedLM(BertConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
))
args = TrainingArguments(
    "out", max_steps=18, per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-3,
    logging_steps=3, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=3,
    eval_strategy="steps", eval_steps=4, **given["arguments"],
)
trainer = Trainer(
    model, args, train_dataset=Rows(True), eval_dataset=Rows(False),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=True), callbacks=[Killed()],
)
if given["ours"]:
    holdfast.attach(trainer)
trainer.train(resume_from_checkpoint=given["resume"])
model.save_pretrained("final")
Path("log.json").write_text(json.dumps(trainer.state.log_history))
"""


def masked(
    launcher: Launcher,
    folder: Path,
    tiny: Path,
    *,
    kill_after: int = -1,
    evaluating: bool = False,
    resume: str | None = None,
    ours: bool = True,
    **arguments: Any,
) -> Process:
    """Starts a training of a masked language model in a folder, to be killed or not, to be resumed or not."""
    folder.mkdir(exist_ok=True)
    given = {"model": str(tiny / "model"), "kill_after": kill_after, "evaluating": evaluating, "resume": resume}
    return launcher.start(json.dumps({**given, "ours": ours, "arguments": arguments}), cwd=folder, program=MASKED)


def outcome(process: Process, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The sha256 of a finished training's weights, and its whole log but the times."""
    assert process.wait() == 0, process.output
    log = [
        {key: value for key, value in line.items() if not key.endswith(("runtime", "per_second"))}
        for line in json.loads((folder / "log.json").read_text())
    ]
    return hashlib.sha256((folder / "final" / "model.safetensors").read_bytes()).hexdigest(), log


@pytest.mark.parametrize(
    ("kill_after", "evaluating", "arguments"),
    [
        pytest.param(14, False, {}, id="one batch left"),
        pytest.param(15, False, {}, id="end of an epoch"),
        pytest.param(4, True, {"gradient_accumulation_steps": 3}, id="accumulation, in an evaluation"),
        pytest.param(17, False, {"train_sampling_strategy": "group_by_length"}, id="an order that is drawn"),
    ],
)
def test_a_killed_run_draws_for_its_batches_what_it_would_have_drawn(
    launcher: Launcher, tmp_path: Path, tiny: Path, kill_after: int, evaluating: bool, arguments: dict[str, Any]
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    reference = masked(launcher, whole, tiny, **arguments)
    killed = masked(launcher, cut, tiny, kill_after=kill_after, evaluating=evaluating, **arguments)
    assert killed.wait() == -signal.SIGKILL, killed.output
    assert [event["step"] for event in events(cut / "out", "saved")] == [kill_after]
    resumed = masked(launcher, cut, tiny, resume="auto", **arguments)
    assert outcome(resumed, cut) == outcome(reference, whole)
    assert "draw at random does not" not in resumed.output


def test_who_cannot_draw_again_says_so_and_plain_transformers_goes_on_from_our_checkpoint(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    """The other outcome of plain transformers tells, too, that the batch ahead matters to the proof above."""
    folders = {name: tmp_path / name for name in ("cut", "whole", "workers", "plain")}
    reference = masked(launcher, folders["whole"], tiny)
    assert masked(launcher, folders["cut"], tiny, kill_after=5).wait() == -signal.SIGKILL
    checkpoint = str(folders["cut"] / "out" / "checkpoint-5")
    workers = masked(launcher, folders["workers"], tiny, resume=checkpoint, dataloader_num_workers=1)
    plain = masked(launcher, folders["plain"], tiny, resume=checkpoint, ours=False)
    weights, log = outcome(plain, folders["plain"])
    assert weights != outcome(reference, folders["whole"])[0] and log[-1]["step"] == 18
    assert workers.wait() == 0, workers.output
    assert "what samples and collator draw at random does not: that is drawn in loader processes" in workers.output
