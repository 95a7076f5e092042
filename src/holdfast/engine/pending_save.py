"""A save that was asked for in this process, and what becomes of it."""

import threading
from dataclasses import replace

from holdfast.arguments import require_seconds
from holdfast.capture.gate import Gate
from holdfast.errors import HoldfastError, SaveError, WaitTimeoutError
from holdfast.run.request import Answer


class PendingSave:
    """One request made from Python.

    Args:
        request: The request's id.
        gate: Blocks the training thread while it waits for the answer, so that it may be saved as it stands.
        step: The step that is to be saved; None for any.
    """

    def __init__(self, request: str, gate: Gate, step: int | None = None) -> None:
        self.id = request
        self._gate = gate
        self._step = step
        self._answered = threading.Event()
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer | None:
        """The answer to the request; None as long as that is open."""
        return self._answer

    def wait(self, timeout: float | None = None) -> Answer:
        """Waits until the checkpoint is durable.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: The time is up. The request stands.
            SaveError: The save failed; the message says why.
            HoldfastError: Training itself waits in the middle of an update, where there is no boundary to save.
        """
        require_seconds("timeout", timeout)
        if not self._wait(timeout):
            raise WaitTimeoutError(f"no answer within {timeout:g} s; the request {self.id} stands")
        assert self._answer is not None
        if not self._answer.saved:
            raise SaveError(
                f"step {self._answer.step if self._step is None else self._step} was not saved: {self._answer.error}"
            )
        return self._answer

    def resolve(self, answer: Answer) -> None:
        """Takes in the answer, and wakes those who wait for it."""
        if self._step not in (None, answer.step):
            became = "saved" if answer.saved else "and others were at"
            note = f"asked at {self._step}, {became} {answer.step}; call save() in all ranks"
            answer = replace(answer, note=note) if answer.saved else replace(answer, error=f"{answer.error}: {note}")
        self._answer = answer
        self._answered.set()

    def _wait(self, timeout: float | None) -> bool:
        if not self._gate.is_training_thread:
            return self._answered.wait(timeout)
        if self._gate.updating:
            raise HoldfastError(
                "training waits for a save in the middle of an update, where there is nothing whole to save",
                hint="call step() first, or do not wait",
            )
        return self._gate.block_until(self._answered.is_set, timeout)
