"""The batch that a Trainer's loader has fetched ahead of training, and the random numbers that were drawn for it.

accelerate's loader fetches one batch more than it hands out (`DataLoaderShard.__iter__` of accelerate 1.15). At a
boundary, what the samples and the collator of that batch drew is history, and a resume fetches the batch anew: from
the random state that stood before it, after which the boundary's comes back. So it is with the order of the epoch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler

from holdfast.state.data import loader as data_source
from holdfast.state.rng import state as random_state
from holdfast.state.rng.state import RngRecord


class PrefetchState(NamedTuple):
    """How far a loader has come in its epoch, and from which random states."""

    batches: int
    """Those handed out, and the one ahead of them."""
    begin: RngRecord | None
    """The random state before the order of the epoch was drawn; None where none of the generators drew it."""
    before: RngRecord
    """The random state before the last of them was fetched."""

    def encode(self, now: RngRecord) -> dict[str, Any]:
        """As JSON, without the generators that stand as they do at the boundary, which is most of them.

        Args:
            now: The random state of the boundary.
        """
        at_boundary = now.encode()
        begin = None if self.begin is None else _others(self.begin, at_boundary)
        return {"batches": self.batches, "begin": begin, "before": _others(self.before, at_boundary)}


class PrefetchTracker:
    """Watches a loader fetch, and has it draw again what it drew before a resume.

    Args:
        loader: The loader that training goes through.
    """

    def __init__(self, loader: Any) -> None:
        base = getattr(loader, "base_dataloader", loader)
        self.why_not = _why_not(base)
        """Why what is drawn for a batch cannot be drawn again; empty when it can."""
        self._base = base
        self._batches = 0
        self._begin: RngRecord | None = None
        self._before: RngRecord | None = None
        self._again: _Again | None = None
        if not self.why_not:
            # Attributes of a loader cannot be assigned to; a copy that skips batches takes this one along.
            base.__dict__["batch_sampler"] = _Watched(base.batch_sampler, self)

    def close(self) -> None:
        """Gives the loader back as it was."""
        if isinstance(self._base.__dict__.get("batch_sampler"), _Watched):
            self._base.__dict__["batch_sampler"] = self._base.batch_sampler.watched

    def record(self) -> PrefetchState | None:
        """How far the loader is, as of now; None where it has not begun, or cannot be watched."""
        return None if self._before is None else PrefetchState(self._batches, self._begin, self._before)

    def draw_again(
        self, fetched: Mapping[str, Any], stand: Callable[[Mapping[str, Any]], None], go_on: Callable[[], None]
    ) -> None:
        """Has the next pass over the data, which skips what was trained on, draw what it drew before.

        Args:
            fetched: What `PrefetchState.encode` gave.
            stand: Sets the random state to the boundary's, but for the generators that it is given.
            go_on: Called when the batch that was ahead is there, and before anything further is: sets the random state
                of the boundary.
        """
        self._again = _Again(fetched["batches"], fetched["begin"], fetched["before"], stand, go_on)

    def cancel(self) -> None:
        """What was drawn before is not drawn again: training begins an epoch, or is at the boundary already."""
        self._again = None

    def begin_pass(self) -> None:
        """The loader begins an epoch."""
        self._batches, self._begin, self._before = 0, None, None

    def before_indices(self) -> None:
        """The loader is about to ask which samples are next."""
        again = self._again
        if again is not None and self._batches == again.batches:
            self.cancel()
            again.go_on()
        elif self._batches == 0:
            if again is not None and again.begin is not None:
                again.stand(again.begin)
            self._begin = random_state.record()

    def after_indices(self) -> None:
        """The loader knows which samples are next, and is about to fetch them."""
        self._batches += 1
        again = self._again
        if again is not None and self._batches == again.batches:
            again.stand(again.before)
        if again is None or self._batches in (1, again.batches):
            self._before = random_state.record()
        if self._batches == 1 and self._begin is not None and self._before is not None:
            drawn = _others(self._begin, self._before.encode())
            self._begin = self._begin if drawn else None


class _Again(NamedTuple):
    batches: int
    begin: Mapping[str, Any] | None
    before: Mapping[str, Any]
    stand: Callable[[Mapping[str, Any]], None]
    go_on: Callable[[], None]


class _Watched(BatchSampler):
    """A batch sampler in whose place it stands, whose every index is told of."""

    def __init__(self, watched: Any, fetching: PrefetchTracker) -> None:
        self.watched = watched
        self._fetching = fetching

    def __getattr__(self, name: str) -> Any:
        if name == "watched":
            raise AttributeError(name)  # a copy asks before it has anything
        return getattr(self.watched, name)

    def __iter__(self) -> Iterator[Any]:
        self._fetching.begin_pass()
        # Some samplers draw as soon as they are asked for an iterator: that is not put off.
        return _Pass(iter(self.watched), self._fetching)

    def __len__(self) -> int:
        return len(self.watched)


class _Pass:
    def __init__(self, indices: Iterator[Any], fetching: PrefetchTracker) -> None:
        self._indices = indices
        self._fetching = fetching

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> Any:
        self._fetching.before_indices()
        found = next(self._indices)
        self._fetching.after_indices()
        return found


def _why_not(base: Any) -> str:
    if not data_source.is_plain(base) or base.batch_sampler is None:
        return f"a {type(base).__name__} fetches in its own way"
    if not data_source.can_skip(base):
        return f"a {type(base.dataset).__name__} can only be gone through"
    return "that is drawn in loader processes" if base.num_workers else ""


def _others(recorded: RngRecord, than: Mapping[str, Any]) -> dict[str, Any]:
    return {name: state for name, state in recorded.encode().items() if state != than[name]}
