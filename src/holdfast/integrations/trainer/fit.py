"""The comparison of a checkpoint with the trainer that is to load it, before it loads anything.

transformers takes weights by name and an optimizer's state by position, and ends in a traceback of torch, or trains on
with weights that nobody loaded, where they are others. Read against transformers 5.23 and peft 0.21.
"""

import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import optim
from transformers import Trainer

from holdfast.errors import CheckpointError
from holdfast.integrations.trainer.own_writer import form_of
from holdfast.integrations.trainer.readable import allow_cpus_of_ranks, explained, explaining
from holdfast.integrations.trainer.stored_weights import Stored, loss_weights, stored_weights
from holdfast.layouts import transformers as layout
from holdfast.log import RunLog
from holdfast.resume.choose import ResumePoint
from holdfast.state.optimizer_layers import unwrapped
from holdfast.store.manifest import Manifest
from holdfast.text import shown

_MOST_LINES = 20


@dataclass
class Misfits:
    """The mismatches between a trainer and a checkpoint.

    Args:
        lines: A line for each thing, in the words that a plain loop has.
        weights: The names of tensors of the model that begin anew.
        states: The positions of parameters whose state in the optimizer begins anew.
        is_other_optimizer: True where all of the optimizer begins anew.
        has_other_scaler: True where the checkpoint has a gradient scaler and the trainer has none.
        are_weights_compared: True where the weights were in files that can be compared by their names.
    """

    lines: list[str] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    states: set[int] = field(default_factory=set)
    is_other_optimizer: bool = False
    has_other_scaler: bool = False
    are_weights_compared: bool = False


def compare(trainer: Trainer, path: Path, manifest: Manifest | None) -> Misfits:
    """Compares model and optimizer with a checkpoint.

    Args:
        trainer: The trainer. Its optimizer is made, if it is not there yet, as it would be a moment later.
        path: The checkpoint.
        manifest: Its manifest; None for one of plain transformers.
    """
    misfits = Misfits()
    if form_of(trainer) != layout.PLAIN:
        return misfits  # DeepSpeed and FSDP compare what they load themselves
    _compare_weights(misfits, trainer, path)
    if (path / "scaler.pt").is_file() and getattr(trainer.accelerator, "scaler", None) is None:
        misfits.lines.append("scaler: the checkpoint has the scaler of a training in fp16, and this training has none")
        misfits.has_other_scaler = True
    if (path / "optimizer.pt").is_file() and (optimizer := unwrapped(trainer.create_optimizer())) is not None:
        comparing = explaining(_compare_optimizer, "its optimizer.pt", path)
        comparing(misfits, trainer, optimizer, path, manifest)
    return misfits


@contextmanager
def loading(trainer: Trainer, chosen: ResumePoint, log: RunLog, *, strict: bool) -> Iterator[None]:
    """Encloses a trainer's loading of a checkpoint, and its training.

    Args:
        trainer: The trainer.
        chosen: The checkpoint.
        log: Takes a line for each thing that begins anew.
        strict: True refuses a checkpoint that does not fit; otherwise what does not fit begins anew.

    Raises:
        CheckpointError: It does not fit. Nothing was loaded.
    """
    chosen.require_in_place()
    allow_cpus_of_ranks(trainer)
    misfits = compare(trainer, chosen.folder.through, chosen.manifest)
    if misfits.lines and strict:
        more = len(misfits.lines) - _MOST_LINES
        lines = [shown(line) for line in misfits.lines[:_MOST_LINES]] + [f"and {more:,} more"] * (more > 0)
        raise CheckpointError(
            f"{chosen.path} does not fit this training:\n  " + "\n  ".join(lines),
            hint="build the same model and optimizer, or take what fits with attach(trainer, strict=False); nothing"
            " was loaded",
        )
    for line in misfits.lines:
        log.announce(f"{line}: begins anew")
    model, optimizer = trainer.model, unwrapped(trainer.optimizer)
    with (
        _leaving_out(model, misfits.weights),
        _leaving_out_states(optimizer, misfits),
        _leaving_out_scaler(trainer, misfits),
        explained(trainer, chosen.path),
        _without_words_of_keys(compared=misfits.are_weights_compared),
    ):
        yield


@contextmanager
def _without_words_of_keys(*, compared: bool) -> Iterator[None]:
    """Keeps transformers' own words on missing and unexpected weights out of the log where ours have named them.

    It knows nothing of tied weights, which are there under another name.
    """
    if not compared:
        yield
        return
    log = logging.getLogger("transformers.trainer")

    def is_of_others(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("There were missing keys in", "There were unexpected keys in"))

    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)


@contextmanager
def _leaving_out_states(optimizer: Any, misfits: Misfits) -> Iterator[None]:
    """Has an optimizer load what fits it. Wrappers have not the hooks that torch's optimizers have for that."""
    if optimizer is None or not (misfits.is_other_optimizer or misfits.states):
        yield
        return
    own = optimizer.load_state_dict
    optimizer.load_state_dict = lambda state: own(_fitting(misfits, optimizer, state))
    try:
        yield
    finally:
        del optimizer.load_state_dict


@contextmanager
def _leaving_out_scaler(trainer: Trainer, misfits: Misfits) -> Iterator[None]:
    """Has a trainer without a gradient scaler load none."""
    if not misfits.has_other_scaler:
        yield
        return
    trainer._load_scaler = lambda checkpoint: None
    try:
        yield
    finally:
        del trainer._load_scaler


@contextmanager
def _leaving_out(model: Any, names: set[str]) -> Iterator[None]:
    """Has a model load no tensors of some names."""
    if not names:
        yield
        return
    replaced: dict[str, Any] = {"load_state_dict": _Filtered(model.load_state_dict, names)}
    if hasattr(model, "peft_config"):
        replaced = {"load_adapter": functools.partial(_load_adapter, model.load_adapter)}
    for name, replacement in replaced.items():
        object.__setattr__(model, name, replacement)
    try:
        yield
    finally:
        for name in replaced:
            object.__delattr__(model, name)


class _Filtered:
    def __init__(self, own: Any, names: set[str]) -> None:
        self._own = own
        self._names = names

    def __call__(self, state_dict: Mapping[str, Any], strict: bool = True, **kwargs: Any) -> Any:
        """Loads what is not left out. What is, is missing whether the loader is strict or not."""
        fitting = {name: tensor for name, tensor in state_dict.items() if name not in self._names}
        return self._own(fitting, strict=False, **kwargs)


def _load_adapter(own: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some weights of")  # they were named
        return own(*args, **kwargs, ignore_mismatched_sizes=True)


def _fitting(misfits: Misfits, optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    if misfits.is_other_optimizer:
        return optimizer.state_dict()
    return {**state, "state": {k: v for k, v in state["state"].items() if k not in misfits.states}}


def _compare_weights(misfits: Misfits, trainer: Trainer, path: Path) -> None:
    for owner, prefix, stored, here, others in explaining(_stored, "its weights")(trainer, path):
        misfits.are_weights_compared |= owner == "model"
        for name in sorted(stored.keys() | here.keys()):
            then, now = stored.get(name), here.get(name)
            if then == now or (then is None and stored.keys() & others.get(name, set())):
                continue
            full = f"{prefix}{name}"
            if then is None:
                misfits.lines.append(f"{owner}: {full!r} is in the {owner} and not in the checkpoint")
            elif now is None:
                misfits.lines.append(f"{owner}: {full!r} is in the checkpoint and not in the {owner}")
            else:
                misfits.lines.append(
                    f"{owner}: {full!r} is {list(then)} in the checkpoint and {list(now)} in the {owner}"
                )
            misfits.weights.add(full)


def _stored(trainer: Trainer, path: Path) -> list[Stored]:
    return list(stored_weights(trainer, path))


def _compare_optimizer(
    misfits: Misfits, trainer: Trainer, optimizer: Any, path: Path, manifest: Manifest | None
) -> None:
    stored = torch.load(path / "optimizer.pt", map_location="meta", weights_only=True)
    # The `state_dict` of wrappers may have a form of its own.
    groups, states = stored.get("param_groups"), stored.get("state", {})
    then, now = _stored_class(manifest, groups or [{}]), type(optimizer).__qualname__
    if not groups and then == now:
        return
    keys_here = set(optimizer.param_groups[0]) - {"initial_lr"}
    if then != now and (then or not groups or set(groups[0]) - {"initial_lr"} != keys_here):
        then = then or "another"
        misfits.lines.append(f"optimizer: is of class {then} in the checkpoint and of class {now} here")
        misfits.is_other_optimizer = True
        return
    sizes = [len(group["params"]) for group in groups]
    here = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != here:
        misfits.lines.append(
            f"optimizer: it updates {_sizes(sizes)} in the checkpoint and {_sizes(here)} here: parameters are new,"
            " gone, frozen or not frozen any more"
        )
        misfits.is_other_optimizer = True
        return
    if not type(optimizer).__module__.startswith("torch.optim"):
        return  # its state may have shapes of its own, as a projection has
    named = [*trainer.model.named_parameters(), *loss_weights(trainer).items()]
    names = {id(parameter): name for name, parameter in named}
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, parameter in zip(numbers, live, strict=True):
        shape = _shape_of_state(states.get(number))
        if shape is not None and shape != tuple(parameter.shape):
            name = names.get(id(parameter), str(number))
            misfits.lines.append(
                f"optimizer: the state of {name!r} is for {list(shape)}, and it is {list(parameter.shape)} here"
            )
            misfits.states.add(number)


def _stored_class(manifest: Manifest | None, groups: Sequence[Mapping[str, Any]]) -> str:
    """Returns the class of a checkpoint's optimizer: as its settings say, or its groups do; empty if nobody knows."""
    parts = {} if manifest is None else manifest.settings.get("parts", {})
    recorded = parts.get("optimizer") if isinstance(parts, dict) else None
    if isinstance(recorded, dict) and isinstance(recorded.get("class"), str):
        return str(recorded["class"])
    keys = set(groups[0]) - {"params", "initial_lr", "param_names"}
    if "decoupled_weight_decay" in keys and {"amsgrad", "betas"} <= keys:
        return "AdamW" if groups[0]["decoupled_weight_decay"] else "Adam"
    return "SGD" if {"momentum", "dampening", "nesterov"} <= keys else ""


def _shape_of_state(state: Any) -> tuple[int, ...] | None:
    """Returns the shape of the first tensor that is no number; None where there is none, or shapes are not alike."""
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []
    shapes = {tuple(tensor.shape) for tensor in tensors if tensor.numel() > 1}
    return shapes.pop() if len(shapes) == 1 else None


def _sizes(sizes: Sequence[int]) -> str:
    return f"{' + '.join(map(str, sizes))} parameters"
