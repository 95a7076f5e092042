"""FSDP2 through accelerate, which shards on an accelerator alone: killed, it ends as if never interrupted."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

STEPS = 6

# Saves at step 3, and dies in the step after it where it is told to.
PROGRAM = f"""
import os, signal, sys, torch, holdfast
from pathlib import Path
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class Dying(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if sys.argv[2] == "dies" and state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(3)
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{{"input_ids": ids, "labels": ids}} for ids in torch.randint(0, 64, (24, 8)).tolist()]
arguments = TrainingArguments(
    sys.argv[1], max_steps={STEPS}, per_device_train_batch_size=4, logging_steps=1, save_steps=3, report_to="none",
    disable_tqdm=True, fsdp=True, fsdp_config={{"version": 2}}, use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows, callbacks=[Dying()])
holdfast.attach(trainer)
trainer.train(resume_from_checkpoint="auto")
sharded = all(isinstance(weight, DTensor) for weight in trainer.model_wrapped.parameters())
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
Path(sys.argv[1] + ".result").write_text(f"sharded {{sharded}} {{losses}}")
"""


def trained(run: Path, fate: str) -> "subprocess.CompletedProcess[str]":
    tests = Path(__file__).parents[1]
    program = run.with_name("program.py")
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    env = {**os.environ, "PYTHONPATH": str(tests.parent / "src"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [*launcher, str(program), str(run), fate]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.cuda
@pytest.mark.skipif(find_spec("transformers") is None, reason="SKIPPED, NOT PASSED: transformers is not installed")
def test_a_sharded_trainer_that_was_killed_ends_as_if_never_interrupted(tmp_path: Path) -> None:
    results = {}
    for run, fates in {"whole": ["lives"], "cut": ["dies", "lives"]}.items():
        ended = [trained(tmp_path / run, fate) for fate in fates]
        assert ended[-1].returncode == 0, ended[-1].stderr
        results[run] = (tmp_path / f"{run}.result").read_text()
    assert results["cut"] == results["whole"] and results["whole"].startswith("sharded True"), results
