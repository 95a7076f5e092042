"""Snapshots beside the truth: a training that keeps a copy of its state on the card at each call of a save.

What the checkpoint holds afterwards is compared with that copy, tensor by tensor and bit by bit.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open

from benchmarks.gpu.bench import Bench
from holdfast import Checkpointer, errors
from holdfast.engine.pending_save import PendingSave

_WIDTH = 2048
_LIMIT_SECONDS = 60.0


@dataclass
class Toy:
    """Linear layers whose forward pass is as short as can be: the next update comes while the last state is copied.

    Args:
        model: What trains.
        optimizer: Its optimizer.
        batch: What it is given.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch: torch.Tensor

    @classmethod
    def make(cls, device: str, size: int, width: int = _WIDTH, **optimizer: Any) -> "Toy":
        """Returns one whose state has about so many bytes."""
        torch.manual_seed(0)
        layers = max(2, round(size / (12 * width * width)))
        model = torch.nn.Sequential(*(torch.nn.Linear(width, width, device=device) for _ in range(layers)))
        chosen = torch.optim.AdamW(model.parameters(), lr=1e-3, **optimizer)
        return cls(model, chosen, torch.randn(8, width, device=device))

    def advance(self) -> torch.Tensor:
        """Makes one update, and returns the loss."""
        loss: torch.Tensor = self.model(self.batch).square().mean()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns every tensor of the state by its name in a checkpoint's files."""
        named: dict[str, torch.Tensor] = {f"model {name}": t for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer model.{name}/{key}"] = value
        return named


@dataclass
class Outcome:
    """What became of the saves.

    Args:
        saved: How many were compared.
        wrong: The names of the tensors that differed, a list for each save that had some.
        failed: What the saves said that failed.
        said: The lines for the user.
        capture: `live`, or why not, as `holdfast status` has it.
    """

    saved: int = 0
    wrong: list[list[str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    capture: str = ""

    @property
    def is_good(self) -> bool:
        """True where all were right, there were some, and they were read while training went on."""
        return self.saved > 0 and not self.wrong and not self.failed and self.capture in ("", "live")

    def text(self) -> str:
        """Returns it as it is printed."""
        parts = [f"{self.saved} saves, {len(self.wrong)} wrong" if self.wrong else f"{self.saved} saves bit-equal"]
        parts += [f"wrong: {', '.join(names[:3])} and {max(0, len(names) - 3)} more" for names in self.wrong[:2]]
        parts += [f"failed: {text[:160]}" for text in self.failed[:2]]
        if self.capture not in ("", "live"):
            parts.append(f"capture: {self.capture}")
        return "; ".join(parts)


class Shadowed:
    """A run in which saves are asked for one after the other, and each is compared.

    Args:
        toy: What trains.
        run: The run directory.
        parts: Further parts of the checkpoint.
    """

    def __init__(self, toy: Toy, run: Path, **parts: Any) -> None:
        self.toy = toy
        self.outcome = Outcome()
        self._truth: Mapping[str, torch.Tensor] = {}
        self._pending: PendingSave | None = None
        self.ckpt = Checkpointer(
            run,
            model=toy.model,
            optimizer=toy.optimizer,
            save_at_end=False,
            resume=False,
            save_on_exception=False,
            say=self.outcome.said.append,
            **parts,
        )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Encloses the training."""
        with self.ckpt:
            self.ckpt.resume()
            yield
            self.settle()
            self.outcome.capture = self.ckpt._engine.run.status.now.capture

    def reach(self, loss: torch.Tensor | None = None) -> None:
        """Comes to a boundary, and asks for a save where none is on its way."""
        self.ckpt.step(loss=loss)
        if self._pending is not None and self._pending.answer is not None:
            self.settle()
        if self._pending is None:
            # In the stream of training, behind the update and before the next.
            self._truth = {name: tensor.detach().clone() for name, tensor in self.toy.tensors().items()}
            self._pending = self.ckpt.save()

    def settle(self) -> None:
        """Waits for the save that is on its way, and compares it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            answer = pending.wait(_LIMIT_SECONDS)
        except errors.HoldfastError as error:
            self.outcome.failed.append(str(error))
            return
        self.outcome.saved += 1
        if wrong := different(Path(answer.path), self._truth):
            self.outcome.wrong.append(wrong)
        shutil.rmtree(answer.path)


def different(checkpoint: Path, truth: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the names of the tensors that a checkpoint lacks or has otherwise."""
    wrong = []
    with ExitStack() as opened:
        files: dict[str, Any] = {}
        names: dict[str, set[str]] = {}
        for name, tensor in truth.items():
            part, inside = name.split(" ", 1)
            if part not in files:
                files[part] = opened.enter_context(safe_open(checkpoint / f"{part}.safetensors", "pt"))
                names[part] = set(files[part].keys())
            if inside not in names[part]:
                wrong.append(f"{name} (not there)")
                continue
            stored = files[part].get_tensor(inside).to(tensor.device)
            if stored.shape != tensor.shape or not torch.equal(_bits(stored), _bits(tensor)):
                wrong.append(name)
    return wrong


def run(
    bench: Bench,
    name: str,
    toy: Toy,
    saves: int,
    advance: Callable[[], torch.Tensor | None] | None = None,
    *,
    reads_loss: bool = False,
    **parts: Any,
) -> Outcome:
    """Trains until so many saves were compared.

    Args:
        bench: The setting.
        name: The run directory's name.
        toy: What trains.
        saves: How many saves.
        advance: Makes one update; the toy's own if not given.
        reads_loss: Whether the loop waits for its loss in every step.
        parts: Further parts of the checkpoint.
    """
    step = advance or toy.advance
    shadowed = Shadowed(toy, bench.folder / name, **parts)
    outcome = shadowed.outcome
    with shadowed.opened():
        # One that fails each time would go on for ever.
        while outcome.saved + len(outcome.failed) < saves:
            loss = step()
            if reads_loss and loss is not None:
                loss.item()
            shadowed.reach(loss)
    shutil.rmtree(bench.folder / name, ignore_errors=True)
    return outcome


@contextmanager
def card_of_paper(bench: Bench, policy: str = "lazy") -> Iterator[None]:
    """Encloses a dry run in which tensors of the CPU are taken for a card's, with the tests' device of paper."""
    if not bench.is_dry:
        yield
        return
    from helpers.paper import Paper

    paper = Paper(policy, in_step=True)
    with (
        mock.patch("holdfast.engine.capturing.device_in_use", lambda: paper, create=True),
        mock.patch("holdfast.loop.restore.device_in_use", lambda: paper, create=True),
    ):
        yield


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
