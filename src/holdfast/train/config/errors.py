"""Words the errors of pydantic for somebody who writes YAML."""

import datetime
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from holdfast.train.config.wording import did_you_mean, one_line, one_of, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
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


def _hint(kind: str, value: Any) -> str:
    quotable = isinstance(value, bool | int | float | datetime.date)
    return " (in quotes it would be text)" if kind == "string_type" and quotable else ""
