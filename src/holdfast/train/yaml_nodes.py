"""From PyYAML's nodes to values: duplicate keys are found, merge keys and aliases followed, and neither without end."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import yaml

from holdfast.train.wording import Loc, dotted, shown

Place = int | str
"""A line of the file, or the key of a `--set`."""

_MOST_VALUES = 100_000
_LARGEST_NUMBER = 2**63
_CORE = "tag:yaml.org,2002:"
_SCALARS = {_CORE + kind for kind in ("null", "bool", "int", "float", "str", "timestamp")}
_MERGE = _CORE + "merge"
# What PyYAML's constructors of single values raise at text that does not suit its tag.
_NOT_SUCH_A_VALUE = (yaml.YAMLError, ValueError, OverflowError, KeyError, IndexError, AttributeError)


class Problem(NamedTuple):
    """Something wrong with the text."""

    place: Place
    loc: Loc
    text: str


class UnusableError(Exception):
    """The text cannot be read on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class Expansion:
    """Makes values from nodes.

    Args:
        place: Where everything comes from; unset, each node's own line.
        at: The location of the outermost value.
    """

    def __init__(self, place: str | None = None, at: Loc = ()) -> None:
        self.places: dict[Loc, Place] = {}
        self.unread: set[Loc] = set()
        self.problems: list[Problem] = []
        self._place = place
        self._at = at
        self._constructor = yaml.SafeLoader("")
        self._left = _MOST_VALUES
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> Any:
        """The value of a node and of all below it.

        Raises:
            UnusableError: An alias contains itself, or aliases multiply beyond measure.
        """
        self.places[self._at] = self._where(node)
        return self._value(node, self._at)

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        with self._inside(node, loc):
            match node:
                case yaml.MappingNode(tag=tag) if tag == _CORE + "map":
                    return self._mapping(node, loc)
                case yaml.SequenceNode(tag=tag) if tag == _CORE + "seq":
                    return [self._placed(item, item, (*loc, index)) for index, item in enumerate(node.value)]
                case yaml.ScalarNode(tag=tag) if tag in _SCALARS:
                    return self._scalar(node, loc)
        kind = node.tag.removeprefix(_CORE)
        return self._unread(node, loc, f"YAML's {shown(kind)} is not used here; text is written in quotes")

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        return {key: self._placed(name, value, (*loc, key)) for key, (name, value) in self._pairs(node, loc).items()}

    def _placed(self, name: yaml.Node, value: yaml.Node, loc: Loc) -> Any:
        self.places[loc] = self._where(name)
        return self._value(value, loc)

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes by key; what a mapping says itself goes before what it merges in."""
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, value in node.value:
            if name.tag == _MERGE:
                merged |= self._merged(value, loc)
                continue
            key = self._key(name, loc)
            if key is None:
                continue
            if key in own:
                first = "" if self._place else f", first given in line {own[key][0].start_mark.line + 1}"
                self._problem(name, (*loc, key), f"duplicate key{first}")
            own[key] = (name, value)
        return merged | own

    def _merged(self, node: yaml.Node, loc: Loc) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        # Of several, the first to have a key gives it.
        for part in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            with self._inside(part, loc):
                if isinstance(part, yaml.MappingNode):
                    found |= self._pairs(part, loc)
                else:
                    self._problem(part, (*loc, "<<"), "expected keys and values to merge in")
        return found

    def _key(self, node: yaml.Node, loc: Loc) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _CORE + "str":
            return cast("str | None", self._scalar(node, loc))
        if isinstance(node, yaml.ScalarNode):
            found = f"{dotted((node.value,)) or 'nothing'} (in quotes it would be text)"
        else:
            found = "a list, or keys and values"
        self._problem(node, loc, f"expected a key that is text, found {found}")
        return None

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except _NOT_SUCH_A_VALUE:
            return self._unread(node, loc, f"{shown(node.value)} cannot be read; text is written in quotes")
        if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
            return self._unread(node, loc, "a number this large is not used here")
        if isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            return self._unread(node, loc, f"{shown(value)} holds a character that text cannot hold")
        assert value is None or isinstance(value, bool | int | float | str | datetime.date)
        return value

    def _unread(self, node: yaml.Node, loc: Loc, text: str) -> None:
        self.unread.add(loc)
        self._problem(node, loc, text)

    def _problem(self, node: yaml.Node, loc: Loc, text: str) -> None:
        self.problems.append(Problem(self._where(node), loc, text))

    def _where(self, node: yaml.Node) -> Place:
        return self._place if self._place is not None else node.start_mark.line + 1

    @contextmanager
    def _inside(self, node: yaml.Node, loc: Loc) -> Iterator[None]:
        """Counts what aliases multiply, and notices one that leads back to itself."""
        self._left -= 1
        if self._left < 0:
            raise UnusableError(Problem(self._where(node), loc, f"more than {_MOST_VALUES:,} values, aliases followed"))
        if id(node) in self._open:
            raise UnusableError(Problem(self._where(node), loc, "an alias that contains itself"))
        self._open.add(id(node))
        yield
        self._open.discard(id(node))
