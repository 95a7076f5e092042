"""A disk that keeps what was synced, and of the rest whatever it likes: the model behind the tests of power cuts.

More hostile than ext4 and XFS, and as hostile as POSIX allows. Until a file is synced, its content after a power cut
may be what was synced last, all that was written, half of it, or zeros. Until a directory is synced, each change of a
name in it (made, renamed, removed) may have happened or not, each on its own. Three things hold all the same: a rename
happens as a whole; the changes of one file's name happen in their order; a name belongs to one file, the later one.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOP = 0
"""The directory that everything lies below. It has no name that could be lost."""

Tree = tuple[tuple[str, bytes | None], ...]
"""What a disk holds: each path with the content of its file, or None for a directory."""


@dataclass(frozen=True)
class Named:
    """A change of a name: what has number `item` is called `name` in `folder` from now on; None: it has no name."""

    item: int
    folder: int | None
    name: str
    synced_by: int
    """The directory that makes the change durable."""


@dataclass(frozen=True)
class Written:
    """A change of a file: its whole content from now on."""

    item: int
    content: bytes


@dataclass(frozen=True)
class Synced:
    """A file or directory was synced, from this place in the program: its functions, the innermost first."""

    item: int
    place: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """Something that the program has let somebody know, and must stand by from now on."""

    kind: str
    value: str


Event = Named | Written | Synced | Told

# What is for people to look at, and never promised. What becomes of it is drawn, and not multiplied with the rest.
_CARELESS = ("events.jsonl", "status.json")


@dataclass
class Disk:
    """What lay on a disk, durably, and all that has happened to it since."""

    folders: set[int] = field(default_factory=lambda: {TOP})
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, tuple[int, str]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, top: Path) -> "Disk":
        """A disk that holds what a directory holds."""
        disk = cls()
        items = {top: TOP}
        for number, path in enumerate(sorted(top.rglob("*")), 1):
            items[path] = number
            disk.names[number] = (items[path.parent], path.name)
            if path.is_dir():
                disk.folders.add(number)
            else:
                disk.contents[number] = path.read_bytes()
        return disk

    def up_to(self, count: int) -> "Disk":
        """The same disk when no more than the first `count` events had happened."""
        return Disk(set(self.folders), dict(self.contents), dict(self.names), self.events[:count])

    def visible(self) -> Tree:
        """What every process sees while there is power."""
        pending = _Pending(self, len(self.events), frozenset())
        return pending.tree(pending.changes, {item: content for item, (_, content) in pending.dirty.items()})

    def after_power_cuts(
        self, muted: frozenset[tuple[str, ...]] = frozenset(), limit: int = 200, seed: int = 0
    ) -> Iterator[tuple[Tree, int]]:
        """What may lie on the disk after a power cut, at any moment; with how many events had happened.

        All that is possible as long as that is no more than `limit` at one moment, a seeded sample of it beyond that.
        What can be left only becomes more until something is synced or told, so only these moments need a look.

        Args:
            muted: The places in the program whose syncs do nothing.
            limit: How many states of one moment.
            seed: Of the sample.
        """
        dice = random.Random(seed)
        for count in range(len(self.events) + 1):
            if count == len(self.events) or isinstance(self.events[count], Synced | Told):
                pending = _Pending(self, count, muted)
                for tree in pending.trees(limit, dice):
                    yield tree, count


class _Pending:
    """What is durable at one moment, and what is not."""

    def __init__(self, disk: Disk, count: int, muted: frozenset[tuple[str, ...]]) -> None:
        self.folders = disk.folders
        self.durable: dict[int, tuple[int, int | None, str]] = {
            item: (-1, folder, name) for item, (folder, name) in disk.names.items()
        }
        self.contents = dict(disk.contents)
        self.changes: list[tuple[int, Named]] = []
        self.dirty: dict[int, tuple[bytes, bytes]] = {}
        for order, event in enumerate(disk.events[:count]):
            if isinstance(event, Named):
                self.changes.append((order, event))
            elif isinstance(event, Written):
                self.dirty[event.item] = (self.contents.get(event.item, b""), event.content)
            elif isinstance(event, Synced) and event.place not in muted:
                self._sync(event.item)

    def _sync(self, item: int) -> None:
        if item in self.dirty:
            self.contents[item] = self.dirty.pop(item)[1]
        for order, change in self.changes:
            if change.synced_by == item:
                self.durable[change.item] = (order, change.folder, change.name)
        self.changes = [(order, change) for order, change in self.changes if change.synced_by != item]

    def trees(self, limit: int, dice: random.Random) -> Iterator[Tree]:
        careless = {change.item for _, change in self.changes if change.name.endswith(_CARELESS)}
        careless |= {item for item, (_, _, name) in self.durable.items() if name.endswith(_CARELESS)}
        changes = [pair for pair in self.changes if pair[1].item not in careless]
        others = [pair for pair in self.changes if pair[1].item in careless]
        dirty = [item for item in self.dirty if item not in careless]
        ways = [_contents(*self.dirty[item]) for item in dirty]
        chosen: Iterable[tuple[Iterable[bool], Iterable[bytes]]]
        if 2 ** len(changes) * math.prod(map(len, ways)) <= limit:
            chosen = itertools.product(itertools.product((False, True), repeat=len(changes)), itertools.product(*ways))
        else:
            chosen = itertools.islice(_sample(len(changes), ways, dice), limit)
        for kept, contents in chosen:
            happened = [pair for pair, is_kept in zip(changes, kept, strict=True) if is_kept]
            happened += [pair for pair in others if dice.random() < 0.5]
            drawn = {item: dice.choice(_contents(*self.dirty[item])) for item in careless & self.dirty.keys()}
            yield self.tree(happened, drawn | dict(zip(dirty, contents, strict=True)))

    def tree(self, changes: Iterable[tuple[int, Named]], contents: Mapping[int, bytes]) -> Tree:
        named = dict(self.durable)
        for order, change in changes:
            if change.item not in named or order > named[change.item][0]:
                named[change.item] = (order, change.folder, change.name)
        owners = {}
        for item, (_, folder, name) in sorted(named.items(), key=lambda pair: pair[1][0]):
            if folder is not None:
                owners[folder, name] = item
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), item in owners.items():
            inside.setdefault(folder, []).append((name, item))
        return tuple(self._below(TOP, "", inside, contents))

    def _below(
        self, folder: int, prefix: str, inside: Mapping[int, list[tuple[str, int]]], contents: Mapping[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, item in sorted(inside.get(folder, ())):
            if item in self.folders:
                yield prefix + name, None
                yield from self._below(item, f"{prefix}{name}/", inside, contents)
            else:
                yield prefix + name, contents.get(item, self.contents.get(item, b""))


def _contents(before: bytes, after: bytes) -> list[bytes]:
    """What a file that was not synced may hold after a power cut."""
    return sorted({before, after, after[: len(after) // 2], bytes(len(after))})


def _sample(
    changes: int, ways: list[list[bytes]], dice: random.Random
) -> Iterator[tuple[Iterable[bool], Iterable[bytes]]]:
    """First what a disk is most likely to do: all changes up to one; all but one; one alone. Then anything."""
    for number in range(changes + 1):
        yield [place < number for place in range(changes)], [dice.choice(way) for way in ways]
    for number in range(changes):
        yield [place != number for place in range(changes)], [dice.choice(way) for way in ways]
        yield [place == number for place in range(changes)], [dice.choice(way) for way in ways]
    while True:
        yield [dice.random() < 0.5 for _ in range(changes)], [dice.choice(way) for way in ways]


def what_matters(tree: Tree) -> Tree:
    """A tree without what is for people to look at."""
    return tuple(pair for pair in tree if not pair[0].endswith(_CARELESS))


def lay_out(tree: Tree, top: Path) -> None:
    """Makes a real directory that holds what a disk holds."""
    top.mkdir()
    for path, content in tree:
        if content is None:
            (top / path).mkdir(mode=0o700)
        else:
            (top / path).write_bytes(content)
