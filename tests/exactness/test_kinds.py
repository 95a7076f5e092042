"""Each kind of training that a plain loop may be ends as if it had never been killed, resumed in another process.

Every training is a process of its own, forked from one that has trained nothing.
"""

import hashlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from holdfast import Checkpointer

UNTIL = 12  # an epoch has 7 batches
SAVED = 5


class Kind:
    """One kind of training: what is registered, and what an update is. This one is the plainest."""

    accumulate: int | None = None

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.data: Any = DataLoader(TensorDataset(torch.randn(56, 8), torch.randn(56, 1)), batch_size=8, shuffle=True)
        self.model: Any = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.make()

    def make(self) -> None:
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}

    def loss(self, batch: Any) -> Any:
        rows, wanted = batch
        return ((self.model(rows) - wanted) ** 2).mean()

    def update(self, batch: Any, step: int) -> float:
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.item())

    def check(self, checkpoint: Path) -> None:
        """What else is to be said of the checkpoint."""


class Scaled(Kind):
    """AMP. Two updates are skipped, because their gradients overflow; the save is between them."""

    def make(self) -> None:
        super().make()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.parts |= {"scaler": self.scaler, "scheduler": self.scheduler}

    def update(self, batch: Any, step: int) -> float:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = self.loss(batch)
        overflows = step in (SAVED - 2, SAVED + 2)
        self.scaler.scale(loss * float("inf") if overflows else loss).backward()
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        assert (self.scaler.get_scale() < before) == overflows
        if not overflows:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.item())

    def check(self, checkpoint: Path) -> None:
        assert json.loads((checkpoint / "scaler.json").read_text())["state"]


class Compiled(Kind):
    """A model that torch.compile has wrapped: in the files its names are those of the user's module."""

    def make(self) -> None:
        self.model = torch.compile(self.model, backend="eager")
        super().make()

    def check(self, checkpoint: Path) -> None:
        for file in ("model.safetensors", "optimizer.safetensors", "optimizer.json", "model.json"):
            assert b"_orig_mod" not in (checkpoint / file).read_bytes()
        assert list(described(checkpoint / "model.safetensors")) == ["0.bias", "0.weight", "3.bias", "3.weight"]


class Adversaries(Kind):
    """Two models, and two optimizers that both step before a boundary."""

    def make(self) -> None:
        self.critic = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.other = torch.optim.RMSprop(self.critic.parameters(), lr=1e-2)
        self.parts = {
            "generator": self.model,
            "critic": self.critic,
            "optimizer_g": self.optimizer,
            "optimizer_c": self.other,
        }

    def update(self, batch: Any, step: int) -> float:
        rows, real = batch
        judged: Any = (self.critic(self.model(rows).detach()) - self.critic(real)).mean()
        judged.backward()
        self.other.step()
        self.other.zero_grad()
        fooled = -self.critic(self.model(rows)).mean()
        fooled.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.other.zero_grad()
        return float(judged.item()) + float(fooled.item())


class Average:
    """An average of weights as people write it: some numbers, and a dictionary of tensors."""

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        self.updates = 0
        self.in_place = in_place
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(0.9, self.updates / (self.updates + 3))
        for name, tensor in model.named_parameters():
            kept = self.shadow[name] if self.in_place else self.shadow[name].clone()
            self.shadow[name] = kept.lerp_(tensor, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, tensor in state["shadow"].items():
            self.shadow[name].copy_(tensor)


class Averaged(Kind):
    """An average of the weights, one of its tensors so large that it is not copied at every boundary."""

    in_place = True

    def make(self) -> None:
        self.model = nn.Sequential(nn.Linear(8, 2100), nn.Tanh(), nn.Dropout(0.2), nn.Linear(2100, 1))
        super().make()
        self.ema = Average(self.model, in_place=self.in_place)
        self.parts["ema"] = self.ema

    def update(self, batch: Any, step: int) -> float:
        loss = super().update(batch, step)
        self.ema.update(self.model)
        return loss


class AveragedAnew(Averaged):
    """One that makes new tensors at every update."""

    in_place = False


class Tied(Kind):
    """Words in and out by one weight; a layer that never learns, and one that does from the fourth step on."""

    def make(self) -> None:
        self.model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False))
        self.model[3].weight = self.model[0].weight
        self.model[1].requires_grad_(False)
        self.model[2].requires_grad_(False)
        super().make()

    def loss(self, batch: Any) -> Any:
        words = batch[0].mul(10).long().remainder(20)
        return nn.functional.cross_entropy(self.model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())

    def update(self, batch: Any, step: int) -> float:
        if step == 3:
            self.model[2].requires_grad_(True)
        return super().update(batch, step)

    def check(self, checkpoint: Path) -> None:
        assert "3.weight" not in described(checkpoint / "model.safetensors"), "one weight, stored once"


class Float32Momentum(torch.optim.Optimizer):
    """For weights of half the bits: what it keeps of them is in full."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["full"] = parameter.float()
                    state["momentum"] = torch.zeros_like(state["full"])
                state["momentum"].mul_(0.9).add_(parameter.grad.float())
                state["full"].sub_(state["momentum"], alpha=group["lr"])
                parameter.copy_(state["full"])


class HalfTheBits(Kind):
    """bf16 weights, and an optimizer whose state is fp32: torch's own way to load it would round it to bf16."""

    def make(self) -> None:
        self.model = self.model.bfloat16()
        self.optimizer = Float32Momentum(self.model.parameters())
        self.parts = {"model": self.model, "optimizer": self.optimizer}

    def loss(self, batch: Any) -> Any:
        return super().loss([one.bfloat16() for one in batch])

    def check(self, checkpoint: Path) -> None:
        assert set(described(checkpoint / "model.safetensors").values()) == {"BF16"}
        assert set(described(checkpoint / "optimizer.safetensors").values()) == {"F32"}


class OneGroupMore(Kind):
    """A layer that thaws at the third step, and gets a parameter group of its own then."""

    def make(self) -> None:
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model[3].parameters(), lr=1e-2)
        self.parts = {"model": self.model, "optimizer": self.optimizer}

    def update(self, batch: Any, step: int) -> float:
        if step == 3:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 3e-3})
        return super().update(batch, step)


class ComplexAndSparse(Kind):
    """A complex weight, and gradients that are sparse."""

    def make(self) -> None:
        self.model = nn.Embedding(20, 8, sparse=True)
        self.filter = nn.ParameterList([torch.randn(8, dtype=torch.complex64)])
        self.optimizer = torch.optim.SparseAdam(self.model.parameters(), lr=1e-2)
        self.other = torch.optim.Adam(self.filter.parameters(), lr=1e-2)
        self.parts = {"model": self.model, "filter": self.filter, "optimizer": self.optimizer, "other": self.other}

    def loss(self, batch: Any) -> Any:
        words = batch[0].mul(10).long().remainder(20)
        return ((torch.fft.fft(self.model(words)) * self.filter[0]).abs() - 1).square().mean()

    def update(self, batch: Any, step: int) -> float:
        loss = super().update(batch, step)
        self.other.step()
        self.other.zero_grad()
        return loss


class Endless(IterableDataset[Any]):
    """Rows that are made as they are asked for. It knows its own place; an epoch is 28 of them."""

    def __init__(self) -> None:
        self.made = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.made += 1
            draws = torch.Generator().manual_seed(self.made)
            yield torch.randn(8, generator=draws), torch.randn(1, generator=draws)
            if self.made % 28 == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]


class Streamed(Kind):
    """Data that can only be gone through, and tells where it stands."""

    def make(self) -> None:
        super().make()
        self.data = DataLoader(Endless(), batch_size=4)


class Accumulated(Kind):
    """Three batches for each update; what is left at the end of an epoch makes a shorter one."""

    accumulate = 3

    def update(self, batch: Any, step: int) -> float:
        *before, last = batch
        for one in before:
            self.loss(one).backward()
        return super().update(last, step) + len(batch)


KINDS = [
    Kind,
    Scaled,
    Compiled,
    Adversaries,
    Averaged,
    AveragedAnew,
    Tied,
    HalfTheBits,
    OneGroupMore,
    ComplexAndSparse,
    Streamed,
    Accumulated,
]


def described(file: Path) -> dict[str, str]:
    """The tensors of a file, by name: their types."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in sorted(opened.keys())}


def digest(value: Any) -> str:
    """Of a state of any form: all bits, types and names."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{value.dtype}{list(value.shape)}".encode() + raw).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256(repr([(key, digest(inner)) for key, inner in value.items()]).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return hashlib.sha256(repr(list(map(digest, value))).encode()).hexdigest()
    return repr(value)


def run_through(kind: type[Kind], run: Path, after: Callable[[Checkpointer], None]) -> dict[str, Any]:
    """Trains to the end, from wherever the run was left: what training leaves behind."""
    one = kind()
    losses = []
    with Checkpointer(run, data=one.data, say=lambda text: None, **one.parts) as ckpt:
        for batch in ckpt.batches(until=UNTIL, accumulate=one.accumulate):
            losses.append(one.update(batch, ckpt.step_count).hex())
            ckpt.step()
            after(ckpt)
    state = {name: digest(part.state_dict()) for name, part in one.parts.items()}
    learns = [parameter.requires_grad for parameter in one.model.parameters()]
    return {"losses": losses, "state": state, "learns": learns, "random": digest(torch.get_rng_state())}


def saves_and_dies(ckpt: Checkpointer) -> None:
    if ckpt.step_count == SAVED:
        ckpt.save(wait=True)
    if ckpt.step_count == SAVED + 1:
        os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(kind: type[Kind], run: Path, after: Callable[[Checkpointer], None] = lambda ckpt: None) -> Any:
    """What a training in a process of its own leaves; None where it was killed."""
    left = run.with_suffix(".json")
    child = os.fork()
    if child == 0:
        try:
            left.write_text(json.dumps(run_through(kind, run, after)))
        except BaseException:  # noqa: BLE001 - the parent learns of everything by the exit code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return json.loads(left.read_text()) if code == 0 else None


@pytest.fixture(scope="module", autouse=True)
def what_optimizers_import() -> None:
    """It takes seconds, which each child would spend anew."""
    import torch._dynamo  # noqa: F401


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_ends_as_if_never_killed(tmp_path: Path, kind: type[Kind]) -> None:
    whole = in_a_process(kind, tmp_path / "whole")
    assert in_a_process(kind, tmp_path / "cut", saves_and_dies) is None
    rest = in_a_process(kind, tmp_path / "cut")
    assert rest["losses"] == whole["losses"][SAVED:]
    assert {**rest, "losses": []} == {**whole, "losses": []}
    kind().check(tmp_path / "cut" / f"checkpoint-{SAVED}")
