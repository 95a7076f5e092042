"""The cursor of a training in its data: the epoch, and the batches of it that were taken."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from holdfast.errors import ConfigError
from holdfast.state import values
from holdfast.state.data import loader, order, position, prepared, redistribute
from holdfast.state.data.inner import InnerState, put
from holdfast.state.data.lookahead import Lookahead
from holdfast.state.data.order import Order
from holdfast.state.data.position import Position, Resume
from holdfast.state.data.prepared import Ahead, Fetching
from holdfast.state.data.skip import SkippingLoader, too_short
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_END = object()


class DataCursor:
    """Goes through data epoch after epoch, and knows its position.

    Args:
        data: A DataLoader, or any iterable that can be gone through again.
    """

    def __init__(self, data: Any) -> None:
        data, self._moved = loader.unwrapped(data)
        self._data = data
        self._stateful = loader.stateful(data)
        self._generators = loader.generators(data)
        self._inner = InnerState(data)
        self._inner_begin: dict[str, Any] = {}
        self._fetching: Fetching | None = None
        # Who has told it one before this, has told it more than none. Some begin at -1.
        self._epochs_told = {path: min(epoch, 0) for path, epoch in loader.epoch_of(data).items()}
        self._set_epoch: int | None = None
        self._told_ahead: int | None = None
        self._iterator: Iterator[Any] | None = None
        self._begin: RngRecord | None = None
        self._order: Order | None = None
        self._workers_kept = False
        self._has_begun = False
        self._resume: Resume | None = None
        # What stood at its end when it was saved has nothing more to give before it begins anew.
        self._stands_at_end = False
        self.epoch = 0
        """The epoch, counted from 0; between two epochs, the one to come."""
        self.consumed = 0
        """The number of batches of it that were handed out, since it was redistributed if it was."""
        self._lookahead = Lookahead()
        self._lines: list[str] = []
        self.redistribution = ""
        """The notice of how it goes on after another number of processes, or with batches of another size."""

    @property
    def where(self) -> str:
        """The position, for people."""
        at = self._resume.at.order if self._resume is not None else None
        if at is not None and at.passed:
            return f"epoch {self.epoch}, {at.passed} of its {at.total} samples taken"
        return f"epoch {self.epoch}, {self.consumed} batches into it"

    def rest_of_epoch(self) -> Iterator[Any]:
        """Yields the batches from the position to the end of the epoch; then the position is the beginning of the next.

        Raises:
            ConfigError: The epoch has no batch at all.
            CheckpointError: The data ends before the position that was resumed.
        """
        at_an_end, self._stands_at_end = self._stands_at_end, False
        if self._iterator is None:
            self._iterator = self._resumed() if self._resume else self._begun()
        yield from self._counted()
        if not self.consumed and at_an_end and self._begin is not None:
            self._begin.restore(self._generators)
            self._iterator = self._pass()
            yield from self._counted()
        self._iterator = self._begin = self._order = self._fetching = None
        if not self.consumed:
            raise ConfigError(
                [f"data: epoch {self.epoch} of the {type(self._data).__name__} has no batch"],
                hint="give data that can be gone through again, such as a DataLoader or a list, and is not empty",
            )
        self.epoch += 1
        self.consumed = 0

    def end_epoch(self) -> int:
        """Ends the epoch where it is: the next batch is the first of the next.

        Returns:
            The number of batches that it had by then, if it was cut short; 0 where it was at its end.
        """
        if self._iterator is None:
            return 0
        taken = 0 if loader.is_exhausted(self._iterator) else self.consumed
        self._iterator = self._begin = self._order = self._fetching = None
        self.epoch += 1
        self.consumed = 0
        return taken

    def arrive_between(self) -> None:
        """Goes to a position between two epochs that is to be resumed, before the first batch is asked for.

        What the loop does until then draws random numbers from the state that was recorded there.
        """
        if self._resume is not None and self._resume.at.begin is None:
            self._arrive_between(self._resume)

    def begin_loop(self, per_step: int | None) -> None:
        """Notes that a loop begins to take batches, or lists of them, of which a step may use a known number."""
        self._lookahead.begin(per_step, self._position())

    def take(self) -> None:
        """Notes that the loop has taken one more."""
        self._lookahead.take(self._position() if self._lookahead.keeps_positions else None)

    def drain(self) -> None:
        """Notes that the loop has taken all that there is."""
        self._lookahead.drain()

    def reach(self) -> list[str]:
        """Notes that the loop is at a boundary.

        Returns:
            Lines for the user that came up since the last.
        """
        self._lookahead.reach(lambda: loader.is_at_end(self._data, self.consumed))
        lines = [*self._lines, *self._lookahead.lines]
        self._lines.clear()
        self._lookahead.lines.clear()
        return lines

    def record(self) -> Position:
        """Records the position. Called by training at every boundary: microseconds, and what `state_dict` takes."""
        position: Position | None = self._lookahead.used()
        return self._position() if position is None else position

    def _position(self) -> Position:
        if self._resume is not None:
            return self._resume.at
        state = self._state_of_data() if self._has_begun else None
        inner = self._inner.record() if self._inner else {}
        if self._iterator is None or loader.is_exhausted(self._iterator):
            between = self.epoch + (self._iterator is not None)
            # The next epoch draws its order from these; one that has begun has them in `begin`.
            inner |= {path: generator.get_state() for path, generator in self._generators.items()}
            return Position(between, 0, None, loader.keeps_workers(self._data), state, None, inner)
        position = Position(
            self.epoch, self.consumed, self._begin, self._workers_kept, state, self._order, inner, self._inner_begin
        )
        if (before := self._fetching.before if self._fetching is not None else None) is not None:
            position = position._replace(ahead=before.random, inner_ahead=before.inner)
        return position if self._set_epoch is None else position._replace(set_epoch=self._set_epoch)

    def close(self) -> None:
        """Lets the epoch go, and with it the workers that the data does not keep itself."""
        self._iterator = self._fetching = None

    def encode(self, recorded: Position) -> dict[str, Any]:
        """Returns a position as JSON.

        Raises:
            UnsupportedError: The data's own state holds what has no form there.
        """
        return {**recorded.encode(), "loader": loader.settings(self._data)}

    def restore(
        self,
        encoded: Mapping[str, Any],
        *,
        after_skip: Callable[[], object],
        replay: bool = False,
        saved_by: int = 1,
        processes: int = 1,
    ) -> list[str]:
        """Goes to a position: the next batch is the one after it.

        The way there is gone when that batch is asked for. It draws from the generators what the epoch drew when it
        was begun.

        Args:
            encoded: The JSON that `encode` gave.
            after_skip: Called at the position, before the next batch is asked for: it sets the random state that was
                recorded together with the position.
            replay: Loads and drops the batches before it, instead of skipping them unloaded. Exact also where samples
                draw random numbers inside worker processes.
            saved_by: The number of processes that trained then.
            processes: The number of processes now.

        Returns:
            A line for each thing that may not go on as it would have, without what `redistribution` says already.

        Raises:
            CheckpointError: It is no position. Nothing was changed.
        """
        at = position.decode(encoded)
        settings = encoded.get("loader")
        notices = at.begin.check(self._generators) if at.begin is not None else []
        if at.inner or self._inner:
            notices += self._inner.differences({k: v for k, v in at.inner.items() if k not in self._generators})
        now = loader.settings(self._data)
        if line := loader.other_size(settings, now):
            at, anew = redistribute.in_other_data(at, settings)
            notices = [line + anew]
        else:
            notices += loader.differences(settings, now)
        if at.state is not None and self._stateful is None:
            notices.append("data: the checkpoint has a state of the data, and the data has no load_state_dict()")
            at = at._replace(state=None)
        at, self.redistribution, by_guess = redistribute.redistribute(at, settings, self._data, saved_by, processes)
        if self.redistribution:
            notices = []
        elif at.consumed and at.state is None:
            notices += self._notices_of_the_way(at, replay)
        self._resume = Resume(at, replay, after_skip, by_guess)
        self._stands_at_end = at.state is not None
        self._iterator = None
        self.epoch, self.consumed = at.epoch, at.consumed
        return notices

    def other_order(self, encoded: Any, saved_by: int, processes: int) -> str:
        """Says if the rest of the epoch would have to be gone through in an order that cannot be made again.

        Args:
            encoded: The JSON that `encode` gave.
            saved_by: The number of processes that trained then.
            processes: The number of processes now.

        Returns:
            A line; empty where it can, or where the data goes on from its own state.

        Raises:
            CheckpointError: It is no position.
        """
        at = position.decode(encoded)
        return redistribute.other_order(at, encoded.get("loader"), self._data, saved_by, processes)

    def _state_of_data(self) -> Any:
        return None if self._stateful is None else values.snapshot(self._stateful.state_dict(), values.cloned)

    def _notices_of_the_way(self, at: Position, replay: bool) -> list[str]:
        if not loader.can_skip(self._data):
            kind = type(self._data.dataset if loader.is_plain(self._data) else self._data).__name__
            return [f"data: a {kind} can only be gone through: {at.consumed} batches are loaded and dropped"]
        lines = []
        if replay and at.workers_kept:
            lines = [
                "data: what samples draw in workers that outlive an epoch is not replayed; the order of samples is"
            ]
        drawing = self._inner.in_samples() if getattr(self._data, "num_workers", 0) else []
        if drawing and (not replay or at.workers_kept):
            lines.append(
                f"data: what samples draw in loader processes from {', '.join(drawing)} does not go on as it would have"
            )
        return lines

    def _begun(self) -> Iterator[Any]:
        self._has_begun = True
        self._tell_epoch()
        if loader.is_prepared(self._data):
            prepared.synchronize(self._data)
        self._workers_kept = loader.keeps_workers(self._data)
        self._begin = rng_state.record(self._generators)
        self._inner_begin = self._inner.record() if self._inner else {}
        self._order = order.order_of(self._data)
        if self._order is not None and self._set_epoch is not None and self._order.kind == order.SEEDED:
            # Its seed is added to the number of the epoch by whoever makes it again.
            self._order = self._order._replace(seed=self._order.seed + self._set_epoch - self.epoch)
        return self._pass()

    def _tell_epoch(self) -> None:
        """Calls `set_epoch` where the script does not do so itself."""
        now, then = loader.epoch_of(self._data), self._epochs_told
        ours = {self.epoch, *([self.epoch + 1] if loader.is_prepared(self._data) else [])}
        others = [epoch for path, epoch in now.items() if epoch != then.get(path, 0) and epoch not in ours]
        if others or self._set_epoch is not None:
            self._set_epoch = max(others, default=self._set_epoch)
        else:
            loader.tell_epoch(self._data, self.epoch)
        self._epochs_told = loader.epoch_of(self._data)

    def _tell_epoch_of(self, at: Position) -> None:
        """Calls `set_epoch` for an epoch that is resumed; what the script has called may be for the next."""
        if at.begin is None:
            self._tell_epoch()
            return
        now, then = loader.epoch_of(self._data), self._epochs_told
        self._told_ahead = max((epoch for path, epoch in now.items() if epoch != then.get(path, 0)), default=None)
        self._set_epoch = at.set_epoch
        loader.tell_epoch(self._data, self.epoch if at.set_epoch is None else at.set_epoch)
        self._epochs_told = loader.epoch_of(self._data)

    def _pass(self, iterator: Iterator[Any] | None = None, at: int = 0, skipped: int = 0) -> Iterator[Any]:
        """Returns the iterator of one pass, through a loader of torch's that has gone some batches ahead already."""
        if not loader.is_prepared(self._data):
            return iter(self._data) if iterator is None else iterator
        in_one = prepared.in_one(self._data)
        beneath = iter(self._data.base_dataloader) if iterator is None else iterator
        self._fetching = Fetching(beneath, at * in_one, in_one, self._inner)
        return prepared.through(self._data, self._fetching, skipped)

    def _resumed(self) -> Iterator[Any]:
        """Goes to the position that is to be resumed, and returns the iterator from there on."""
        assert self._resume is not None
        at, resume = self._resume.at, self._resume
        self._tell_epoch_of(at)
        if at.begin is None:
            self._arrive_between(resume)
            return self._begun()
        plain = self._prepared(at)
        base = loader.base(self._data)
        self._inner.begin(at.inner_begin)
        if at.order is not None and at.order.passed:
            rest = redistribute.rest_of_epoch(at, self._data, self._generators)
            return self._arrived(resume, self._pass(rest, at.consumed), made_again=False)
        at.begin.restore(self._generators)
        passed = at.consumed if at.state is None else 0
        if loader.is_dispatched(self._data):
            # Its first batch fills up its last one, and all processes fetch together: it goes through all of them.
            return self._arrived(resume, self._pass(skipped=passed), made_again=True)
        drops = resume.replay or resume.by_guess or not loader.can_skip(self._data)
        unloaded = 0 if drops else passed
        late = at.begin if at.workers_kept and loader.draws_late(self._data) else None
        iterator = (
            plain.after(unloaded, partial(late.restore, self._generators) if late else None) if plain else iter(base)
        )
        if late and plain is None:
            late.restore(self._generators)
        dropped = sum(1 for _ in itertools.islice(iterator, passed - unloaded))
        if dropped < passed - unloaded and not resume.by_guess:
            raise too_short(passed, dropped)
        return self._arrived(resume, self._pass(iterator, at.consumed), made_again=at.state is None)

    def _prepared(self, at: Position) -> SkippingLoader | None:
        """Gives the data its own state back, and has workers that are kept started; returns what skips, if it can."""
        if at.state is not None:
            self._stateful.load_state_dict(at.state)
        base = loader.base(self._data)
        plain = SkippingLoader(base) if loader.is_plain(base) else None
        if plain is not None and at.workers_kept:
            plain.start_workers()
        return plain

    def _arrive_between(self, resume: Resume) -> None:
        at = resume.at
        self._prepared(at)
        self._inner.begin(at.inner)
        for path in self._generators.keys() & at.inner.keys():
            put(path, self._generators[path], at.inner[path])
        resume.after_skip()
        self._resume = None
        self._has_begun = True

    def _arrived(self, resume: Resume, iterator: Iterator[Any], *, made_again: bool) -> Iterator[Any]:
        at = resume.at

        def go_on() -> None:
            self._lines += self._inner.arrive(at.inner, made_again=made_again)
            resume.after_skip()

        if self._fetching is not None and at.ahead is not None:
            self._fetching.resume(at.consumed * prepared.in_one(self._data), Ahead(at.ahead, at.inner_ahead), go_on)
        else:
            go_on()
        if self._told_ahead is not None and at.state is None and not loader.is_prepared(self._data):
            loader.tell_epoch(self._data, self._told_ahead)  # seen where the next epoch begins, if this one is through
        self._resume = None
        self._has_begun = True
        self._begin, self._order, self._workers_kept = at.begin, at.order, at.workers_kept
        self._inner_begin = dict(at.inner_begin)
        return iterator

    def _counted(self) -> Iterator[Any]:
        # Nothing but the attribute holds the iterator, so that `close` lets it go however this generator is held.
        while self._iterator is not None and (batch := next(self._iterator, _END)) is not _END:
            self.consumed += 1
            yield batch if self._moved is None else self._moved(batch)
