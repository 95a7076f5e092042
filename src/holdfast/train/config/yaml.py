"""Reads YAML as PyYAML's safe loader does (YAML 1.1), and remembers where each value stands.

Knows nothing of which keys there are. In PyYAML's words: a text is composed into nodes, and values are constructed from
the nodes. A text that cannot be read on is an error at once; other problems are gathered while reading goes on.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from holdfast.errors import ConfigError
from holdfast.wording import Loc, dotted, one_line, shortened, shown

MOST_BYTES = 256 * 1024
"""The size of the largest file that is read. PyYAML takes about a second for 100 KiB."""

MOST_LEVELS = 40
"""The deepest nesting that is read; without a limit it would be Python's own."""

MOST_VALUES = 100_000
"""The most values that are constructed, because aliases can multiply a small file without end."""

Place = int | str
"""A line of the file, or the key of a `--set`."""


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


class Message(NamedTuple):
    """One line for the user, with the number that it is sorted by."""

    order: int
    text: str


# Messages about a `--set` come after those about lines of the file.
_AFTER_EVERY_LINE = 1 << 40


@dataclass
class Source:
    """The values of a configuration, and the places where they were given."""

    name: str
    """The name of the file, as messages give it."""

    values: dict[str, Any]
    places: dict[Loc, Place]
    """For each value the line of its key, or of itself where it is an item of a list; or the key of a `--set`."""

    unread: set[Loc] = field(default_factory=set)
    """Values that could not be read. A problem names each, so that nothing more need be said of it."""

    problems: list[Message] = field(default_factory=list)

    def message(self, loc: Loc, text: str) -> Message:
        """Returns a line about the value at `loc`; where there is none, it is located at what should hold it."""
        nearest = next(loc[:size] for size in range(len(loc), -1, -1) if loc[:size] in self.places)
        return self.message_at(self.places[nearest], loc, text)

    def message_at(self, place: Place, loc: Loc, text: str) -> Message:
        """Returns a line about the value at `loc`, given at `place`."""
        key = dotted(loc)
        where, order = (
            (f"--set {place}", _AFTER_EVERY_LINE) if isinstance(place, str) else (f"{self.name}:{place}", place)
        )
        about = f"{where}: " if not key or key == place else f"{where}: {key}: "
        return Message(order, about + text)

    def take_over(self, constructor: "Constructor") -> None:
        """Takes over the places and the problems of values that were constructed."""
        self.places |= constructor.places
        self.unread |= constructor.unread
        self.problems += [self.message_at(*problem) for problem in constructor.problems]


def read(path: Path) -> Source:
    """Reads a file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no keys and values at its top level.
    """
    source = Source(one_line(str(path)), {}, {(): 1})
    text = _text(path, source.name)
    constructor = Constructor()
    try:
        root = compose(text)
        if root is None:
            raise UnusableError(Problem(1, (), "the file is empty"))
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise UnusableError(
                Problem(line, (), "expected keys and values at the top level, such as 'base_model: ...'")
            )
        source.values = constructor.construct(root)
    except UnusableError as error:
        raise ConfigError([source.message_at(*error.problem).text]) from None
    source.take_over(constructor)
    return source


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or "cannot be read").lower()
        )
        raise ConfigError([f"{name}: {reason}"]) from None
    if len(data) > MOST_BYTES:
        raise ConfigError([f"{name}: larger than {MOST_BYTES // 1024} KiB, which no configuration is"])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: not UTF-8 text"]) from None


# PyYAML repeats what it does not understand, which may be of any length.
_LONGEST_REASON = 200


def compose(text: str) -> yaml.Node | None:
    """Returns the outermost node of a text; None where it holds nothing.

    Raises:
        UnusableError: The text is not YAML.
    """
    try:
        return _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnusableError(Problem(line, (), f"not valid YAML: the character U+{error.character:04X}")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = one_line(error.problem or error.context or "").replace("'<stream end>'", "the end")
        if r"'\t'" in reason:
            reason = "a tab, where YAML wants spaces"
        raise UnusableError(
            Problem(mark.line + 1 if mark else 1, (), f"not valid YAML: {shortened(reason, _LONGEST_REASON)}")
        ) from None


class _Loader(yaml.SafeLoader):
    """The safe loader, with a limit to nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth == MOST_LEVELS:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {MOST_LEVELS} levels deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_CORE = "tag:yaml.org,2002:"
_MERGE = _CORE + "merge"
_SCALARS = {_CORE + kind for kind in ("null", "bool", "int", "float", "str", "timestamp")}

# What PyYAML's constructors of single values raise at text that does not suit its tag.
_NOT_SUCH_A_VALUE = (yaml.YAMLError, ValueError, OverflowError, KeyError, IndexError, AttributeError)

# What the values are for (torch, Arrow) counts in 64 bits, and Python does not even print a number of 5,000 digits.
_FIRST_TOO_LARGE = 2**63


class Constructor:
    """Constructs values from nodes, and remembers their places and what is wrong with them.

    Args:
        place: The place of all of them; unset, each node's own line.
        at: The location of the outermost value.
    """

    def __init__(self, place: str | None = None, at: Loc = ()) -> None:
        self.places: dict[Loc, Place] = {}
        self.unread: set[Loc] = set()
        self.problems: list[Problem] = []
        self._place = place
        self._at = at
        self._scalars = yaml.SafeLoader("")
        self._left = MOST_VALUES
        self._open: set[int] = set()

    def construct(self, node: yaml.Node) -> Any:
        """Returns the value of a node and of all below it.

        Raises:
            UnusableError: An alias contains itself, or aliases multiply beyond measure.
        """
        self.places[self._at] = self._place_of(node)
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

    @contextmanager
    def _inside(self, node: yaml.Node, loc: Loc) -> Iterator[None]:
        """Counts what aliases multiply, and notices one that leads back to itself."""
        self._left -= 1
        if self._left < 0:
            text = f"more than {MOST_VALUES:,} values, aliases followed"
            raise UnusableError(Problem(self._place_of(node), loc, text))
        if id(node) in self._open:
            raise UnusableError(Problem(self._place_of(node), loc, "an alias that contains itself"))
        self._open.add(id(node))
        yield
        self._open.discard(id(node))

    def _placed(self, name: yaml.Node, value: yaml.Node, loc: Loc) -> Any:
        """Returns a value whose place is that of its key `name`."""
        self.places[loc] = self._place_of(name)
        return self._value(value, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        return {key: self._placed(name, value, (*loc, key)) for key, (name, value) in self._pairs(node, loc).items()}

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Returns key and value nodes by key; what a mapping says itself goes before what it merges in."""
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
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        # Of several, the first to have a key gives it.
        for part in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            with self._inside(part, loc):
                if isinstance(part, yaml.MappingNode):
                    pairs |= self._pairs(part, loc)
                else:
                    self._problem(part, (*loc, "<<"), "expected keys and values to merge in")
        return pairs

    def _key(self, node: yaml.Node, loc: Loc) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _CORE + "str":
            return cast("str | None", self._scalar(node, loc))
        if isinstance(node, yaml.ScalarNode):
            instead = f"{dotted((node.value,)) or 'nothing'} (in quotes it would be text)"
        else:
            instead = "a list, or keys and values"
        self._problem(node, loc, f"expected a key that is text, found {instead}")
        return None

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        try:
            value = self._scalars.construct_object(node)
        except _NOT_SUCH_A_VALUE:
            return self._unread(node, loc, f"{shown(node.value)} cannot be read; text is written in quotes")
        if isinstance(value, int) and abs(value) >= _FIRST_TOO_LARGE:
            return self._unread(node, loc, "a number this large is not used here")
        if isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            return self._unread(node, loc, f"{shown(value)} holds a character that text cannot hold")
        assert value is None or isinstance(value, bool | int | float | str | datetime.date)
        return value

    def _unread(self, node: yaml.Node, loc: Loc, text: str) -> None:
        self.unread.add(loc)
        self._problem(node, loc, text)

    def _problem(self, node: yaml.Node, loc: Loc, text: str) -> None:
        self.problems.append(Problem(self._place_of(node), loc, text))

    def _place_of(self, node: yaml.Node) -> Place:
        return self._place if self._place is not None else node.start_mark.line + 1
