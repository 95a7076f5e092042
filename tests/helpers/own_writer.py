"""A Trainer that holdfast takes for one that its own writer alone can save, and whose writer fails when it is told to.

DeepSpeed itself is in tests/field, with two processes.
"""

from pathlib import Path

from helpers.trainings import Launcher
from ranks.conftest import Job

PROGRAM = """
import hashlib, os, sys, threading, time, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

class Own(Trainer):
    def training_step(self, *args, **kwargs):
        here = str(self.state.global_step)
        if os.environ.get("RAISE") == here:
            raise AssertionError("an error in the middle of a step")
        if here in os.environ.get("STAND", "").split(","):
            print("stands after", here, flush=True)
            while not Path(f"go-{self.state.global_step}").exists():
                time.sleep(0.01)
        return super().training_step(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if _internal_call and sys.argv[2] == "ours":
            print("written in", threading.current_thread().name, flush=True)
            torch.rand(3)  # training is to draw what it would have drawn
            if os.environ.get("FAIL") == str(self.state.global_step):
                raise OSError("this writer has an error of its own")
            parts = Path(output_dir, "parts")
            parts.mkdir(exist_ok=True)
            (parts / "__0_0.distcp").write_text("a shard")

rows = [{"input_ids": torch.tensor([n % 7, 2, n % 5]), "labels": torch.tensor([1, 2, n % 3])} for n in range(48)]
args = TrainingArguments(
    "out", num_train_epochs=1, per_device_train_batch_size=4,
    eval_strategy="steps", eval_steps=4, save_steps=4, load_best_model_at_end=True, learning_rate=1e-2,
    report_to="none", use_cpu=True, disable_tqdm=True,
    logging_steps=2, save_total_limit=9, hub_token="canary-secret",
)
torch.manual_seed(3)
trainer = Own(LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1])), args, train_dataset=rows, eval_dataset=rows)
if sys.argv[2] == "ours":
    import holdfast
    from holdfast.integrations.trainer import hooks, supported
    if "FORM" in os.environ:
        supported.form_of = lambda trainer: os.environ["FORM"]
    hooks.why_own_writer = lambda trainer: "in this test its own writer alone reads it"
    holdfast.attach(trainer)
trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
timed = ("per_second", "runtime")
logs = [[item for item in sorted(row.items()) if not item[0].endswith(timed)] for row in trainer.state.log_history]
found, logged = hashlib.sha256(), hashlib.sha256(str(logs).encode())
for tensor in trainer.model.state_dict().values():
    found.update(tensor.numpy().tobytes())
outcome = f"{found.hexdigest()}_{logged.hexdigest()}"
print(f"rank 0 ends {trainer.state.global_step} {outcome}", flush=True)
"""


def start(launcher: Launcher, folder: Path, tiny: Path, *argv: str, **env: str) -> Job:
    """Starts it in a folder, of which `out` is the run directory.

    Args:
        launcher: One that has the trainers.
        folder: Where.
        tiny: The model.
        *argv: `plain` or `ours`, and what to resume from.
        **env: `STAND`, `RAISE`: a step, after which it stands until there is a file `go-STEP`, or raises. `FAIL`: a
            step that cannot be written. `FORM`: the form of checkpoints that it takes for its own.
    """
    folder.mkdir(exist_ok=True)
    return Job([launcher.start(tiny / "model", *argv, cwd=folder, program=PROGRAM, **env)])
