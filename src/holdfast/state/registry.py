"""Makes a part of everything that a loop registers."""

from collections.abc import Mapping

from holdfast.errors import ConfigError
from holdfast.state.part import _NAME, _OF_A_RANK, RESERVED, Part


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
    models = {name: ModelPart(name, one) for name, one in named.items() if isinstance(one, torch.nn.Module)}
    found: list[Part] = []
    for name, one in named.items():
        optimizer = bare_optimizer(one)
        if name in models:
            found.append(models[name])
        elif optimizer is not None:
            part = OptimizerPart(name, optimizer, list(models.values()))
            problems += part.strangers()
            found.append(part)
        elif callable(getattr(one, "state_dict", None)) and callable(getattr(one, "load_state_dict", None)):
            found.append(stateful_part(name, one))
        else:
            problems.append(f"{name}: a {type(one).__name__} has no state_dict and load_state_dict to save it by")
    if problems:
        raise ConfigError(problems)
    return found


def _wrong_names(named: Mapping[str, object]) -> list[str]:
    problems = []
    taken = {name.casefold(): name for name in (*RESERVED, "MANIFEST")}
    for name in named:
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r}: no name for a part; letters, digits, _ and - make one")
        elif _OF_A_RANK.fullmatch(name):
            problems.append(f"{name}: this name is taken in a checkpoint of several processes; choose another")
        elif (other := taken.setdefault(name.casefold(), name)) != name or name in RESERVED:
            problems.append(f"{name}: this name is taken by {other!r} in a checkpoint; choose another")
    return problems
