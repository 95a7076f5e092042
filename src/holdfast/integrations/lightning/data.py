"""The position of a Lightning Trainer in its data: its loaders are followed where it iterates them itself.

Lightning makes the iterators of an epoch before the hooks at its beginning, and counts the epochs. So a cursor goes
along: it is asked for the batches where Lightning would ask the loader. At a resume nothing is iterated until all else
is restored. Read against Lightning 2.6.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from holdfast.state.data import loader
from holdfast.state.data.followed import FollowedCursor
from holdfast.state.data.position import Position
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_FOLLOWER = "_holdfast_data"


class _Restoring(NamedTuple):
    """The arguments of `DataCursor.restore`, kept until there is data."""

    encoded: Mapping[str, Any]
    after_skip: Callable[[], object]
    replay: bool
    saved_by: int
    processes: int


class _Pass:
    """One pass through a loader, in its place where Lightning iterates it and asks for its length."""

    def __init__(self, iterator: Iterator[Any], loader: Any) -> None:
        self._iterator = iterator
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def __len__(self) -> int:
        return len(self._loader)


class CombinedLoaders:
    """Several loaders that Lightning combines, as data that can be gone through again.

    Args:
        combined: Lightning's `CombinedLoader`, which is followed.
    """

    def __init__(self, combined: Any) -> None:
        self._combined = combined
        self.dataset = list(combined.flattened)  # a walk looks here for generators
        self.num_workers = max(getattr(each, "num_workers", 0) for each in combined.flattened)

    def __iter__(self) -> Iterator[Any]:
        _own_pass(self._combined)
        return iter(self._combined._iterator.__next__, self)  # not itself: asked for an iterator it begins anew


class _CountedPass:
    """One pass through several loaders: the iterator of Lightning's mode, by way of a cursor that counts."""

    def __init__(self, iterator: Iterator[Any], own: Any) -> None:
        self._iterator = iterator
        self._own = own

    def __iter__(self) -> "_CountedPass":
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def __len__(self) -> int:
        return len(self._own)

    def reset(self) -> None:
        """Lets go of the loaders, as Lightning asks for when training ends."""
        self._own.reset()


def _iterate(combined: Any) -> Any:
    """Is the `__iter__` of a `CombinedLoader` while it is followed."""
    follower: LightningData = vars(combined)[_FOLLOWER]
    return follower.iterate(combined)


class LightningData:
    """The position of a trainer in its training data, as a plain loop's cursor gives it.

    Args:
        waits: True where a resume is to come: nothing is iterated before `arrive`.
    """

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self._cursor: FollowedCursor | None = None
        self._restoring: _Restoring | None = None
        self._several: list[Any] = []
        self._fetcher: Any = None
        self._before_ahead: Position | None = None
        self.notices: list[str] = []
        """Lines for the user that came up since the data was there, for whoever logs to take."""
        self.redistribution = ""
        """The notice of how it goes on after another number of processes; it comes with the data, in `notices`."""

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0."""
        return self._counted("epoch")

    @property
    def consumed(self) -> int:
        """The number of batches of it that Lightning has fetched."""
        return self._counted("consumed")

    @property
    def where(self) -> str:
        """The position, for people."""
        return f"epoch {self.epoch}, {self.consumed} batches into it"

    def follow(self, combined: Any, epoch: int) -> None:
        """Follows loaders that Lightning has just set up, before it iterates them.

        Args:
            combined: Its `CombinedLoader`.
            epoch: The number of the epoch that is to come.
        """
        kind = type(combined)
        if _FOLLOWER not in vars(combined):
            # Of the one base and without slots: else it were no class that an object can be given.
            combined.__class__ = type(kind.__name__, (kind,), {"__slots__": (), "__iter__": _iterate})
        vars(combined)[_FOLLOWER] = self
        is_one = len(combined.flattened) == 1
        self._several = [] if is_one else list(combined.flattened)
        self._cursor = FollowedCursor(combined.flattened[0] if is_one else CombinedLoaders(combined))
        self._cursor.epoch = epoch
        self._restore_if_there_is_data()

    def unfollow(self, combined: Any) -> None:
        """Leaves loaders to Lightning alone again."""
        if combined is not None and vars(combined).pop(_FOLLOWER, None) is not None:
            combined.__class__ = type(combined).__base__

    def iterate(self, combined: Any) -> Any:
        """Begins a pass where Lightning does: through the cursor, or through nothing as long as a resume is to come."""
        cursor = self._cursor
        assert cursor is not None
        self._before_ahead = None
        if self._waits:
            return _through(combined, [_Pass(iter(()), each) for each in combined.flattened])
        if len(combined.flattened) == 1:
            return _through(combined, [_Pass(self._fetched(cursor.enter()), combined.flattened[0])])
        iterator = self._fetched(cursor.enter())
        combined._iterator = _CountedPass(iterator, combined._iterator)
        return combined

    def arrive(self, fetcher: Any) -> None:
        """Goes to the position that was restored; what was recorded with it is set last.

        Args:
            fetcher: Lightning's fetcher of batches, whose next is the one after the position.
        """
        self._waits = False
        self._fetcher = fetcher
        iter(fetcher)
        if self._restoring is not None and self._restoring.encoded.get("ahead") is not None:
            self._restoring.after_skip()  # now that the batch that is ahead has drawn what it drew

    def settle(self) -> None:
        """Takes a position between two epochs at once: what draws the next epoch's order is set, and goes on."""
        self._waits = False
        if self._cursor is not None:
            self._cursor.arrive_between()

    @property
    def is_between_epochs(self) -> bool:
        """True where the position that was restored lies between two epochs."""
        return self._restoring is not None and self._restoring.encoded.get("begin") is None

    def watch(self, fetcher: Any) -> None:
        """Takes in who fetches the batches: it may be one ahead, where data has no length."""
        self._fetcher = fetcher

    def leave(self) -> None:
        """Notes that the epoch is over."""
        if self._cursor is not None:
            self._cursor.leave()
        self._before_ahead = None

    def begun(self) -> RngRecord | None:
        """Returns the random state before the epoch's iterators were made, as long as no batch was fetched of it."""
        ahead, cursor = self._ahead, self._cursor
        consumed = self.consumed if ahead is None else ahead.consumed
        begin = cursor.record().begin if cursor is not None and not consumed else None
        return None if begin is None else begin._replace(generators={})

    def record(self) -> Position:
        """Records the position. Called by training at every boundary."""
        assert self._cursor is not None
        return self._ahead or _before_the_first(self._cursor.record())

    @property
    def _ahead(self) -> Position | None:
        """The position before the batch that Lightning has fetched ahead, which is fetched again; None without one."""
        return self._before_ahead if getattr(self._fetcher, "batches", None) else None

    def encode(self, recorded: Position) -> dict[str, Any]:
        """Returns a position as JSON."""
        assert self._cursor is not None
        return self._cursor.encode(recorded)

    def restore(
        self,
        encoded: Mapping[str, Any],
        *,
        after_skip: Callable[[], object],
        replay: bool = False,
        saved_by: int = 1,
        processes: int = 1,
    ) -> list[str]:
        """Goes to a position as soon as there is data; as `DataCursor.restore`, whose lines come in `notices`."""
        self._restoring = _Restoring(encoded, after_skip, replay, saved_by, processes)
        self._restore_if_there_is_data()
        return []

    def other_order(self, encoded: Any, saved_by: int, processes: int) -> str:
        """Returns nothing: there is no data yet that could be compared."""
        return ""

    def _restore_if_there_is_data(self) -> None:
        if self._cursor is None or self._restoring is None or not self._waits:
            return
        restoring = self._restoring
        ahead = restoring.encoded.get("ahead")
        self.notices += self._cursor.restore(
            restoring.encoded,
            after_skip=restoring.after_skip if ahead is None else partial(rng_state.restore, ahead),
            replay=restoring.replay,
            saved_by=restoring.saved_by,
            processes=restoring.processes,
        )
        if self._cursor.redistribution:
            self.notices.append(f"data: {self._cursor.redistribution}")
        if self._is_begun_anew(restoring.encoded):
            self.notices.append(
                "data: a shorter one of several loaders was begun anew within the epoch: where training draws random"
                " numbers its order may be another from here on"
            )

    def _is_begun_anew(self, encoded: Mapping[str, Any]) -> bool:
        """Tells if one of several loaders had come to its end by a position, and began anew: it drew its order then."""
        consumed = encoded.get("consumed", 0)
        return any((batches := loader.batches(each)) is not None and batches < consumed for each in self._several)

    def _fetched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields batches; where the fetcher has one ahead it is known where that was fetched."""
        cursor = self._cursor
        assert cursor is not None
        while True:
            if not cursor.consumed:  # whoever fetches it may not be known yet
                self._before_ahead = _before_the_first(cursor.record())
            elif hasattr(self._fetcher, "batches") and self._fetcher.length is None:
                self._before_ahead = cursor.record()._replace(ahead=rng_state.record())
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def _counted(self, name: str) -> int:
        if self._restoring is not None and self._waits:
            return int(self._restoring.encoded.get(name, 0))
        return 0 if self._cursor is None else int(getattr(self._cursor, name))


def _before_the_first(position: Position) -> Position:
    """Returns the position between two epochs for one in an epoch of which no batch was taken; another as it is."""
    if position.consumed or position.begin is None:
        return position
    inner = {**position.inner_begin, **position.begin.generators}
    return position._replace(begin=None, order=None, inner=inner, inner_begin={})


def _own_pass(combined: Any) -> Any:
    """Has a loader that is followed begin a pass as its own class does."""
    return super(type(combined), combined).__iter__()


def _through(combined: Any, passes: list[_Pass]) -> Any:
    """Has it begin a pass through others than its loaders, which it shows as ever."""
    flattened = combined._flattened
    combined._flattened = passes
    try:
        return _own_pass(combined)
    finally:
        combined._flattened = flattened
