"""A Lightning training's checkpoint as the one file that plain Lightning loads: `model.ckpt`.

It holds what Lightning's own has, as plain values and tensors, which `weights_only` loads. What Holdfast saves beyond
that, the position in the data and random states, has no place in it.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.layouts.image import read_json
from holdfast.layouts.native_reading import NativeReading
from holdfast.state import values
from holdfast.state.part import SIDECAR_PREFIX, Stored
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest

NAME = "model.ckpt"
PROGRESS = "progress.json"
KIND = "LightningProgress"
"""The file of the part, and its class, by which such a checkpoint is known."""
_MIXED = "MixedPrecision"


def is_of_lightning(checkpoint: Folder, manifest: Manifest) -> bool:
    """Tells whether a checkpoint is of a Lightning training."""
    if all(file.path != PROGRESS for file in manifest.files) or "lightning" not in manifest.settings:
        return False
    rest = read_json(checkpoint / PROGRESS)
    return isinstance(rest, Mapping) and rest.get("class") == KIND


def leave(checkpoint: Folder, manifest: Manifest, target: Folder) -> None:
    """Writes the file into another directory.

    Args:
        checkpoint: The checkpoint, open, verified and good. Of several ranks, rank 0's parts are taken.
        manifest: Its manifest.
        target: The directory, open.

    Raises:
        CheckpointError: It does not hold what it should.
    """
    import torch

    reading = NativeReading(checkpoint, manifest.files, manifest.tensors, 0, manifest.world_size, own=True)
    reading.read()
    try:
        content = _content(reading.stored, manifest)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{checkpoint} holds no state of a Lightning training that can be read: {error!r}"
        ) from error
    path = target.through / NAME
    torch.save(content, path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _content(stored: Mapping[str, Stored], manifest: Manifest) -> dict[str, Any]:
    progress, described = _state_of(stored["progress"]), manifest.settings["lightning"]
    content: dict[str, Any] = {
        "epoch": progress["epoch"],
        "global_step": manifest.step,
        "pytorch-lightning_version": described["version"],
        "state_dict": _weights(stored["model"]),
        "loops": {**progress["loops"], "fit_loop": _as_lightning_saves(progress["loops"]["fit_loop"])},
        "callbacks": _state_of(stored["callbacks"]),
        "lr_schedulers": _schedules(stored),
    }
    optimizers = [stored[name] for name in _numbered(stored, "optimizer")]
    if all(optimizer.rest["kind"] == "optimizer" for optimizer in optimizers):  # others have a state of their own form
        content["optimizer_states"] = [_optimizer(optimizer) for optimizer in optimizers]
    if "scaler" in stored:
        content[_MIXED] = _state_of(stored["scaler"])
    for name in ("precision", "datamodule"):
        if name in stored:
            content[stored[name].rest["class"]] = _state_of(stored[name])
    for key, encoded in described["hyperparameters"].items():
        content[key] = values.decode(encoded, {})
    return {**content, **(_state_of(stored["hooks"]) if "hooks" in stored else {})}


def _as_lightning_saves(fit_loop: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the progress of a fit after the last batch of an epoch as Lightning itself saves it: the epoch is done.

    What is to be done yet, hooks at the epoch's end, is left out there; otherwise Lightning would train a batch more.
    """
    epochs = fit_loop["epoch_progress"]
    is_under_way = epochs["current"]["processed"] < epochs["current"]["started"]
    if not is_under_way or not fit_loop["epoch_loop.batch_progress"]["is_last_batch"]:
        return dict(fit_loop)
    done = {kind: {**counts, "processed": counts["processed"] + 1} for kind, counts in epochs.items()}
    return {**fit_loop, "epoch_progress": done}


def _state_of(stored: Stored) -> Any:
    return values.decode(stored.rest["state"], stored.tensors)


def _weights(stored: Stored) -> "OrderedDict[str, Any]":
    weights = OrderedDict((k, v) for k, v in stored.tensors.items() if not k.startswith(SIDECAR_PREFIX))
    weights.update({alias: weights[kept] for alias, kept in stored.aliases.items()})
    for module, encoded in stored.rest["extra"].items():
        weights[f"{module}._extra_state" if module else "_extra_state"] = values.decode(encoded, stored.tensors)
    return weights


def _optimizer(stored: Stored) -> dict[str, Any]:
    """Returns an optimizer's state as its own `state_dict` has it: by the numbers of its parameters."""
    groups, numbers = [], dict[str, int]()
    for group in stored.rest["groups"]:
        members = [numbers.setdefault(name, len(numbers)) for name in group["parameters"]]
        groups.append({**values.decode(group["settings"], stored.tensors), "params": members})
    state = stored.rest["state"]
    known = {numbers[name]: values.decode(entry["values"], stored.tensors) for name, entry in state.items()}
    return {"state": known, "param_groups": groups}


def _schedules(stored: Mapping[str, Stored]) -> list[Any]:
    if "schedulers" in stored:
        return list(_state_of(stored["schedulers"]).values())
    return [_state_of(stored[name]) for name in _numbered(stored, "scheduler")]


def _numbered(stored: Mapping[str, Stored], name: str) -> list[str]:
    """Returns the names of one part of a kind, or of several in their order."""
    if name in stored:
        return [name]
    several = (f"{name}_{number}" for number in range(len(stored)))
    return [each for each in several if each in stored]
