"""Reads YAML as PyYAML's safe loader does (YAML 1.1), and remembers where each value stands.

Knows nothing of which keys there are. What is wrong with the text is gathered, as far as reading can go on after it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from holdfast.errors import ConfigError
from holdfast.train.wording import Loc, dotted, one_line, shortened
from holdfast.train.yaml_nodes import Expansion, Place, Problem, UnusableError

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
