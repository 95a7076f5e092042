"""`holdfast.attach` on a Trainer of one's own: what the Trainer is known for keeps working, and secrets stay out."""

import json
import signal
from pathlib import Path

from trainings import Launcher, Process, events
from waiting import wait_until

OWN = """
import sys, torch, holdfast
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class Seen(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        path = f"out/checkpoint-{state.global_step}/MANIFEST.json"
        print("on_save after the commit:", __import__("os").path.exists(path), flush=True)

rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 16
args = TrainingArguments(
    "out", max_steps=int(sys.argv[1]), eval_strategy="steps", eval_steps=3, save_steps=3, save_total_limit=2,
    load_best_model_at_end=True, learning_rate=1e-3, hub_token="canary-secret", report_to="none", use_cpu=True,
    disable_tqdm=True,
)
model = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[2]))
trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[Seen()])
holdfast.attach(trainer, on_stop=sys.argv[3])
trainer.train(resume_from_checkpoint="auto")
print("after train", trainer.state.best_model_checkpoint, trainer.args.hub_token, flush=True)
"""


def own(launcher: Launcher, folder: Path, tiny: Path, *, steps: int, on_stop: str = "exit") -> Process:
    return launcher.start(str(steps), tiny / "model", on_stop, cwd=folder, program=OWN)


def test_the_best_model_callbacks_and_limits_work_and_no_secret_is_on_disk(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    process = own(launcher, tmp_path, tiny, steps=12)
    assert process.wait() == 0, process.output
    run = tmp_path / "out"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    state = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "out/checkpoint-12"
    assert process.output.count("on_save after the commit: True") == 4
    assert "after train out/checkpoint-12 canary-secret" in process.output, "the Trainer's own arguments were changed"
    assert not [path for path in run.rglob("*") if path.is_file() and b"canary-secret" in path.read_bytes()]


def test_a_stop_ends_the_script_with_75_unless_it_asked_for_a_return(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    for on_stop, code in (("exit", 75), ("return", 0)):
        folder = tmp_path / on_stop
        folder.mkdir()
        process = own(launcher, folder, tiny, steps=1_000_000, on_stop=on_stop)
        wait_until(lambda folder=folder: events(folder / "out", "saved"))  # type: ignore[misc]
        process.send(signal.SIGTERM)
        assert process.wait() == code
        assert ("after train" in process.output) == (on_stop == "return")
