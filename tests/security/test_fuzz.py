import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from security.parsers import PARSERS, Parser

# In `make test` the same examples each time; with HOLDFAST_FAULTS=1 new ones, and many.
_THOROUGH = os.environ.get("HOLDFAST_FAULTS") == "1"
_EXAMPLES = 5000 if _THOROUGH else 100

# What formats stumble over, to be put in anywhere.
_AWKWARD = st.sampled_from(
    [
        b"",
        b"null",
        b"true",
        b"-1",
        b"0.5",
        b"1e999",
        b"NaN",
        b"9223372036854775808",
        b"9" * 5000,
        b'""',
        b'"x"',
        b"[]",
        b"{}",
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"\\ud800"',
        b'"\\u0000"',
        b"\x00",
        b"\xff\xfe",
        b"\x1b[2J",
        b"\r\n",
        b"../",
        b"/etc/passwd",
        b"&a [*a, *a]",
        b"!!python/object/apply:os.system ['true']",
        b"x" * 5000,
    ]
)


@st.composite
def _changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_AWKWARD | st.binary(max_size=8)) + data[at + draw(st.integers(0, 12)) :]
    return data


_SMALL = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([2**63, -1, "a" * 32, "../up", "\x1b[2J", "x" * 5000, "\ud800", [[[]]] * 500])
)
_ANY = st.recursive(
    _SMALL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _replaced(draw: st.DrawFn, content: Any) -> Any:
    """The same JSON, with something else somewhere in it."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 5)) == 0:
        return draw(_ANY)
    key: Any = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    changed = content.copy()
    changed[key] = draw(_replaced(content[key]))
    if isinstance(changed, dict) and draw(st.integers(0, 9)) == 0:
        changed[draw(st.text(max_size=9) | st.just("\x1b[2J" * 1000))] = changed.pop(key)
    return changed


def _inputs(parser: Parser) -> st.SearchStrategy[bytes]:
    found = _changed(parser.seeds) | st.binary(max_size=300)
    return found if parser.content is None else found | _replaced(parser.content).map(parser.pack)


@pytest.mark.parametrize("name", PARSERS)
def test_security_s03_s04_s05_s12_whatever_the_bytes_a_parser_reads_them_or_refuses_them_in_a_printable_line(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """Changed bytes, seeded: cut, spliced, numbers without end, 3,000 levels, control characters; for each parser."""
    parser = PARSERS[name]
    for seed in parser.seeds:
        parser.parse(seed)
    count = 0

    @settings(deadline=None, max_examples=_EXAMPLES, derandomize=not _THOROUGH, database=None)
    @given(_inputs(parser))
    @example(b"")
    def fuzzed(data: bytes) -> None:
        nonlocal count
        count += 1
        parser.survives(data)

    fuzzed()
    record_property("injected", count)
