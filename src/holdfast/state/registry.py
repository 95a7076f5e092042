"""The parts of everything that a loop registers: how they are made, their names, and what all do together."""

import difflib
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from holdfast.errors import ConfigError, UnsupportedError
from holdfast.state.layered_optimizer import optimizer_part
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_layers import is_optimizer
from holdfast.state.part import BESIDE, RESERVED, Part, Stored
from holdfast.state.plain_dict import DictPart
from holdfast.state.sharding import ShardRange
from holdfast.state.stateful import stateful_part

# Part of the names of files, whose suffixes need their room too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_DICTS = (dict, OrderedDict, Counter, defaultdict)
_NAME_OF_A_RANK = re.compile(r"(random|data)-[0-9]+")


class Parts:
    """The parts of one training, models first: their parameters are what may be swapped behind our back.

    Args:
        parts: Models, optimizers and the rest.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = sorted(parts, key=lambda part: not isinstance(part, ModelPart))
        self._models = [part for part in self._parts if isinstance(part, ModelPart)]

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    @property
    def models(self) -> Sequence[ModelPart]:
        """The models."""
        return self._models

    def parameters(self) -> list[torch.Tensor]:
        """Returns what the optimizers update."""
        return [tensor for model in self._models for tensor in model.live().values()]

    def structure(self) -> Hashable:
        """Returns something that differs when `live` would return other tensors."""
        return tuple([part.structure() for part in self._parts])

    def live(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Returns the tensors that stand still between updates, by part and name."""
        return {part.name: part.live() for part in self._parts}

    def record(self) -> list[Any]:
        """Records the small state of each, as of now, in their order."""
        return [part.record() for part in self._parts]

    def encode(self, records: Sequence[Any]) -> dict[str, Stored]:
        """Returns what was recorded, for files that have the live tensors too, by part."""
        stored = {}
        for part, record in zip(self._parts, records, strict=True):
            stored[part.name] = part.encode(record)
        return stored

    def buffers(self, records: Sequence[Any]) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the buffers of each model that may change, as of a boundary."""
        pairs = zip(self._parts, records, strict=True)
        return {part.name: part.buffers(record) for part, record in pairs if isinstance(part, ModelPart)}

    def moving_buffers(self) -> dict[str, int]:
        """Returns the large buffers of the models that were seen to change, each with its bytes."""
        return {f"{model.name}.{name}": size for model in self._models for name, size in model.moving_buffers.items()}

    def memory(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Returns the live memory that tensors of a checkpoint may be read into, by part and name."""
        memory = {}
        for part in self._parts:
            memory[part.name] = part.memory()
        return memory

    def neighbors(self, part: str, rest: Any) -> Mapping[str, torch.Tensor]:
        """Returns live tensors beside which tensors of a checkpoint's part will be that have no memory here yet."""
        named = next((candidate for candidate in self._parts if candidate.name == part), None)
        return {} if named is None else named.neighbors(rest)

    def shard_range(self, part: str, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of a whole tensor of a checkpoint that this process needs; None where it needs all."""
        named = next((candidate for candidate in self._parts if candidate.name == part), None)
        return None if named is None else named.shard_range(name, shape)

    def problems(self, stored: Mapping[str, Stored]) -> list[str]:
        """Returns the reasons why a checkpoint does not fit those parts that it has."""
        problems: list[str] = []
        for part in self._parts:
            if part.name in stored:
                problems += part.problems(stored[part.name])
        return problems

    def restore(self, stored: Mapping[str, Stored], *, strict: bool) -> list[str]:
        """Puts those parts back that a checkpoint has; returns a line for each thing that the user should know."""
        notices: list[str] = []
        for part in self._parts:
            if part.name in stored:
                notices += part.restore(stored[part.name], strict=strict)
        return notices


def parts_of(named: Mapping[str, object], settings: Collection[str] = ()) -> list[Part]:
    """Makes a part of everything that a loop registers, in its order.

    Args:
        named: What it registers, by name.
        settings: The names of settings that are given beside parts, of which one may have been meant.

    Raises:
        ConfigError: A name cannot be one, an object has no state, or an optimizer has parameters of no model here.
        UnsupportedError: An object's state holds something that cannot be written, or is DeepSpeed's.
    """
    _refuse_deepspeed(named)
    if problems := _wrong_names(named):
        raise ConfigError(problems)
    models = {name: ModelPart(name, module) for name, module in named.items() if isinstance(module, torch.nn.Module)}
    parts: list[Part] = []
    for name, registered in named.items():
        if name in models:
            parts.append(models[name])
        elif is_optimizer(registered):
            part = optimizer_part(name, registered, list(models.values()))
            if part is None:
                problems.append(_no_state_of(name, registered))
            else:
                problems += [*part.unregistered(), *_scaler_left_out(name, registered, named.values())]
                parts.append(part)
        elif _has_state(registered):
            parts.append(stateful_part(name, registered))
        elif isinstance(registered, dict) and type(registered) in _DICTS and not _nearest(name, settings, 0.85):
            parts.append(DictPart(name, registered))
        else:
            problems.append(_no_part(name, registered, settings))
    if problems:
        raise ConfigError(problems)
    return parts


def _refuse_deepspeed(named: Mapping[str, object]) -> None:
    """Refuses DeepSpeed's engine and optimizers: ranks hold flat pieces of what their own collectives put together.

    Raises:
        UnsupportedError: There is one.
    """
    for name, registered in named.items():
        inner = getattr(registered, "optimizer", None)  # accelerate puts a wrapper of its own around DeepSpeed's
        for kind in (type(registered), type(inner)):
            if kind.__module__.partition(".")[0] == "deepspeed":
                raise UnsupportedError(
                    f"{name}: a plain loop cannot save DeepSpeed's {kind.__name__}, whose state its own collectives"
                    " alone put together",
                    hint="train it with transformers' Trainer, TrainingArguments(deepspeed=...) and attach(trainer);"
                    " or save it yourself with engine.save_checkpoint()",
                )


def _no_part(name: str, registered: object, settings: Collection[str]) -> str:
    kind = type(registered).__name__
    article = "an" if kind[0] in "aeiouAEIO" else "a"
    if near := _nearest(name, settings, 0.7):
        what = f"{article} {kind} is no part" if not isinstance(registered, dict) else "its name is too near for a part"
        return f"{name}: there is no such setting, and {what}; did you mean {' or '.join(near)}?"
    meant = "; did you mean data=?" if isinstance(registered, torch.utils.data.DataLoader) else ""
    if isinstance(registered, list | tuple | set | int | float | str | torch.Tensor):
        meant = "; in a dict it is saved as it is"
    elif isinstance(registered, Mapping):
        meant = "; a dict, OrderedDict, Counter or defaultdict is saved as it is"
    return f"{name}: {article} {kind} has no state_dict and load_state_dict to save it by{meant}"


def _nearest(name: str, settings: Collection[str], cutoff: float) -> list[str]:
    """Returns the settings that may have been meant by a name: the nearest, and those that are all but as near."""
    likeness = {setting: difflib.SequenceMatcher(None, setting, name).ratio() for setting in settings}
    nearest = max(likeness.values(), default=0.0)
    if nearest >= cutoff:
        return [setting for setting, ratio in likeness.items() if ratio > nearest - 0.05]
    return [setting for setting in settings if cutoff < 0.85 and name.startswith(f"{setting}_")]


def _no_state_of(name: str, optimizer: object) -> str:
    return (
        f"{name}: a {type(optimizer).__name__} gives no state to save it by: its state_dict() raises an error, or there"
        " is none, and no torch optimizer is inside of it"
    )


def _scaler_left_out(name: str, optimizer: object, registered: Iterable[object]) -> list[str]:
    """Returns a problem if accelerate scales the gradients of an optimizer, and its scaler is no part."""
    scaler = getattr(optimizer, "scaler", None)
    if not isinstance(scaler, torch.amp.GradScaler) or not scaler.is_enabled():
        return []
    if any(scaler is other for other in registered):
        return []
    return [f"{name}: it scales gradients, and the scaler is no part; give scaler=accelerator.scaler beside it"]


def _has_state(registered: object) -> bool:
    return all(callable(getattr(registered, name, None)) for name in ("state_dict", "load_state_dict"))


def _wrong_names(named: Mapping[str, object]) -> list[str]:
    problems = []
    taken = {name.casefold(): name for name in (*RESERVED, *BESIDE, "MANIFEST")}
    for name in named:
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r}: no name for a part; letters, digits, _ and - make one")
        elif _NAME_OF_A_RANK.fullmatch(name):
            problems.append(f"{name}: this name is taken in a checkpoint of several processes; choose another")
        elif (other := taken.setdefault(name.casefold(), name)) != name or name in (*RESERVED, *BESIDE):
            problems.append(f"{name}: this name is taken by {other!r} in a checkpoint; choose another")
    return problems
