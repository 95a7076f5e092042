"""Anything with `state_dict` and `load_state_dict`: schedules, scalers, averages that a loop keeps by hand."""

from collections.abc import Hashable
from typing import Any, Protocol

import torch

from holdfast.errors import CheckpointError, HoldfastError, UnsupportedError
from holdfast.state import values
from holdfast.state.card_copies import CardCopies
from holdfast.state.comparison import line_of_differences
from holdfast.state.part import Part, Stored, rest_of

# From here on a tensor is taken live, under the gate, and not cloned at every boundary.
_LARGE = 64 << 10
_OF_DATA = ("data", "load", "sampl", "batch", "position", "stream")


class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def stateful_part(name: str, stateful: Any) -> Part:
    """Makes the part for an object.

    Raises:
        UnsupportedError: Its state holds something that cannot be written.
    """
    return (_ScalerPart if isinstance(stateful, torch.amp.GradScaler) else StatefulPart)(name, stateful)


class StatefulPart:
    """An object as a part of the state.

    Args:
        name: The part's name.
        stateful: The object.
    """

    def __init__(self, name: str, stateful: _Stateful) -> None:
        self.name = name
        self._object = stateful
        self._live: dict[str, torch.Tensor] = {}
        self._structure: tuple[Any, ...] = ()
        self._copies = CardCopies()
        self.encode(self.record())  # better to know now what cannot be saved

    @property
    def stateful(self) -> object:
        """The object itself."""
        return self._object

    def is_of_data(self) -> bool:
        """Tells if the object seems to know a position in data: it can be gone through, or is called so."""
        names = f"{self.name} {type(self._object).__name__}".lower()
        return hasattr(self._object, "__iter__") or any(word in names for word in _OF_DATA)

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors: as of the last record."""
        # Only a record asks the object itself.
        return self._structure

    def live(self) -> dict[str, torch.Tensor]:
        """Returns its large tensors."""
        return self._live

    def record(self) -> Any:
        """Copies its state; large tensors are not copied."""
        large, on_cards = [], []

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            if not _is_small(tensor):
                large.append((tensor.data_ptr(), tensor.shape, tensor.dtype))
            elif tensor.device.type == "cpu":
                return values.cloned(tensor)
            else:
                on_cards.append(tensor)
            return tensor.detach()

        recorded = values.snapshot(self._object.state_dict(), copy)
        if on_cards:  # all at once: a launch for each costs training more than all else of a boundary
            copies = self._copies.take({str(number): tensor for number, tensor in enumerate(on_cards)})
            names = map(str, range(len(on_cards)))
            recorded = values.snapshot(recorded, lambda t: copies[next(names)] if _is_small_on_card(t) else t)
        if (structure := tuple(large)) != self._structure:
            tensors = values.tensors_in(recorded, "state")
            self._live = {name: tensor for name, tensor in tensors if not _is_small(tensor)}
            self._structure = structure
        return recorded

    def encode(self, recorded: Any) -> Stored:
        """Returns the copy, as tensors and JSON."""
        tensors: dict[str, torch.Tensor] = {}
        try:
            state = values.encode(recorded, "state", tensors)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.name}: {error}", hint=error.hint) from error
        return Stored(tensors, {"kind": "object", "class": self._kind, "state": state})

    @property
    def _kind(self) -> str:
        return type(self._object).__qualname__

    def shard_range(self, name: str, shape: tuple[int, ...]) -> None:
        """Needs everything: nobody else knows what an object shares with other processes."""

    def memory(self) -> dict[str, torch.Tensor]:
        """Returns nothing: only the object itself can put its state back."""
        return {}

    def neighbors(self, rest: Any) -> dict[str, torch.Tensor]:
        """Returns the large tensors that the object has itself: what it is given was where they are."""
        return self._live

    def problems(self, stored: Stored) -> list[str]:
        """Returns a line if the checkpoint is of an object of another class."""
        then, now = rest_of(stored, self.name, "object").get("class"), self._kind
        return [] if then == now else [f"{self.name}: is a {then} in the checkpoint and a {now} here"]

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Has the object load its state."""
        if problems := self.problems(stored):
            if strict:
                raise CheckpointError("; ".join(problems))
            return [f"{problem}: left out" for problem in problems]
        state = values.decode(stored.rest.get("state"), stored.tensors)
        loaded = values.snapshot(state, values.live)  # objects take theirs apart
        self._load(state)
        self.record()
        return line_of_differences(self.name, loaded, self._object.state_dict())

    def _load(self, state: Any) -> None:
        try:
            self._object.load_state_dict(state)
        except HoldfastError:
            raise
        except Exception as error:
            raise CheckpointError(f"{self.name} does not take the checkpoint's state: {error!r}") from error


class _ScalerPart(StatefulPart):
    """A gradient scaler. Its own `state_dict` asks a device for numbers, and training would wait for the answer."""

    def record(self) -> Any:
        """Clones its two counters where they are, and copies its settings."""
        scaler: Any = self._object
        if not scaler.is_enabled() or scaler._scale is None:
            return scaler.state_dict()
        return {
            "scale": scaler._scale.clone(),
            "growth_factor": scaler._growth_factor,
            "backoff_factor": scaler._backoff_factor,
            "growth_interval": scaler._growth_interval,
            "_growth_tracker": scaler._growth_tracker.clone(),
        }

    def encode(self, recorded: Any) -> Stored:
        """Returns the copy, as its `state_dict` would give it."""
        plain = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in recorded.items()}
        return super().encode(plain)


def _is_small_on_card(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "cpu" and _is_small(tensor)


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.layout != torch.strided or tensor.nbytes < _LARGE
