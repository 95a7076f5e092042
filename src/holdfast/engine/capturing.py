"""The way in which a training's state is read: its device, the staging memory, snapshots, the hooks of updates."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.optimizer_hook import OptimizerHook
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.capture.subject import Subject
from holdfast.capture.throttle import Throttle
from holdfast.devices.cuda import device_in_use
from holdfast.devices.device import Device
from holdfast.settings import Settings


class Capturing:
    """The readers of one training's state, from its beginning on.

    Args:
        subject: The state that is saved.
        gate: The gate that its updates pass.
        settings: The settings of its saves.
        wake: Set when there is something to tell of the staging memory.
    """

    def __init__(self, subject: Subject, gate: Gate, settings: Settings, wake: threading.Event) -> None:
        self.subject = subject
        live = subject.as_live()
        tensors = live.live().values() if live is not None else ()
        self.in_use = device_in_use()
        """The device that this process uses, whether or not some of the state is on it; None where it uses none."""
        self.device, card = _device_of(tensors, self.in_use)
        """The device that some of the state is on; None where all of it is with the host."""
        self.budget = StagingBudget(
            settings.staging_memory, self.device, card=card, state_bytes=subject.estimated_bytes(), wake=wake
        )
        self._state_bytes = 0
        throttle = Throttle(settings.save_rate_limit, settings.save_io_priority)
        self.snapshots = Snapshots(subject, gate, self.budget.pool, throttle, self.device)
        self.hook = OptimizerHook(gate, self.snapshots.parameters(), self.snapshots.optimizers(), self.device)

    def record(self, step: int, stage: str, number: int) -> Boundary:
        """Returns the boundary that training is at, with the small state and the fingerprint of the large one.

        Args:
            step: Its step.
            stage: The progress of a trainer within it.
            number: Its number.
        """
        if self.device is None:
            recorded, fingerprint = self.subject.record(), self.snapshots.fingerprint()
        else:
            with self.hook.joined():
                recorded, fingerprint = self.subject.record(), self.snapshots.fingerprint(self.hook.lanes())
        if self.device is not None and number and self.snapshots.state_bytes != self._state_bytes:
            self._state_bytes = self.snapshots.state_bytes
            self.budget.state_known(self._state_bytes)
        return Boundary(step, stage, {}, number, recorded, fingerprint)

    def renewed(self, here: Boundary) -> Boundary:
        """Returns the last boundary with the small state as training goes on from it now."""
        with self.hook.joined():
            recorded, fingerprint = self.subject.renewed(here.recorded), self.snapshots.renewed(here)
        if recorded is here.recorded and fingerprint is here.fingerprint:
            return here
        return replace(here, recorded=recorded, fingerprint=fingerprint, revision=here.revision + 1)

    def end(self) -> None:
        """Takes the hooks away, and leaves the staging memory to the next training."""
        self.hook.remove()
        self.budget.close()


def _device_of(tensors: Iterable[torch.Tensor], device: Device | None) -> tuple[Device | None, int]:
    """Returns the device that some tensors are on, and the card that has most; None where all are with the host."""
    if device is None:
        return None, 0
    sizes: Counter[int] = Counter()
    for tensor in tensors:
        if (card := device.card_of(tensor)) is not None:
            sizes[card] += tensor.nbytes
    return (device, sizes.most_common(1)[0][0]) if sizes else (None, 0)
