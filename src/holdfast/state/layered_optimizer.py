"""An optimizer of several layers, each with a state of its own: wrappers, what is inside, what they keep beside."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from holdfast.errors import CheckpointError
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.optimizer_attributes import AttributesPart
from holdfast.state.optimizer_layers import Layer, layers_of
from holdfast.state.part import LoadedTensors, Stored
from holdfast.state.sharding import ShardRange
from holdfast.state.stated_optimizer import StatedOptimizerPart
from holdfast.state.values import renamed

KIND = "layered_optimizer"
_Layer = OptimizerPart | StatedOptimizerPart | AttributesPart
# An outer layer that is given its state may cast or replace what is inside.
_ORDER_OF_RESTORING = ("stated", "extras", "groups", "attributes")


def optimizer_part(name: str, registered: object, models: Sequence[ModelPart]) -> "OptimizerPartOfAnyKind | None":
    """Makes the part for an optimizer, from what its layers say of themselves; None where none gives its state.

    Raises:
        UnsupportedError: A state holds something that cannot be written.
    """
    layers = layers_of(registered)
    forms = [layer.form for layer in layers]
    if forms == ["groups"]:
        return OptimizerPart(name, layers[0].optimizer, models)
    if forms == ["stated"]:
        return StatedOptimizerPart(name, layers[0].optimizer, models)
    return LayeredOptimizerPart(name, registered, layers, models) if {"groups", "stated"} & set(forms) else None


class LayeredOptimizerPart:
    """An optimizer of several layers as a part of the state.

    Where only the first has a state its form is that of a plain optimizer.

    Args:
        name: The part's name.
        registered: The optimizer, the outermost layer.
        layers: Its layers.
        models: The registered models; they know the names of its parameters.
    """

    def __init__(self, name: str, registered: object, layers: Sequence[Layer], models: Sequence[ModelPart]) -> None:
        self.name = name
        self.registered = registered
        self._class = type(registered).__qualname__
        first = next(layer for form in ("groups", "stated") for layer in layers if layer.form == form)
        self._layers: dict[str, _Layer] = {"": _part_of(name, first, models)}
        order = {"": _ORDER_OF_RESTORING.index(first.form)}
        for layer in layers:
            if layer is not first:
                key = f"{layer.form}:{layer.path}"
                self._layers[key] = _part_of(name, layer, models)
                order[key] = _ORDER_OF_RESTORING.index(layer.form)
        self._order = sorted(order, key=order.__getitem__)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that has the groups."""
        first = self._layers[""]
        assert not isinstance(first, AttributesPart)
        return first.optimizer

    def unregistered(self) -> list[str]:
        """Returns lines where layers have parameters of no registered model."""
        lines = [part.unregistered() for part in self._layers.values() if not isinstance(part, AttributesPart)]
        return list(dict.fromkeys(line for some in lines for line in some))

    def attributes(self) -> list[str]:
        """Returns the names of the attributes that are state."""
        parts = (part for part in self._layers.values() if isinstance(part, AttributesPart))
        return [name for part in parts for name in part.record()]

    def look(self) -> None:
        """Looks for tensors that are others by now."""
        for part in self._layers.values():
            if isinstance(part, OptimizerPart):
                part.look()

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors."""
        return tuple([part.structure() for part in self._layers.values()])

    def live(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of all layers."""
        layers = self._layers.items()
        return {_joined(key, name): tensor for key, part in layers for name, tensor in part.live().items()}

    def record(self) -> list[Any]:
        """Records the small state of each layer."""
        return [part.record() for part in self._layers.values()]

    def encode(self, recorded: Sequence[Any]) -> Stored:
        """Returns what was recorded, as tensors and JSON."""
        encoded = {key: part.encode(record) for (key, part), record in zip(self._layers.items(), recorded, strict=True)}
        main = encoded.pop("")
        others = {key: stored for key, stored in encoded.items() if _says_something(stored)}
        if not others:
            return main
        tensors = dict(main.tensors)
        layers = {}
        for key, stored in others.items():
            tensors |= {_joined(key, name): tensor for name, tensor in stored.tensors.items()}
            layers[key] = renamed(stored.rest, partial(_joined, key))
        return Stored(tensors, {"kind": KIND, "class": self._class, "first": main.rest, "layers": layers})

    def shard_range(self, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of this process's shard, as the layer knows it."""
        for key, part in self._layers.items():
            if key and name.startswith(_joined(key, "")):
                return part.shard_range(name.removeprefix(_joined(key, "")), shape)
        return self._layers[""].shard_range(name, shape)

    def memory(self) -> dict[str, torch.Tensor]:
        """Returns what this process has of the state."""
        layers = self._layers.items()
        return {_joined(key, name): tensor for key, part in layers for name, tensor in part.memory().items()}

    def neighbors(self, rest: Any) -> dict[str, torch.Tensor]:
        """Returns those of all layers."""
        split = self._split(Stored({}, rest))
        layers = ((key, part) for key, part in self._layers.items() if key in split)
        return {
            _joined(key, n): tensor for key, part in layers for n, tensor in part.neighbors(split[key].rest).items()
        }

    def problems(self, stored: Stored) -> list[str]:
        """Returns the reasons why a checkpoint does not fit, of all layers."""
        split = self._split(stored)
        lines = [line for key, part in self._layers.items() if key in split for line in part.problems(split[key])]
        return [*self._misfits(split), *lines]

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts each layer back that the checkpoint has, outer ones first."""
        split = self._split(stored)
        misfits = self._misfits(split)
        if strict and (problems := self.problems(stored)):
            raise CheckpointError("; ".join(problems))
        notes = [f"{line}: left out" for line in misfits]
        for key in self._order:
            if key in split:
                notes += self._layers[key].restore(split[key], strict=strict)
        return notes

    def _misfits(self, split: Mapping[str, Stored]) -> list[str]:
        return [
            f"{self.name}: the checkpoint has a state of {_shown(key)}, and there is none here"
            for key in split
            if key not in self._layers
        ]

    def _split(self, stored: Stored) -> dict[str, Stored]:
        """Returns the content of each layer; all is that of the first where the checkpoint has no layers."""
        rest = stored.rest
        if not isinstance(rest, dict) or rest.get("kind") != KIND:
            return {"": stored}
        layers = rest.get("layers")
        if not isinstance(layers, dict):
            raise CheckpointError(f"{self.name}: what the checkpoint says of its layers cannot be read")
        split: dict[str, Stored] = {}
        taken: set[str] = set()
        for key, inner in layers.items():
            prefix = _joined(key, "")
            names = [name for name in stored.tensors if name.startswith(prefix)]
            taken.update(names)
            split[key] = Stored(
                _selected(stored.tensors, {name: name.removeprefix(prefix) for name in names}),
                renamed(inner, partial(_without, prefix)),
            )
        own = {name: name for name in stored.tensors if name not in taken}
        return {"": Stored(_selected(stored.tensors, own), rest.get("first")), **split}


OptimizerPartOfAnyKind = OptimizerPart | StatedOptimizerPart | LayeredOptimizerPart
"""The parts that optimizers are."""


def _part_of(name: str, layer: Layer, models: Sequence[ModelPart]) -> _Layer:
    if layer.form == "attributes":
        return AttributesPart(name, layer.optimizer, models)
    if layer.form == "groups":
        return OptimizerPart(name, layer.optimizer, models)
    return StatedOptimizerPart(name, layer.optimizer, models, extras=layer.form == "extras")


def _joined(key: str, name: str) -> str:
    return f"{key}:{name}" if key else name


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _shown(key: str) -> str:
    form, _, path = key.partition(":")
    return f"{path or 'the optimizer'} ({form})"


def _says_something(stored: Stored) -> bool:
    """Tells if a layer has a state at all: one without needs no word, and an older reader misses nothing."""
    rest = stored.rest
    return bool(stored.tensors or rest.get("values") or (rest.get("groups") and rest.get("state") != {}))


def _selected(tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> LoadedTensors:
    """Returns some of the tensors of a checkpoint by other names; those that are free stay free."""
    free = tensors.free if isinstance(tensors, LoadedTensors) else set()
    selected = LoadedTensors()
    for name, new in names.items():
        selected[new] = tensors[name]
        if name in free:
            selected.free.add(new)
    return selected
