"""A place in memory where requests fare as they do on a network, and which is looked at after each change."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from beyond.turns import Interruption, Turns
from holdfast.errors import AbsentError, MirrorUnavailableError
from holdfast.remote.object_store import Item

Kind = Literal["cut before", "cut after", "failed", "lost", "late", "twice"]
KINDS: tuple[Kind, ...] = ("cut before", "cut after", "failed", "lost", "late", "twice")


class CutError(BaseException):
    """The process is gone. Nothing of it catches this."""


class Fate(NamedTuple):
    """What becomes of one request: the process is gone before or after it is done; it fails, or its answer does; it is
    done late, after an error, or answered at once and done once more. `after` so many other requests.
    """

    kind: Kind
    after: int = 0


@dataclass
class Place:
    """The objects of a place, and the requests that are still on their way to it."""

    objects: dict[str, bytes] = field(default_factory=dict)
    look: Callable[[], None] = lambda: None
    """Called after each change."""
    requests: int = 0
    under_way: list[tuple[int, Callable[[], None]]] = field(default_factory=list)

    def pass_time(self, requests: int = 1) -> None:
        """Lets so many requests pass: those that are on their way arrive when their time has come."""
        self.requests += requests
        due = [action for when, action in self.under_way if when <= self.requests]
        self.under_way = [(when, action) for when, action in self.under_way if when > self.requests]
        for action in due:
            action()
            self.look()


class Client:
    """The place as one process sees it: an object store by the contract.

    Args:
        place: The place.
        fates: What becomes of its requests, by their numbers, counted from 1.
        turns: Says when it may make its next request, or what comes before that; None: at once.
        page: The objects that one request lists at most: what changes between two of them is seen or not.
    """

    def __init__(
        self,
        place: Place,
        fates: Mapping[int, Fate] | None = None,
        turns: Turns | Interruption | None = None,
        page: int = 1000,
    ) -> None:
        self._place = place
        self._fates = fates or {}
        self.turns = turns
        self._page = page
        self.requests = 0
        self.sent: set[str] = set()
        """The keys of the files that it has put."""
        self.changes: list[int] = []
        """The numbers of those of its requests that may change something."""

    @property
    def url(self) -> str:
        return "memory://"

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        data = b"".join(blocks)
        assert len(data) == size
        self.sent.add(key)
        self._change(lambda: self._place.objects.__setitem__(key, data))

    def put_absent(self, key: str, data: bytes) -> bool:
        self._change(lambda: self._place.objects.setdefault(key, data))
        return self._place.objects.get(key) == data  # in one request with the change: no turn is given in between

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self._ask()
        if key not in self._place.objects:
            raise AbsentError(f"there is no {key}")
        return self._place.objects[key][start:end]

    def listed(self, prefix: str = "") -> Iterator[Item]:
        last = ""
        while True:
            self._ask()
            names = sorted(key for key in self._place.objects if key.startswith(prefix) and key > last)[: self._page]
            yield from [Item(key, len(self._place.objects[key])) for key in names]
            if len(names) < self._page:
                return
            last = names[-1]

    def delete(self, key: str) -> None:
        self._change(lambda: self._place.objects.pop(key, None))

    def _ask(self) -> Fate | None:
        """Makes a request that changes nothing; raises where it has a fate."""
        fate = self._begin()
        if fate is not None and fate.kind in ("cut before", "cut after"):
            raise CutError
        if fate is not None and fate.kind in ("failed", "lost", "late"):
            raise MirrorUnavailableError("it does not answer")
        return fate

    def _change(self, action: Callable[[], object]) -> None:
        fate = self._begin()
        self.changes.append(self.requests)
        if fate is None or fate.kind in ("cut after", "lost", "twice"):
            action()
            self._place.look()
        if fate is None:
            return
        if fate.kind in ("late", "twice"):
            self._place.under_way.append((self._place.requests + fate.after, lambda: (action(), None)[1]))
        if fate.kind in ("cut before", "cut after"):
            raise CutError
        if fate.kind != "twice":
            raise MirrorUnavailableError("it does not answer")

    def _begin(self) -> Fate | None:
        if self.turns is not None:
            self.turns.take(self)
        self._place.pass_time()
        self.requests += 1
        return self._fates.get(self.requests)
