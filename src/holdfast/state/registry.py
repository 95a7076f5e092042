"""The parts of everything that a loop registers, and the names that they may have."""

import re
from collections.abc import Mapping

from holdfast.errors import ConfigError
from holdfast.state.part import RESERVED, Part

# Part of the names of files, whose suffixes need their room too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
_NAME_OF_A_RANK = re.compile(r"(random|data)-[0-9]+")


def parts_of(named: Mapping[str, object]) -> list[Part]:
    """Makes a part of everything that a loop registers, in its order.

    Raises:
        ConfigError: A name cannot be one, an object has no state, or an optimizer has parameters of no model here.
        UnsupportedError: An object's state holds something that cannot be written.
    """
    import torch

    from holdfast.state.model import ModelPart
    from holdfast.state.optimizer import OptimizerPart, bare_optimizer
    from holdfast.state.stateful import stateful_part

    if problems := _wrong_names(named):
        raise ConfigError(problems)
    models = {name: ModelPart(name, module) for name, module in named.items() if isinstance(module, torch.nn.Module)}
    parts: list[Part] = []
    for name, registered in named.items():
        optimizer = bare_optimizer(registered)
        if name in models:
            parts.append(models[name])
        elif optimizer is not None:
            part = OptimizerPart(name, optimizer, list(models.values()))
            problems += part.unregistered()
            parts.append(part)
        elif _has_state(registered):
            parts.append(stateful_part(name, registered))
        else:
            kind = type(registered).__name__
            problems.append(f"{name}: a {kind} has no state_dict and load_state_dict to save it by")
    if problems:
        raise ConfigError(problems)
    return parts


def _has_state(registered: object) -> bool:
    return all(callable(getattr(registered, name, None)) for name in ("state_dict", "load_state_dict"))


def _wrong_names(named: Mapping[str, object]) -> list[str]:
    problems = []
    taken = {name.casefold(): name for name in (*RESERVED, "MANIFEST")}
    for name in named:
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r}: no name for a part; letters, digits, _ and - make one")
        elif _NAME_OF_A_RANK.fullmatch(name):
            problems.append(f"{name}: this name is taken in a checkpoint of several processes; choose another")
        elif (other := taken.setdefault(name.casefold(), name)) != name or name in RESERVED:
            problems.append(f"{name}: this name is taken by {other!r} in a checkpoint; choose another")
    return problems
