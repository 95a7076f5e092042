"""The settings of a plain loop: what its script gives to its parts and to `batches`, recorded and followed."""

from collections.abc import Mapping
from typing import Any

from holdfast.state import adapters
from holdfast.state.hyperparameters import Hyperparameters
from holdfast.state.layered_optimizer import OptimizerPartOfAnyKind
from holdfast.state.model import ModelPart
from holdfast.state.recorded_settings import Change, changes
from holdfast.state.registry import Parts
from holdfast.state.stateful import StatefulPart


class LoopSettings:
    """The settings of a plain loop, as they are before anything is restored.

    Args:
        parts: Models, optimizers and the rest.
        keep: Keeps those of a checkpoint, where that can be done.
    """

    def __init__(self, parts: Parts, *, keep: bool) -> None:
        self._keep = keep
        models = [part for part in parts if isinstance(part, ModelPart)]
        names = {
            id(tensor): f"{model.name}.{name}" for model in models for name, tensor in model.named_parameters().items()
        }
        optimizers = {part.name: part.optimizer for part in parts if isinstance(part, OptimizerPartOfAnyKind)}
        stateful = {part.name: part.stateful for part in parts if isinstance(part, StatefulPart)}
        self._hyperparameters = Hyperparameters(
            optimizers,
            {name: each for name, each in stateful.items() if name not in optimizers},
            names,
        )
        configured = {model.name: adapters.configurations(model.module) for model in models}
        self._adapters = {name: content for name, content in configured.items() if content}
        self._batches: dict[str, Any] | None = None
        self._before: Mapping[str, Any] = {}

    def record(self) -> dict[str, Any]:
        """Returns them as JSON, for the manifest."""
        return {
            "parts": self._hyperparameters.record(),
            "adapters": self._adapters,
            "batches": self._batches or {},
        }

    def follow(self, recorded: Mapping[str, Any]) -> list[Change]:
        """Puts what the script has changed in the place of what was restored; returns what that is.

        Args:
            recorded: What `record` gave when the checkpoint was made.

        Raises:
            CheckpointError: A schedule cannot be stepped as often as before.
        """
        self._before = recorded
        parts = recorded.get("parts")
        parts = parts if isinstance(parts, Mapping) else {}
        differing = (self._hyperparameters.keep if self._keep else self._hyperparameters.follow)(parts)
        configured = recorded.get("adapters")
        configured = configured if isinstance(configured, Mapping) else {}
        for model, present in self._adapters.items():
            differing += adapters.changes(configured.get(model), present, model)
        return differing

    def begin_batches(self, arguments: Mapping[str, int | None]) -> list[Change]:
        """Takes in the first arguments of `batches`; returns what is otherwise than when the checkpoint was made."""
        if self._batches is not None:
            return []
        self._batches = dict(arguments)
        return list(changes(self._before.get("batches"), arguments))
