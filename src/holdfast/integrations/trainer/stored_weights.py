"""The weights that a checkpoint has, beside those of the model that is to load them: by names and shapes.

transformers has a model in one folder. sentence-transformers has one for each of a model's modules, the first of which
may be the checkpoint itself; and the weights of its losses are nowhere in them, but carried. Read against
transformers 5.23, peft 0.21 and sentence-transformers 6.2.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, Trainer

from holdfast.errors import DamagedCheckpointError
from holdfast.layouts.native import TENSORS
from holdfast.layouts.safetensors import header
from holdfast.layouts.safetensors.header import HeaderError
from holdfast.state.part import CARRIED
from holdfast.store.manifest import strict_json

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_MODULES = "modules.json"
_LOSS = "loss"

Shapes = Mapping[str, tuple[int, ...]]


class Stored(NamedTuple):
    """Weights of a checkpoint, and the module that has their place."""

    owner: str
    """The word for the module."""
    prefix: str
    """The beginning of the names of its tensors in the model."""
    stored: Shapes
    here: Shapes
    others: Mapping[str, set[str]]
    """The other names of its tensors: of tied weights a checkpoint has one."""


def stored_weights(trainer: Trainer, path: Path) -> Iterator[Stored]:
    """Yields what of a checkpoint has a place in a trainer; nothing that is in no file of safetensors.

    Args:
        trainer: The trainer.
        path: The checkpoint.
    """
    for prefix, folder, module in _sections(trainer.model, path):
        shapes = _shapes_in([folder / name for name in _files(folder)])
        # What is deeper in a folder of a module is not looked at; a module that has no folder was not there.
        if shapes or not folder.is_dir():
            yield Stored("model", prefix, shapes, _live_shapes(module), _other_names(module))
    carried = path / (CARRIED + TENSORS)
    beside = _shapes_in([carried] if carried.is_file() else [])
    of_loss = {name: shape for name, shape in beside.items() if name.startswith((f"{_LOSS}.", f"{_LOSS}["))}
    if of_loss:
        yield Stored(_LOSS, "", of_loss, {name: tuple(p.shape) for name, p in loss_weights(trainer).items()}, {})


def loss_weights(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    """Returns the weights of a trainer's loss that are trained and not the model's, by the names of their places."""
    loss, of_model = vars(trainer).get(_LOSS), {id(weight) for weight in trainer.model.parameters()}
    modules = {f"{_LOSS}[{name}]": module for name, module in loss.items()} if isinstance(loss, dict) else {_LOSS: loss}
    return {
        f"{place}.{name}": weight
        for place, module in modules.items()
        if isinstance(module, torch.nn.Module)
        for name, weight in module.named_parameters()
        if weight.requires_grad and id(weight) not in of_model
    }


def _sections(model: Any, path: Path) -> Iterator[tuple[str, Path, Any]]:
    """Yields the beginning of names, the folder, and the module, for each of a model that has weights of its own."""
    if isinstance(model, PreTrainedModel) or not (path / _MODULES).is_file():
        yield "", path, model
        return
    for number, (name, module) in enumerate(model.named_children()):
        is_in_root = number == 0 and getattr(module, "save_in_root", False)
        folder = path if is_in_root else path / f"{number}_{type(module).__name__}"
        inner = [(n, child) for n, child in module.named_children() if isinstance(child, PreTrainedModel)]
        prefix, whole = (f"{name}.{inner[0][0]}.", inner[0][1]) if len(inner) == 1 else (f"{name}.", module)
        if not hasattr(whole, "peft_config"):  # an adapter that transformers added itself has other names there
            yield prefix, folder, whole


def _files(folder: Path) -> list[str]:
    files = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not files and (folder / _INDEX).is_file():
        index = strict_json((folder / _INDEX).read_bytes())
        files = sorted(set(index["weight_map"].values()))
    return files


def _shapes_in(files: list[Path]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            shapes.update({tensor.name: tensor.shape for tensor in header.read(fd)})
        except HeaderError as error:
            raise DamagedCheckpointError(f"{file} is no file of tensors: {error}", [str(error)]) from error
        finally:
            os.close(fd)
    return shapes


def _live_shapes(model: Any) -> Shapes:
    """Returns the shapes of what a model's checkpoint has: tied weights have all their names."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    shapes = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and name not in ignored:
            shapes[name] = tuple(tensor.shape)
    return shapes


def _other_names(model: Any) -> Mapping[str, set[str]]:
    names: dict[Any, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            names.setdefault((tensor.data_ptr(), tensor.shape), set()).add(name)
    return {name: several for several in names.values() if len(several) > 1 for name in several}
