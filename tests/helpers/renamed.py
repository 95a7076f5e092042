"""A library as a later version of it may be: names that Holdfast goes by are others. For a process of its own."""

import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

LATER = "_in_a_later_version"


def rename(module: str, names: Iterable[str]) -> None:
    """Runs a module's own source again with other names, and has all that is loaded use what it makes.

    Args:
        module: The module's name.
        names: Those of its attributes, methods and functions, as they are.
    """
    target = import_module(module)
    source = inspect.getsource(target)
    imported = [name for name in names if name in vars(target) and not _is_of(vars(target)[name], module)]
    for name in names:
        if name not in imported:
            source, count = re.subn(rf"\b{name}\b", name + LATER, source)
            assert count, f"{module} has no {name}"
    before = dict(vars(target))
    exec(compile(source, f"{target.__file__} with other names", "exec"), vars(target))
    made = {id(value): vars(target)[name] for name, value in before.items() if _is_of(value, module)}
    for loaded in list(sys.modules.values()):
        for name, value in list(vars(loaded).items()) if isinstance(loaded, ModuleType) else []:
            if id(value) in made:
                setattr(loaded, name, made[id(value)])
    for name in imported:
        delattr(target, name)


def _is_of(value: object, module: str) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module
