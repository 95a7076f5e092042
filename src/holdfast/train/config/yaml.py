"""Reads YAML as PyYAML's safe loader does (YAML 1.1), and remembers where each value stands.

Knows nothing of which keys there are. What is wrong with the text is gathered, as far as reading can go on after it.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from holdfast.errors import ConfigError
from holdfast.train.config.wording import Loc, dotted, one_line, shortened, shown

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


LARGEST = 256 * 1024
"""The largest file that is read, in bytes. PyYAML takes about a second for 100 KiB."""

_DEEPEST = 40
_LONGEST_SAID = 200
_AFTER_EVERY_LINE = 1 << 40


class Line(NamedTuple):
    """One line for the user, with what it is sorted by."""

    order: int
    text: str


@dataclass
class Source:
    """The values of a configuration, and where each of them was given."""

    name: str
    """The name of the file, as messages give it."""

    values: dict[str, Any]
    places: dict[Loc, Place]
    """For each value the line of its key, or of itself where it is an item of a list; or the key of a `--set`."""

    unread: set[Loc] = field(default_factory=set)
    """Values that could not be read. A problem names each, so that nothing more need be said of it."""

    problems: list[Line] = field(default_factory=list)

    def say(self, loc: Loc, text: str) -> Line:
        """One line about the value at `loc`; where there is none, it is located at what should hold it."""
        nearest = next(loc[:size] for size in range(len(loc), -1, -1) if loc[:size] in self.places)
        return self.say_at(self.places[nearest], loc, text)

    def say_at(self, place: Place, loc: Loc, text: str) -> Line:
        """One line about the value at `loc`, given at `place`."""
        key = dotted(loc)
        where, order = (
            (f"--set {place}", _AFTER_EVERY_LINE) if isinstance(place, str) else (f"{self.name}:{place}", place)
        )
        about = f"{where}: " if not key or key == place else f"{where}: {key}: "
        return Line(order, about + text)

    def take(self, expansion: Expansion) -> None:
        """Takes over what reading a text found out."""
        self.places |= expansion.places
        self.unread |= expansion.unread
        self.problems += [self.say_at(*problem) for problem in expansion.problems]


def read(path: Path) -> Source:
    """Reads a file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no keys and values at its top level.
    """
    source = Source(one_line(str(path)), {}, {(): 1})
    text = _text(path, source.name)
    expansion = Expansion()
    try:
        root = compose(text)
        if root is None:
            raise UnusableError(Problem(1, (), "the file is empty"))
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise UnusableError(
                Problem(line, (), "expected keys and values at the top level, such as 'base_model: ...'")
            )
        source.values = expansion.value(root)
    except UnusableError as error:
        raise ConfigError([source.say_at(*error.problem).text]) from None
    source.take(expansion)
    return source


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text; None where it holds nothing.

    Raises:
        UnusableError: The text is not YAML.
    """
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnusableError(Problem(line, (), f"not valid YAML: the character U+{error.character:04X}")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = one_line(error.problem or error.context or "").replace("'<stream end>'", "the end")
        if r"'\t'" in said:
            said = "a tab, where YAML wants spaces"
        raise UnusableError(
            Problem(mark.line + 1 if mark else 1, (), f"not valid YAML: {shortened(said, _LONGEST_SAID)}")
        ) from None


class _Loader(yaml.SafeLoader):
    """The safe loader, with a limit to nesting, which would otherwise be Python's own."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth == _DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEEPEST} levels deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or "cannot be read").lower()
        raise ConfigError([f"{name}: {said}"]) from None
    if len(data) > LARGEST:
        raise ConfigError([f"{name}: larger than {LARGEST // 1024} KiB, which no configuration is"])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: not UTF-8 text"]) from None
