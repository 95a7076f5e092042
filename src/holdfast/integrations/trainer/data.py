"""The batch that a Trainer's loader has fetched ahead of training, and the random numbers that were drawn for it.

accelerate's loader fetches one batch more than it hands out (`DataLoaderShard.__iter__` of accelerate 1.15). At a
boundary, what the samples and the collator of that batch drew is history, and a resume fetches the batch anew: from
the random state that stood before it, after which the boundary's comes back. So it is with the order of the epoch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler

from holdfast.state.data.inner import InnerState
from holdfast.state.data.loader import can_skip, is_plain
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

SetRandomState = Callable[[Mapping[str, Any]], None]
"""Sets the random state to the boundary's, but for the generators that it is given the states of."""


class PrefetchState(NamedTuple):
    """The progress of a loader in its epoch, and the random states from which it fetched."""

    batches: int
    """The number of those handed out, and of the one ahead of them."""
    begin: RngRecord | None
    """The random state before the order of the epoch was drawn; None where none of the generators drew it."""
    before: RngRecord
    """The random state before the last of them was fetched."""

    def encode(self, now: RngRecord) -> dict[str, Any]:
        """Returns it as JSON, without the generators whose state is that of the boundary, which is most of them.

        Args:
            now: The random state of the boundary.
        """
        at_boundary = now.encode()
        begin = None if self.begin is None else _differing(self.begin, at_boundary)
        return {"batches": self.batches, "begin": begin, "before": _differing(self.before, at_boundary)}


class PrefetchTracker:
    """Watches a loader fetch, and has it draw again what it drew before a resume.

    Args:
        loader: The loader that training goes through.
        inner: The generators and states inside it.
    """

    def __init__(self, loader: Any, inner: InnerState | None = None) -> None:
        base = getattr(loader, "base_dataloader", loader)
        self._inner = inner
        self.inner_before: dict[str, Any] = {}
        """The states of those before the last batch was fetched."""
        self.why_not = why_not_watched(base)
        """The reason why what is drawn for a batch cannot be drawn again; empty where it can."""
        self._base = base
        self._batches = 0
        self._begin: RngRecord | None = None
        self._before: RngRecord | None = None
        self._redraw: _Redraw | None = None
        if not self.why_not:
            # Attributes of a loader cannot be assigned to; a copy that skips batches takes this one along.
            base.__dict__["batch_sampler"] = _WatchedSampler(base.batch_sampler, self)

    def close(self) -> None:
        """Gives the loader back as it was."""
        if isinstance(self._base.__dict__.get("batch_sampler"), _WatchedSampler):
            self._base.__dict__["batch_sampler"] = self._base.batch_sampler.watched

    def record(self) -> PrefetchState | None:
        """Returns how far the loader is, as of now; None where it has not begun, or cannot be watched."""
        return None if self._before is None else PrefetchState(self._batches, self._begin, self._before)

    def redraw(
        self,
        fetched: Mapping[str, Any],
        set_random_state: SetRandomState,
        go_on: Callable[[], None],
        inner_ahead: Mapping[str, Any] = {},
    ) -> None:
        """Has the next pass over the data, which skips what was trained on, draw what it drew before.

        Args:
            fetched: The output of `PrefetchState.encode`.
            set_random_state: Called before each part that is drawn again.
            go_on: Called when the batch that was ahead is there, and before anything further is: sets the random state
                of the boundary.
            inner_ahead: What is inside the loader, before it fetched the batch that was ahead.
        """
        self._redraw = _Redraw(
            fetched["batches"], fetched["begin"], fetched["before"], set_random_state, go_on, inner_ahead
        )

    def cancel(self) -> None:
        """Draws nothing again: training begins an epoch, or is at the boundary already."""
        self._redraw = None

    def begin_pass(self) -> None:
        """Notes that the loader begins an epoch."""
        self._batches, self._begin, self._before = 0, None, None

    def before_indices(self) -> None:
        """Notes that the loader is about to ask which samples are next."""
        redraw = self._redraw
        if redraw is not None and self._batches == redraw.batches:
            self.cancel()
            redraw.go_on()
        elif self._batches == 0:
            if redraw is not None and redraw.begin is not None:
                redraw.set_random_state(redraw.begin)
            self._begin = rng_state.record()

    def after_indices(self) -> None:
        """Notes that the loader knows which samples are next, and is about to fetch them."""
        self._batches += 1
        redraw = self._redraw
        if redraw is not None and self._batches == redraw.batches:
            redraw.set_random_state(redraw.before)
            if self._inner is not None:
                self._inner.arrive(redraw.inner_ahead, made_again=False)
        if redraw is None or self._batches in (1, redraw.batches):
            self._before = rng_state.record()
            self.inner_before = self._inner.record() if self._inner else {}
        if self._batches == 1 and self._begin is not None and self._before is not None:
            drawn = _differing(self._begin, self._before.encode())
            self._begin = self._begin if drawn else None


class _Redraw(NamedTuple):
    batches: int
    begin: Mapping[str, Any] | None
    before: Mapping[str, Any]
    set_random_state: SetRandomState
    go_on: Callable[[], None]
    inner_ahead: Mapping[str, Any]


class _WatchedSampler(BatchSampler):
    """A batch sampler that tells of every index that another one gives.

    Args:
        watched: The other one.
        tracker: Is told.
    """

    def __init__(self, watched: Any, tracker: PrefetchTracker) -> None:
        self.watched = watched
        self._tracker = tracker

    def __getattr__(self, name: str) -> Any:
        if name == "watched":
            raise AttributeError(name)  # a copy asks before it has anything
        return getattr(self.watched, name)

    def __iter__(self) -> Iterator[Any]:
        self._tracker.begin_pass()
        # Some samplers draw as soon as they are asked for an iterator: that is not put off.
        return _Pass(iter(self.watched), self._tracker)

    def __len__(self) -> int:
        return len(self.watched)


class _Pass:
    def __init__(self, indices: Iterator[Any], tracker: PrefetchTracker) -> None:
        self._indices = indices
        self._tracker = tracker

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> Any:
        self._tracker.before_indices()
        indices = next(self._indices)
        self._tracker.after_indices()
        return indices


def why_not_watched(base: Any) -> str:
    """Returns why what a loader draws for a batch cannot be drawn again; empty where it can."""
    if not is_plain(base) or base.batch_sampler is None:
        return f"a {type(base).__name__} fetches in its own way"
    if not can_skip(base):
        return f"a {type(base.dataset).__name__} can only be gone through"
    return "that is drawn in loader processes" if base.num_workers else ""


def _differing(record: RngRecord, reference: Mapping[str, Any]) -> dict[str, Any]:
    return {name: state for name, state in record.encode().items() if state != reference[name]}
