"""Puts what the command line sets over the file: `--set dynamic_checkpoint.check_interval=10`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from holdfast.train.config import yaml
from holdfast.train.config.yaml import Constructor, Problem, Source, UnusableError
from holdfast.wording import Loc, dotted, shown


def apply(source: Source, settings: Sequence[str]) -> None:
    """Puts each `KEY=VALUE` into the source, in order, so that the last of the same key holds.

    A dot in the key leads inwards, a number counts the items of a list from 0, and the value is read as YAML. What is
    wrong with a setting is added to the source's problems.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        shown_key = dotted((key,))
        try:
            if not equals or "" in key.split("."):
                raise UnusableError(Problem(shown_key, (), "expected KEY=VALUE"))
            _set(source, key, text)
        except UnusableError as error:
            _, loc, text = error.problem
            source.problems.append(source.message_at(shown_key, loc, text))


def _set(source: Source, key: str, text: str) -> None:
    container, last, loc = _slot(source, key)
    node = yaml.compose(text)
    _forget(source, loc)
    constructor = Constructor(place=dotted((key,)), at=loc)
    value = constructor.construct(node) if node is not None else None
    _put(container, last, value)
    source.take_over(constructor)
    source.places[loc] = dotted((key,))


def _slot(source: Source, key: str) -> tuple[Any, str | int, Loc]:
    """Returns the container of the value of `key`, its key or index there, and its location; makes what is missing."""
    container: Any = source.values
    loc: Loc = ()
    parts = key.split(".")
    for part, following in pairwise(parts):
        step = _step(container, part, loc)
        loc = (*loc, step)
        inner = _item(container, step)
        if inner is None:
            inner = [] if following.isdecimal() else {}
            _put(container, step, inner)
            source.places[loc] = dotted((key,))
        container = inner
    step = _step(container, parts[-1], loc)
    return container, step, (*loc, step)


def _step(container: Any, part: str, loc: Loc) -> str | int:
    match container:
        case dict():
            return part
        case list() if part in map(str, range(len(container) + 1)):
            return int(part)
        case list():
            text = f"{dotted(loc)} is a list; {shown(part)} is not an index from 0 to {len(container)}"
        case _:
            text = f"{dotted(loc)} is {shown(container)}, which holds nothing further"
    raise UnusableError(Problem("", (), text))


def _item(container: Any, step: Any) -> Any:
    if isinstance(container, list):
        return container[step] if step < len(container) else None
    return container.get(step)


def _put(container: Any, step: Any, value: Any) -> None:
    if isinstance(container, list) and step == len(container):
        container.append(value)
    else:
        container[step] = value


def _forget(source: Source, loc: Loc) -> None:
    """Forgets where the value that is about to be replaced, and all below it, came from."""
    for known in [known for known in source.places if known[: len(loc)] == loc]:
        del source.places[known]
    source.unread = {known for known in source.unread if known[: len(loc)] != loc}
