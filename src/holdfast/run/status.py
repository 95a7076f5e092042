"""The status of a run, for other processes to read."""

import json
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from holdfast.store import files
from holdfast.store.folder import Where

if TYPE_CHECKING:
    from holdfast.devices.late import LateNumber

_RATE_SECONDS = 15.0

Phase = Literal["starting", "training", "saving", "stopping", "mirroring", "ended"]


@dataclass(frozen=True)
class Status:
    """One look at a run. Times are seconds since the epoch, the rate is steps a second."""

    run: str
    pid: int
    phase: Phase = "starting"
    step: int = 0
    max_steps: int = 0
    rate: float | None = None
    loss: float | None = None
    last_checkpoint: dict[str, Any] | None = None
    pending: tuple[dict[str, Any], ...] = ()
    """The requests that wait; of many the first."""
    more_pending: int = 0
    """The number of those that wait beside them."""
    failed_saves: int = 0
    last_failure: str = ""
    failing_since: float | None = None
    """The time of the first failed save that no good one has followed; None while saving works."""
    next_try_at: float | None = None
    """The time at which a save that failed is tried again."""
    capture: str = "live"
    """`live`, or why snapshots are taken at boundaries only."""
    copied_buffers: dict[str, int] = field(default_factory=dict)
    """Large buffers that were seen to change, each with the bytes that copying it takes at every boundary."""
    body: str = ""
    """In the rest of an epoch's body: of which, and why a save may have to wait for its end; else empty."""
    staging_bytes: int = 0
    staging: str = ""
    """The state of the staging memory of a training on a GPU; empty for others."""
    writes: str = ""
    """The way in which files are written: `direct`, past the page cache, or `buffered`; empty before the first save."""
    held_seconds: float = 0.0
    """The time that training has waited at the gate in all."""
    ranks: tuple[dict[str, Any], ...] = ()
    """The states of the other ranks, in a training of several processes."""
    mirror: dict[str, Any] | None = None
    """The state of its mirror, as `mirror/state.py` has it, and what waits for it; None without one."""
    outcome: str = ""
    """The way in which it ended, as `outcome.json` has it; empty while it has not."""
    code: int | None = None
    """The exit code with which it ended."""
    written_at: float = field(default=0.0)


class StatusFile:
    """Keeps the status and its file. Updates are cheap; the file is written by `write`, from a thread of its own.

    Args:
        where: The file.
        status: The status at the beginning.
    """

    def __init__(self, where: Where, status: Status) -> None:
        self.where = where
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._status = status
        self._rate: Rate | None = None
        self._beat: tuple[int, float] | None = None
        self._loss: LateNumber | None = None

    @property
    def now(self) -> Status:
        """The status as of now."""
        with self._lock:
            return self._caught_up()

    def beat(self, step: int) -> None:
        """Notes that training has come to a step. The rate is counted from the first call on.

        Cheap enough for every boundary: step and rate are put into the status when somebody looks at it.
        """
        if self._rate is None:
            self._rate = Rate(step)
        self._beat = (step, time.monotonic())

    def update(self, **changes: Any) -> None:
        """Changes fields of the status; the file follows within a second."""
        with self._lock:
            self._status = replace(self._caught_up(), **changes)

    def show_loss(self, loss: "float | LateNumber | None") -> None:
        """Shows a loss: now, or when a card has come to it. None shows nothing."""
        if isinstance(loss, float):
            self.update(loss=loss)
            return
        with self._lock:
            self._caught_up()
            self._loss = self._loss or loss  # the one that is on its way comes first: a card may be seconds behind

    def write(self) -> None:
        """Writes the file. Not synced: after a power cut nobody asks what a dead process was doing."""
        with self._writing:
            content = asdict(replace(self.now, written_at=time.time()))
            files.replace(self.where, json.dumps(content, indent=1).encode(), durable=False)

    def _caught_up(self) -> Status:
        """Returns the status with the last beat and the last loss in it. Called with the lock held."""
        beat = self._beat
        if beat is not None and self._rate is not None:
            self._status = replace(self._status, step=beat[0], rate=self._rate.at(*beat))
        if self._loss is not None and self._loss.is_there:
            self._status, self._loss = replace(self._status, loss=self._loss.value), None
        return self._status


class Rate:
    """Steps a second, over about the last half minute."""

    def __init__(self, step: int) -> None:
        self._since = self._before = (time.monotonic(), step)

    def at(self, step: int, now: float) -> float | None:
        """Returns the rate when `step` was done; None where there is nothing to go by yet."""
        if now - self._since[0] > _RATE_SECONDS:
            self._before, self._since = self._since, (now, step)
        begun, first = self._before
        return round((step - first) / (now - begun), 3) if now > begun and step > first else None
