"""How much of a save is measured, and of whom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import states
from benchmarks.peers.saver import Saver
from benchmarks.states import State

_STATES: Mapping[str, Callable[[str], State]] = {"gpt2": states.gpt2, "lora": states.lora}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        peers: Whom ours is compared with, by name.
        device: Where the state is.
        rounds: How many rounds of saves and loads.
        lost_rounds: How many rounds of blocks of training.
        gigabytes: Sizes at which ours is measured alone.
        warm: Whether free memory is filled before each turn; see `Ballast`.
        states: What is saved, by name. The first is trained as well.
    """

    peers: Mapping[str, type[Saver]]
    device: str = "cpu"
    rounds: int = 3
    lost_rounds: int = 2
    gigabytes: Sequence[float] = (0.1, 0.5, 1.5, 4.0)
    warm: bool = True
    states: Mapping[str, Callable[[str], State]] = field(default_factory=lambda: _STATES)
