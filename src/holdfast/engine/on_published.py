"""Hooks that run after a commit, in the training thread: a user's `on_saved`, a Trainer's own callbacks."""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from holdfast.arguments import require_function
from holdfast.run.request import Answer
from holdfast.store import files, names
from holdfast.store.manifest import MOST_BYTES

Hook = Callable[[Answer], object]
"""Takes the answer of a save: the path and step of a checkpoint that is committed and durable."""


def require_hook(on_saved: object) -> None:
    """Checks a user's `on_saved` before training begins.

    Raises:
        ConfigError: It is no function of one argument.
    """
    require_function("on_saved", on_saved, "the answer of the save")


class OnPublished:
    """Checkpoints that were published, and the hooks that are to see each, in the order of both.

    The saving thread hands them over; the training thread runs the hooks at its next boundary, or at its end.

    Args:
        log: Takes a line for each hook that failed or could not run.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._hooks: list[tuple[Hook, bool]] = []
        self._published: deque[Answer] = deque()

    def add(self, hook: Hook, *, raises: bool = False) -> None:
        """Adds a hook.

        Args:
            hook: Called with the answer of each save that published a checkpoint.
            raises: True where an error of it is the training's own, as one of a Trainer's callbacks is. The error of
                any other hook is logged, and stops neither training nor the next hook.
        """
        self._hooks.append((hook, raises))

    @property
    def wait(self) -> bool:
        """True where something was published that no hook has seen."""
        return bool(self._hooks and self._published)

    def publish(self, answer: Answer) -> None:
        """Hands over a checkpoint. Called by the saving thread, after the commit."""
        self._published.append(answer)

    def run(self) -> None:
        """Runs the hooks for what was published since the last call. Called by the training thread.

        Raises:
            Exception: That of a hook which may raise, after the other hooks have run for the same checkpoint.
        """
        while self._published:
            answer = _where_it_is(self._published.popleft())
            raised: Exception | None = None
            for hook, raises in self._hooks:
                try:
                    hook(answer)
                except Exception as error:  # noqa: BLE001 - it is raised below, or logged
                    if raises:
                        raised = raised or error
                    else:
                        self._log.exception(f"on_saved failed for {answer.path}: {error!r}; training goes on")
            if raised is not None:
                raise raised

    def run_last(self, error: BaseException | None) -> None:
        """Runs them at the end of training.

        Args:
            error: The error that ends it; None where there is none.
        """
        if error is None:
            self.run()
        else:
            self.run_at_the_end()

    def run_at_the_end(self) -> None:
        """Runs them while an error already leaves the training: one of a hook is logged, and does not replace it."""
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - the training's own error is on its way
            self._log.error(f"on_saved failed: {error!r}")
            self.run_at_the_end()

    def give_up(self) -> None:
        """Names the checkpoints for which no hook will run: the process ends without its training thread."""
        if self._hooks:
            for answer in list(self._published):  # training may still come back, and run them
                self._log.warning(f"on_saved: not run for {answer.path}: training did not come back in time")


def _where_it_is(answer: Answer) -> Answer:
    """Returns the answer with the path that its checkpoint has by now: another of the step may have taken the name."""
    path = Path(answer.path)
    with suppress(OSError):
        if answer.attempt and answer.digest.encode() not in files.read(path / names.MANIFEST, limit=MOST_BYTES):
            return replace(answer, path=str(path.with_name(names.superseded(answer.step, answer.attempt))))
    return answer
