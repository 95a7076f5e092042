"""Checkpoints of a training that went wrong: they are kept and marked, and the last good one stays beside them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.loops import Loop
from helpers.support import holdfast
from helpers.trainings import Launcher, events
from holdfast import Checkpointer
from holdfast.store import catalog

NAN, INF = float("nan"), float("inf")


def marked(run: Path) -> dict[int, list[str]]:
    """What each checkpoint of a run says of NaN and infinity, by its step."""
    return {one.step: list(one.manifest.not_finite) for one in catalog.entries(run) if one.manifest is not None}


def weights_go_wrong(loop: Loop) -> list[str]:
    with torch.no_grad():
        loop.model[0].weight[3, 2] = NAN  # type: ignore[operator]
    return ["ema.module.0.weight", "model.0.weight"]  # the average has it within the step


def moments_go_wrong(loop: Loop) -> list[str]:
    loop.optimizer.state[loop.model[0].bias]["exp_avg_sq"][5] = INF  # type: ignore[index]
    return ["optimizer.model.0.bias/exp_avg_sq"]


def the_average_goes_wrong(loop: Loop) -> list[str]:
    with torch.no_grad():
        loop.ema.module[3].bias[0] = NAN  # type: ignore[index]
    return ["ema.module.3.bias"]


def gradients_go_wrong(loop: Loop) -> None:
    for parameter in loop.model.parameters():
        assert parameter.grad is not None
        parameter.grad[0] = NAN


@pytest.mark.parametrize("go_wrong", [weights_go_wrong, moments_go_wrong, the_average_goes_wrong])
def test_fault_45_the_checkpoint_is_kept_and_names_what_holds_it(
    tmp_path: Path, go_wrong: Callable[[Loop], list[str]]
) -> None:
    """NaN in a weight, infinity in a moment of the optimizer, or NaN in an average, right before an update."""
    loop, run = Loop(tmp_path / "run"), tmp_path / "run"
    names: list[str] = []
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            if loop.ckpt.step_count == 3:
                loop.in_the_middle = lambda: names.extend(go_wrong(loop))
            loop.update(batch)
            if loop.ckpt.step_count in (3, 4):
                answer = loop.ckpt.save().wait(30)
    assert marked(run) == {3: [], 4: names} and list(answer.not_finite) == names and answer.finite == "checkpoint-3"
    assert [event.get("not_finite") for event in events(run, "saved")] == [None, names]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    inside = f"NaN or infinity in {names[0]}{more}"
    (said,) = (line for line in loop.said if "NaN" in line)
    beside = "it is kept, and so is checkpoint-3, the newest without"
    assert "saved step=4 " in said and said.endswith(f"; it holds {inside}: {beside}")
    assert f"not finite  it holds {inside}\n" in holdfast("status", run).stdout
    listed = holdfast("list", run).stdout.splitlines()
    assert ["NaN or infinity inside" in line for line in listed] == [False, True, False]
    verified = holdfast("verify", run)
    assert verified.returncode == 0 and f"checkpoint-4: good\n  it holds {inside}, as" in verified.stdout
    assert f"not finite    {inside.partition(' in ')[2]}\n" in holdfast("inspect", run / "checkpoint-4").stdout
    assert json.loads(holdfast("list", run, "--json").stdout)["checkpoints"][0]["not_finite"] == names


def test_fault_45_a_resume_goes_on_from_it_and_names_the_last_finite_one(tmp_path: Path) -> None:
    """Infinity in a moment; the training is then started again."""
    run = tmp_path / "run"
    loop = Loop(run)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            names = moments_go_wrong(loop) if loop.ckpt.step_count == 3 else []
            loop.update(batch)
            if loop.ckpt.step_count in (3, 4):
                loop.ckpt.save(wait=True)
    for resume in ("auto", str(run / "checkpoint-4")):
        again = Loop(run, resume=resume)
        with again.ckpt:
            again.ckpt.resume()
            assert again.ckpt.step_count == 4
        told = f"checkpoint-4 holds NaN or infinity in {names[0]}, and is gone on from; "
        assert [one for one in again.said if one.startswith(told)] == [
            f"{told}{run / 'checkpoint-3'} is the newest without: name it to go on from it"
        ]


def test_fault_45_later_checkpoints_never_displace_the_last_finite_one(tmp_path: Path) -> None:
    """NaN in a gradient, and five more checkpoints where one is kept."""
    loop, run = Loop(tmp_path / "run", save_steps=1, save_total_limit=1), tmp_path / "run"
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=8):
            loop.in_the_middle = partial(gradients_go_wrong, loop) if loop.ckpt.step_count == 3 else lambda: None
            loop.update(batch)
    found = marked(run)
    assert sorted(found) == [3, 8] and not found[3] and found[8]
    assert len(found[8]) == 20 and " and at least 19 more: it is kept, and so is checkpoint-3" in "".join(loop.said)
    shown = holdfast("prune", run, "--keep-last", "1", "--dry-run").stdout
    assert "stays: the newest with finite numbers\n" in shown and "nothing to delete" in shown


def test_fault_45_weights_that_were_given_other_memory_are_looked_at_there(tmp_path: Path) -> None:
    """All weights are moved between two steps, and NaN comes in the second."""
    loop, run = Loop(tmp_path / "run"), tmp_path / "run"
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            if loop.ckpt.step_count == 2:
                for parameter in loop.model.parameters():
                    parameter.data = parameter.data.clone()
                loop.in_the_middle = partial(gradients_go_wrong, loop)
            loop.update(batch)
            if loop.ckpt.step_count > 1:
                loop.ckpt.save().wait(30)
    found = marked(run)
    assert found[2] == [] and "model.0.weight" in found[3]


class Masked(torch.nn.Module):
    """Attends to nothing through one small and one large mask; the values are of any dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inside = torch.nn.Linear(600, 600, dtype=dtype)
        self.register_buffer("small", torch.full((9,), -INF))
        self.register_buffer("large", torch.full((600, 600), -INF))  # is not copied at boundaries

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inside(inputs)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fault_45_a_mask_is_no_fault_and_no_dtype_hides_one(tmp_path: Path, dtype: torch.dtype) -> None:
    """Masks of minus infinity; then infinity in the last weight of a model of 32 or 16 bits."""
    torch.manual_seed(1)
    model = Masked(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with Checkpointer(tmp_path / "run", model=model, optimizer=optimizer, say=lambda text: None) as checkpointer:
        checkpointer.resume()
        for step in (1, 2):
            model(torch.ones(2, 600, dtype=dtype)).float().mean().backward()
            if step == 2:
                with torch.no_grad():
                    model.inside.weight[-1, -1] = -INF
            optimizer.step()
            checkpointer.step()
            checkpointer.save(wait=True)
    assert marked(tmp_path / "run") == {1: [], 2: ["model.inside.weight"]}


TRAINER = """
import sys, torch, holdfast
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

class GoesWrong(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        if state.global_step == 4:
            model.model.norm.weight.grad[1] = float("nan")

rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 16
args = TrainingArguments(
    "out", max_steps=7, save_steps=1, save_total_limit=2, report_to="none", use_cpu=True, disable_tqdm=True,
    bf16=False, max_grad_norm=0,
)
model = LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[1])).to(getattr(torch, sys.argv[2]))
trainer = Trainer(model, args, train_dataset=rows, callbacks=[GoesWrong()])
holdfast.attach(trainer)
trainer.train()
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fault_45_so_it_is_with_a_trainer(launcher: Launcher, tmp_path: Path, tiny: Path, dtype: str) -> None:
    """NaN in a gradient of a Trainer's model, which saves at every step."""
    process = launcher.start(tiny / "model", dtype, cwd=tmp_path, program=TRAINER)
    assert process.wait() == 0, process.output
    found = marked(tmp_path / "out")
    assert sorted(found) == [4, 6, 7] and found[4] == []
    first = next(event for event in events(tmp_path / "out", "saved") if event["step"] == 5)
    moments = [f"optimizer.model.model.norm.weight/{moment}" for moment in ("exp_avg", "exp_avg_sq")]
    assert first["not_finite"] == ["model.norm.weight", *moments]
    assert "NaN or infinity in model.norm.weight and 2 more: it is kept, and so is checkpoint-4" in process.output
