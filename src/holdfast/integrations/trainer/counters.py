"""The counters that a Trainer forgets on resume: the sums between two lines of its log, and of the whole training.

Without them the next logged loss, and the loss of the whole training, are others than they would have been. Read off
transformers 5.23 (`_inner_training_loop` sets them anew), TRL 1.16 (`SFTTrainer.log`) and axolotl 0.19.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Trainer

from holdfast.errors import CheckpointError
from holdfast.integrations.trainer import token_counts, trl_state

_OF_SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")


class Sums(NamedTuple):
    """The sums of a Trainer's losses."""

    since_log: torch.Tensor
    total: float
    last_logged_step: int
    initial_step: int

    def encode(self) -> dict[str, Any]:
        """Returns them as JSON."""
        return {
            "tr_loss": float(self.since_log).hex(),
            "total_loss": float(self.total).hex(),
            "last_logged_step": self.last_logged_step,
            "initial_step": self.initial_step,
        }


@dataclass(frozen=True)
class Counters:
    """The counters at a boundary, taken without waiting for a device.

    TRL's lists are only ever added to, or left for new ones, so their lengths are enough.
    """

    sums: "Sums | None"
    """None in a version of transformers that keeps them elsewhere."""
    model_training: bool
    elapsed: float
    trl_metrics: tuple[tuple[str, Sequence[Any], int], ...]
    trl_tokens: float
    tokens: Mapping[str, torch.Tensor]

    def encode(self) -> dict[str, Any]:
        """Returns the counters as JSON, floats in hexadecimal so that they return bit for bit."""
        tokens = {"tokens": token_counts.encode(self.tokens)} if self.tokens else {}
        return {
            **({} if self.sums is None else self.sums.encode()),
            "elapsed_seconds": round(self.elapsed, 3),
            "model_training": self.model_training,
            "trl_metrics": {name: [_hex(v) for v in values[:count]] for name, values, count in self.trl_metrics},
            "trl_tokens": self.trl_tokens,
            **tokens,
        }


def record(trainer: Trainer, elapsed: float) -> Counters:
    """Records the counters.

    Args:
        trainer: The trainer, at a boundary.
        elapsed: Seconds of training so far, over all resumes.
    """
    return Counters(
        _sums(trainer),
        trainer.model.training,
        elapsed,
        tuple((name, values, len(values)) for name, values in trl_state.metrics(trainer).items()),
        getattr(trainer, "_total_train_tokens", 0),
        token_counts.record(trainer.state),
    )


def restore(trainer: Trainer, entry: Mapping[str, Any]) -> float:
    """Puts the counters back, right before the first step; returns the seconds of training that were before.

    Args:
        trainer: The trainer.
        entry: The output of `Counters.encode`.
    """
    if _has_sums(trainer) and "tr_loss" in entry:
        trainer._tr_loss = torch.tensor(float.fromhex(entry["tr_loss"]), device=trainer.args.device)
        trainer._total_loss_scalar = float.fromhex(entry["total_loss"])
        trainer._globalstep_last_logged = entry["last_logged_step"]
        if hasattr(trainer, "_initial_global_step"):
            trainer._initial_global_step = entry["initial_step"]
    metrics = {name: [float.fromhex(value) for value in values] for name, values in entry["trl_metrics"].items()}
    trl_state.restore_metrics(trainer, metrics)
    if hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = entry["trl_tokens"]
    # What of the step is still to be done is logged as training or as evaluation by the model's mode alone.
    if (mode := bool(entry.get("model_training", True))) != trainer.model.training:
        trainer.model_wrapped.train(mode)
    token_counts.restore(trainer.state, entry.get("tokens", {}))
    return float(entry["elapsed_seconds"])


def sum_of_losses(trainer: Trainer) -> torch.Tensor | None:
    """Returns the sum since the last line of the log; None in a version of transformers that keeps it elsewhere."""
    return trainer._tr_loss if _has_sums(trainer) else None


def _has_sums(trainer: Trainer) -> bool:
    return all(hasattr(trainer, name) for name in _OF_SUMS)


def _sums(trainer: Trainer) -> Sums | None:
    if not _has_sums(trainer):
        return None
    # Before 5.19 the loss of the whole training is divided by all of its steps.
    initial_step = getattr(trainer, "_initial_global_step", 0)
    return Sums(
        trainer._tr_loss.detach().clone(), trainer._total_loss_scalar, trainer._globalstep_last_logged, initial_step
    )


def _hex(number: Any) -> str:
    return float(number.detach() if isinstance(number, torch.Tensor) else number).hex()


@contextmanager
def reading_boundary(checkpoint: Path | str) -> Iterator[None]:
    """Turns errors into one of the checkpoint: what it says of a boundary was checked to be JSON, and no further."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint}: its manifest does not say of the boundary what a Trainer goes on from ({error!r})",
            hint="it was changed since it was written, or was written by another version; resume from another one",
        ) from error
