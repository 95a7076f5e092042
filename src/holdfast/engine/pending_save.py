"""What somebody who asks in this process is given: it learns what becomes of the request."""

import threading
from collections.abc import Callable

from holdfast.errors import SaveError, WaitTimeoutError
from holdfast.run.request import Answer


class PendingSave:
    """One request made from Python.

    Args:
        request: The request's id.
        wait_for: Waits for the answer, so many seconds at most, and tells whether it has come: the training thread
            stands still then, and may be saved as it stands.
    """

    def __init__(self, request: str, wait_for: Callable[[threading.Event, float | None], bool]) -> None:
        self.id = request
        self._wait_for = wait_for
        self._answered = threading.Event()
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer | None:
        """What became of the request; None as long as that is open."""
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
        if not self._wait_for(self._answered, timeout):
            raise WaitTimeoutError(f"no answer within {timeout:g} s; the request {self.id} stands")
        assert self._answer is not None
        if not self._answer.saved:
            raise SaveError(f"step {self._answer.step} was not saved: {self._answer.error}")
        return self._answer

    def resolve(self, answer: Answer) -> None:
        """The request was answered."""
        self._answer = answer
        self._answered.set()
