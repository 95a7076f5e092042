"""Words keys, values and the errors of pydantic: on one line, short, and for somebody who writes YAML."""

import datetime
import difflib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Loc = tuple[str | int, ...]
"""The location of a value in a configuration: the keys and list indices that lead to it, outermost first."""

_LONGEST = 60
_SHORTEST_HINT = 2
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "keys and values",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def shown(value: object) -> str:
    """Returns a value as a message names it: `'two'`, `3`, `true`, `a list`, `nothing`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        case str():
            return shortened(repr(value))
        case list() | tuple():
            return "a list"
        case dict():
            return "keys and values"
        case datetime.date():
            return f"the date {value}"
        case _:
            return shortened(str(value))


def dotted(loc: Loc) -> str:
    """Returns a location as a message names it: `datasets.0.type`."""
    return ".".join(_plain(str(part)) for part in loc)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns `, did you mean 'type'?` where one of `known` resembles `word` or begins with it, otherwise nothing."""
    if not isinstance(word, str) or len(word) < _SHORTEST_HINT:
        return ""
    options = list(known)
    near = difflib.get_close_matches(word.lower(), options, n=1)
    near += [option for option in options if option.startswith(word.lower())]
    return f", did you mean {near[0]!r}?" if near else ""


def one_of(options: Iterable[str], value: object) -> str:
    """Returns what is said of a value that is none of the options."""
    known = list(options)
    return f"expected one of {', '.join(known)}, found {shown(value)}{did_you_mean(value, known)}"


def one_line(text: str) -> str:
    """Returns text without line breaks."""
    return " ".join(text.split())


def describe(error: "ErrorDetails", known: Iterable[str], *, present: bool) -> str:
    """Returns what is wrong with a value.

    Args:
        error: The error as pydantic has it.
        known: The keys that there are beside this one.
        present: True where the key is there.
    """
    kind, value, details = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "required key has no value" if present else "required key is missing"
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(error['loc'][-1], known)}"
    if kind == "value_error":
        return one_line(str(details["error"]))
    if kind == "literal_error":
        return one_of(re.findall(r"'([^']*)'", details["expected"]), value)
    if kind in _BOUNDS:
        detail, words = _BOUNDS[kind]
        return f"must be {words} {details[detail]:.15g}, found {shown(value)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {shown(value)}{_hint(kind, value)}"
    return f"{one_line(error['msg'])}, found {shown(value)}"


def _plain(key: str) -> str:
    return shortened(key if key.isprintable() else repr(key))


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Returns text cut to so many characters: it repeats what anybody may have written, and may be of any length."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def _hint(kind: str, value: Any) -> str:
    quotable = isinstance(value, bool | int | float | datetime.date)
    return " (in quotes it would be text)" if kind == "string_type" and quotable else ""
