"""Writes keys and values into messages: on one line, short, and in the words of somebody who writes YAML."""

import datetime
import difflib
import math
from collections.abc import Iterable

Loc = tuple[str | int, ...]
"""The location of a value in a configuration: the keys and list indices that lead to it, outermost first."""

_LONGEST = 60
_SHORTEST_HINT = 2


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


def _plain(key: str) -> str:
    return shortened(key if key.isprintable() else repr(key))


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Returns text cut to so many characters: it repeats what anybody may have written, and may be of any length."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
