"""Learning-rate schedules: the numbers that their script gave them, and the steps of a new one in an old one's place.

Read against torch 2.13: a schedule's attributes are its numbers and its position, and `state_dict` has both.
"""

import functools
import inspect
import types
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from holdfast.state.recorded_settings import readable

# A position, or what follows from numbers that are recorded elsewhere.
_POSITION = frozenset(
    (
        "optimizer",
        "base_lrs",
        "last_epoch",
        "verbose",
        "best",
        "num_bad_epochs",
        "cooldown_counter",
        "mode_worse",
        "T_cur",
        "T_i",
        "_step_count",
        "_last_lr",
        "_is_initial",
        "_get_lr_called_within_step",
        "_schedule_phases",
    )
)
_NESTED, _FUNCTIONS = "_schedulers", "lr_lambdas"
# The names of what is recorded of functions, which are no attributes.
_OF_FUNCTIONS = ("function", "functions")


def bare_schedule(registered: object) -> Any:
    """Returns the schedule in whatever was put around it; None where an object is no schedule of an optimizer."""
    inner = registered
    while not isinstance(inner, LRScheduler) and hasattr(getattr(inner, "scheduler", None), "state_dict"):
        inner = inner.scheduler  # type: ignore[attr-defined]
    return inner if hasattr(getattr(inner, "optimizer", None), "param_groups") else None


def numbers(schedule: Any) -> dict[str, Any]:
    """Returns the numbers of a schedule that has not stepped yet, by the names of its attributes.

    A function that gives the learning rate is its numbers too: its constants, its defaults, and those around it that it
    mentions.
    """
    attributes = {name: value for name, value in vars(schedule).items() if name not in _POSITION}
    nested, functions = attributes.pop(_NESTED, ()), attributes.pop(_FUNCTIONS, ())
    recorded = readable(attributes)
    if nested:
        recorded[_NESTED] = [{"class": type(inner).__qualname__, **numbers(inner)} for inner in nested]
    if functions:
        one_for_all, of_each = _OF_FUNCTIONS
        each = [_numbers_of_function(function) for function in functions]
        recorded |= {one_for_all: each[0]} if all(other == each[0] for other in each) else {of_each: each}
    return recorded


def can_be_replayed(schedule: Any) -> bool:
    """Tells if a schedule depends on the number of its steps alone, and not on what was measured meanwhile."""
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        return False
    if nested := getattr(schedule, _NESTED, ()):
        return all(map(can_be_replayed, nested))
    arguments = inspect.signature(schedule.step).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(argument.default is not argument.empty or argument.kind in kinds for argument in arguments)


def steps_taken(schedule: Any) -> int:
    """Counts the steps that a schedule of torch has taken."""
    if not hasattr(schedule, "last_epoch") and (nested := getattr(schedule, _NESTED, ())):
        return steps_taken(nested[0])
    return int(schedule.last_epoch)


def replay(schedule: Any, steps: int) -> None:
    """Steps a schedule, in silence: that the optimizer has not stepped in between is what it would complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            schedule.step()


def is_functions(name: str) -> bool:
    """Tells if a number of this name is one of functions, which are always the script's."""
    return name in _OF_FUNCTIONS


def put_number(schedule: Any, name: str, value: Any) -> None:
    """Gives a schedule that keeps its history another number, by the name of its attribute."""
    setattr(schedule, name, value)
    if isinstance(schedule, ReduceLROnPlateau):
        # It is what derives from them; its own way back calls it as well.
        schedule._init_is_better(schedule.mode, schedule.threshold, schedule.threshold_mode)


def _numbers_of_function(function: Any) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        name = getattr(function.func, "__name__", "")
        return {"function": name, "arguments": readable({"": function.args}).get(""), **readable(function.keywords)}
    if isinstance(function, types.FunctionType):
        return _numbers_in_code(function)
    if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
        code = function.__func__
        own = getattr(function.__self__, "__dict__", {})
        # Its object may be all of the user's program: what the method mentions of it.
        mentioned = {name: own[name] for name in code.__code__.co_names if name in own}
        return {**_numbers_in_code(code), **readable(mentioned)}
    return readable(getattr(function, "__dict__", {}))


def _numbers_in_code(function: types.FunctionType) -> dict[str, Any]:
    try:
        around = inspect.getclosurevars(function)
    except ValueError:  # a variable around it has no value yet
        return {}
    mentioned = {**around.globals, **around.nonlocals}
    numeric = {name: value for name, value in mentioned.items() if isinstance(value, int | float)}
    constants = [value for value in function.__code__.co_consts if type(value) in (int, float)]
    return {**readable(numeric), **readable({"constants": constants, "defaults": function.__defaults__ or ()})}
