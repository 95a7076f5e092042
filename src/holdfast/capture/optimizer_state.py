"""An optimizer's state as JSON, and put back as it was: assigned, because `load_state_dict` would cast it."""

from typing import Any

import torch
from torch import optim

from holdfast.capture import tree
from holdfast.capture.optimizer_fit import Fit
from holdfast.capture.shard import local_of
from holdfast.capture.state import Stored
from holdfast.capture.tree_forms import CPU
from holdfast.errors import CheckpointError

# How a group computes, which the machine decides, and not what.
_MEANS = ("foreach", "fused", "capturable")


def encode(held: Any, name: str, parameter: torch.Tensor) -> dict[str, Any]:
    """The state of one parameter. Its tensors are live, and named as `tree.tensors_in` names them."""
    values = tree.encode(held, name, {}, parameter.device)
    step = held.get("step") if isinstance(held, dict) else None
    if isinstance(step, torch.Tensor):  # on the CPU wherever the parameter is, unless the group computes otherwise
        values["step"]["device"] = str(step.device)
    return {"shape": list(parameter.shape), "values": values}


def put_back(optimizer: optim.Optimizer, fit: Fit, stored: Stored) -> list[str]:
    """Puts back what fits. Everything is read before anything is changed.

    Returns:
        A line for each change that is not one of values.

    Raises:
        CheckpointError: What the checkpoint holds cannot be read; nothing was changed.
    """
    groups = [(group, _dictionary(held, stored)) for group, held in fit.groups]
    added = [(named, _dictionary(held, stored)) for named, held in fit.added]
    if any("params" in settings for _, settings in [*groups, *added]):
        raise CheckpointError("the settings of a parameter group have parameters in them")
    state = [(one, _dictionary(values, stored, one.device)) for one, values in fit.state]
    shared = _dictionary(stored.rest.get("shared"), stored)
    for group, settings in groups:
        group.update({key: value for key, value in settings.items() if key not in _MEANS})
    for named, settings in added:
        # torch wants names for all groups or for none.
        by_name = "param_names" in optimizer.param_groups[0]
        optimizer.add_param_group({**settings, "params": list(named.items() if by_name else named.values())})
    step_here: set[int] = set()
    for group in optimizer.param_groups:
        if group.get("capturable") or group.get("fused"):
            step_here.update(map(id, group["params"]))
    optimizer.state.clear()
    for one, values in state:
        step = values.get("step")
        if isinstance(step, torch.Tensor) and (id(one) in step_here or step.device.type != "cpu"):
            values["step"] = step.to(one.device)
        optimizer.state[one] = {key: _sharded_as(one, value) for key, value in values.items()}
    optimizer.state.update(shared)
    return [f"a group of {len(named)} parameters was added, as the checkpoint has it" for named, _ in added]


def _sharded_as(parameter: torch.Tensor, value: Any) -> Any:
    """A value that is this process's shard, as a distributed tensor like its parameter; others as they are."""
    local = local_of(parameter)
    if local is parameter or not isinstance(value, torch.Tensor) or value.shape != local.shape or not value.dim():
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _dictionary(held: Any, stored: Stored, home: torch.device = CPU) -> dict[Any, Any]:
    found = tree.decode(held, stored.tensors, home)
    if not isinstance(found, dict):
        raise CheckpointError(f"a dictionary of an optimizer's is a {type(found).__name__} in the checkpoint")
    return found
