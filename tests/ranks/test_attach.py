"""`holdfast.attach` on a Trainer of two processes."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.support import holdfast
from helpers.trainings import Launcher, events
from helpers.versions import needs_transformers
from helpers.waiting import wait_until
from ranks.conftest import Job, free_port

OWN = """
import os, sys, time, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class Breaks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        here = f"{args.process_index} {state.global_step}"
        if os.environ.get("RAISES") == here:
            raise LookupError("the tracker is gone")
        if os.environ.get("SWAPS", "").startswith(here):
            for tensor in kwargs["model"].parameters():
                tensor.data.zero_()
        while os.environ.get("HANGS") == here and not list(Path("out").glob(f"checkpoint-{state.global_step}")):
            print("hangs", flush=True)
            time.sleep(0.05)

class Slow(Trainer):
    def training_step(self, *args, **kwargs):
        while os.environ.get("STAND") == f"{self.args.process_index} {self.state.global_step}":
            print("stands", flush=True)
            time.sleep(0.05)
        return super().training_step(*args, **kwargs)

rows = [{"input_ids": torch.tensor([n % 7, 2, n % 5]), "labels": torch.tensor([1, 2, n % 3])} for n in range(48)]
args = TrainingArguments(
    "out", num_train_epochs=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=4, save_steps=4,
    load_best_model_at_end=True, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True,
    ddp_backend="gloo", logging_steps=2, save_total_limit=int(os.environ.get("LIMIT", "9")),
)
torch.manual_seed(3)
config = LlamaConfig.from_pretrained(sys.argv[1])
model = LlamaForCausalLM(config)
optimizers = (None, None)
if os.environ.get("SLICES"):
    from ranks.own_state import Slices
    optimizers = (Slices(model.parameters()), None)
trainer = Slow(model, args, train_dataset=rows, eval_dataset=rows[:8], optimizers=optimizers)
if sys.argv[2] != "plain":
    import holdfast
    trainer.add_callback(Breaks())
    holdfast.attach(trainer, stop_grace_seconds=float(os.environ.get("GRACE", "25")))
trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
timed = ("per_second", "runtime")
logs = [[item for item in sorted(row.items()) if not item[0].endswith(timed)] for row in trainer.state.log_history]
Path(f"ended-{args.process_index}.txt").write_text(str(logs))
import hashlib
found = hashlib.sha256()
for tensor in trainer.model.state_dict().values():
    found.update(tensor.numpy().tobytes())
print(f"rank {args.process_index} ends {trainer.state.global_step}", found.hexdigest(), flush=True)
"""


def start(launcher: Launcher, folder: Path, tiny: Path, *argv: str, **env: str) -> Job:
    folder.mkdir(exist_ok=True)
    port = str(free_port())
    return Job(
        [
            launcher.start(
                tiny / "model",
                *argv,
                cwd=folder,
                program=OWN,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                **env,
            )
            for rank in range(2)
        ]
    )


@pytest.fixture(scope="module")
def uninterrupted(
    launcher: Launcher, tmp_path_factory: pytest.TempPathFactory, tiny: Path
) -> tuple[list[str], list[str]]:
    """What plain transformers ends with, and what it logs."""
    folder = tmp_path_factory.mktemp("whole")
    return start(launcher, folder, tiny, "plain").digests(), logs(folder)


def logs(folder: Path) -> list[str]:
    return [(folder / f"ended-{rank}.txt").read_text() for rank in range(2)]


def test_killed_in_the_middle_of_a_step_and_resumed_it_ends_as_plain_transformers_does(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: tuple[list[str], list[str]]
) -> None:
    job = start(launcher, tmp_path, tiny, "ours", STAND="1 7")
    job.processes[1].wait_for("stands")
    asked = holdfast("save", tmp_path / "out", "--wait")
    assert asked.returncode == 0, asked.stdout + asked.stderr + job.output
    job.kill()
    checkpoint = tmp_path / "out" / "checkpoint-7"
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {path.name for path in checkpoint.iterdir()}
    assert not (checkpoint / "rng_state.pth").exists()
    assert json.loads((checkpoint / "MANIFEST.json").read_text())["world_size"] == 2
    assert holdfast("verify", checkpoint).returncode == 0
    assert start(launcher, tmp_path, tiny, "ours", "auto").digests() == uninterrupted[0]
    assert logs(tmp_path) == uninterrupted[1]


@needs_transformers("5.18", "without Holdfast it cannot load an optimizer.pt in several processes on CPUs")
def test_plain_transformers_goes_on_from_ours(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: tuple[list[str], list[str]]
) -> None:
    assert start(launcher, tmp_path, tiny, "ours").digests() == uninterrupted[0]
    assert logs(tmp_path) == uninterrupted[1]
    (newest,) = [event for event in events(tmp_path / "out", "saved") if event["step"] == 8]
    assert start(launcher, tmp_path, tiny, "plain", newest["path"]).digests() == uninterrupted[0]


def test_fault_29_a_signal_to_one_process_stops_both_at_one_step_and_once(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    """Two Trainers under DDP; SIGTERM to the one that is not the first."""
    job = start(launcher, tmp_path, tiny, "ours", STAND="0 6")
    job.processes[0].wait_for("stands")
    job.processes[1].send(signal.SIGTERM)
    (saved,) = wait_until(lambda: [event for event in events(tmp_path / "out", "saved") if event["step"] == 6])
    assert "signal" in saved["doors"]
    job.kill()


def test_state_that_differs_between_ranks_fails_the_save_and_is_named(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    """Plain transformers would keep rank 0's slices for both."""
    job = start(launcher, tmp_path, tiny, "ours", SLICES="1")
    job.processes[0].wait_for("checkpoint failed step=4")
    job.kill()
    assert re.search(
        r"error=optimizer\.model\.\S+/momentum, .* and \d+ more differ between the ranks: a Trainer's checkpoint has"
        r" what rank 0 holds, and no place for the others'",
        job.output,
    )
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def manifest_of(folder: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / f"checkpoint-{step}" / "MANIFEST.json").read_text())
    return content


def are_before_their_callbacks(manifest: dict[str, Any]) -> bool:
    boundaries = [manifest["boundary"], *manifest["boundary"]["ranks"]]
    return manifest["requires"] == ["pending_callbacks"] and all("callbacks" in b["pending"] for b in boundaries)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_callback_that_raises_in_one_rank_has_all_save_what_was_before_it(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: tuple[list[str], list[str]], rank: int
) -> None:
    job = start(launcher, tmp_path, tiny, "ours", RAISES=f"{rank} 5")
    job.processes[rank].wait()
    job.kill()
    assert are_before_their_callbacks(manifest_of(tmp_path, 5)), job.output
    assert start(launcher, tmp_path, tiny, "ours", "auto").digests() == uninterrupted[0]
    assert logs(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_that_meets_a_callback_which_outlasts_its_grace_has_all_save_what_was_before_it(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: tuple[list[str], list[str]], rank: int
) -> None:
    job = start(launcher, tmp_path, tiny, "ours", HANGS=f"{rank} 6", GRACE="8")
    job.processes[rank].wait_for("hangs")
    for process in job.processes:
        process.send(signal.SIGTERM)
    assert job.wait() == [75, 75], job.output
    assert are_before_their_callbacks(manifest_of(tmp_path, 6))
    assert start(launcher, tmp_path, tiny, "ours", "auto").digests() == uninterrupted[0]
    assert logs(tmp_path) == uninterrupted[1]


def test_weights_that_a_ranks_callbacks_have_moved_are_named(launcher: Launcher, tmp_path: Path, tiny: Path) -> None:
    job = start(launcher, tmp_path, tiny, "ours", RAISES="0 5", SWAPS="1 5")
    job.processes[0].wait()
    job.kill()
    assert re.search(r"checkpoint failed step=5 .*lm_head\.weight.* differ between the ranks", job.output), job.output
    assert not list((tmp_path / "out").glob("checkpoint-5"))
