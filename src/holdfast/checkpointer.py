"""What a training loop holds: it marks boundaries, asks whether to save, and learns whether to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from holdfast import ranks, saving
from holdfast.config import DynamicCheckpoint
from holdfast.doors.reception import Reception
from holdfast.doors.signals import SAVE_AND_STOP, Signals
from holdfast.resuming import Chosen, choose
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.run.status import Rate
from holdfast.store.retention import Keep

STOPPED_AFTER_SAVE = 75  # EX_TEMPFAIL: come back later
# A terminal sends one Ctrl+C, a nervous hand two in a row. The second counts from here on.
_SECOND_PRESS_SECONDS = 1.0
# Leaving writes answers and the journal's last line; a disk that hangs may not hold it up for longer.
_LEAVING_SECONDS = 3.0

Say = Callable[[str], None]


class Checkpointer:
    """One training's saves, from its start to its end. Use it as a context manager.

    Args:
        output_dir: The run directory.
        settings: The trigger file's settings.
        keep: How many checkpoints may stay.
        resume: What to go on from, as `resume_from_checkpoint` has it.
        say: Prints a line for the user.

    Raises:
        RunBusyError: Another process trains in `output_dir`.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """

    def __init__(
        self, output_dir: Path, settings: DynamicCheckpoint, keep: Keep, resume: str | bool | None, say: Say
    ) -> None:
        ranks.require_one()
        self.say = say
        self._keep = keep
        self.chosen: Chosen | None = choose(output_dir, resume, say)
        manifest = self.chosen.manifest if self.chosen else None
        continues = self.chosen.continues(output_dir) if self.chosen else None
        self.run = Run.open(output_dir, continues=continues, parent=manifest.attempt if manifest else None)
        self.settings = settings
        self._reception = Reception(self.run, settings, say)
        self._signals = Signals(self._on_signal)
        self._interrupted_at: float | None = None
        self._stopping_by: int | None = None
        self._reached: int | None = None
        self._rate = Rate(0)
        self._last: Answer | None = None
        self.stop_requested = False
        self.finished = False

    def __enter__(self) -> "Checkpointer":
        self._reception.start()
        if not self._signals.start():
            self.say("not in the main thread: signals do not ask for saves here; the other doors are open")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.stop()
        failed = error is not None and not isinstance(error, SystemExit)
        if self.finished and self._reached is not None and self._reception.look(self._reached, last=True):
            self.answer_with_last(self._reached)
        self._reception.close()
        self._refuse_waiting("training ended before the next save")
        outcome = f"failed: {kind.__name__}" if kind and failed else "stopped" if self.stop_requested else "finished"
        self.run.close(outcome, 1 if failed else self.exit_code)

    @property
    def exit_code(self) -> int:
        """The exit code that tells how training ended: 0, 75 after a stop with a good save, 1 after one without."""
        if not self.stop_requested:
            return 0
        return _stopped_after_save() if self._last is not None and self._last.saved else 1

    def finish(self) -> None:
        """Training has come to its end by itself; a stop that met the last step changes nothing any more."""
        self.stop_requested = False
        self.finished = True

    @property
    def interrupted(self) -> bool:
        """Whether the stop was a Ctrl+C: somebody sits there and wants the model."""
        return self.stop_requested and self._interrupted_at is not None

    @property
    def last_answer(self) -> Answer | None:
        """What the last save answered."""
        return self._last

    def begin(self, step: int, max_steps: int) -> None:
        """Training begins: at `step`, which is 0 unless it is resumed, until `max_steps`."""
        self._rate = Rate(step)
        self.run.status.update(phase="training", step=step, max_steps=max_steps)

    def reach(self, step: int, *, last: bool) -> bool:
        """Marks a boundary, and tells whether a save is asked for.

        Args:
            step: The step of the boundary.
            last: Whether training ends here; every door is looked at once more.
        """
        self._reached = step
        self.run.status.update(step=step, rate=self._rate.at(step))
        return self._reception.look(step, last=last)

    def save(self, snapshot: saving.Snapshot, *, scheduled: str = "") -> Answer:
        """Saves a boundary for everybody who asks, together with the schedule if it is due.

        Args:
            snapshot: The boundary's state.
            scheduled: What made the schedule ask, for the manifest; empty when it does not.
        """
        requests = self._reception.take()
        if scheduled:
            requests.append(Request("schedule", why=scheduled))
        self._last = saving.save(self.run, snapshot, requests, self._keep)
        self._report(self._last, requests)
        self._stop_if_asked(requests)
        return self._last

    def answer_with_last(self, step: int) -> bool:
        """Answers what waits with the checkpoint of this very boundary, if there is one already."""
        if self._last is None or not self._last.saved or self._last.step != step:
            return False
        requests = self._reception.take()
        saving.answer_all(self.run, self._last, requests)
        if requests:
            self._report(self._last, requests)
            self._stop_if_asked(requests)
        return True

    def _stop_if_asked(self, requests: list[Request]) -> None:
        if any(request.stop for request in requests):
            self.stop_requested = True
            self.run.status.update(phase="stopping")

    def _report(self, answer: Answer, requests: list[Request]) -> None:
        asked = ",".join(r.id for r in requests if r.door != "schedule")
        self.say(answer.line(f"request:{asked}" if asked else "schedule"))
        if not answer.saved and not self.stop_requested:
            self.say("training goes on; earlier checkpoints are intact")

    def _on_signal(self, number: int) -> None:
        """Runs in the thread that listens to signals."""
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None:
                if now - self._interrupted_at >= _SECOND_PRESS_SECONDS:
                    self._leave(128 + number, "second Ctrl+C: the save is abandoned; earlier checkpoints are intact")
                return
            self._interrupted_at = now
        stop = number in SAVE_AND_STOP
        if stop and self._reached is None:
            self._leave_before_the_first_boundary(number, name)
        if stop and self._stopping_by is not None:
            self.say(f"{name}: a save and the end are already under way")
            return
        if stop:
            self._stopping_by = number
        self._reception.accept(Request("signal", stop=stop, why=name))
        again = "; press again to leave without it" if number == signal.SIGINT else ""
        self.say(f"{name}: saving at the next boundary" + (f", then ending{again}" if stop else ""))

    def _leave_before_the_first_boundary(self, number: int, name: str) -> None:
        if self.chosen is not None:
            self._leave(_stopped_after_save(), f"{name}: nothing is new since {self.chosen.path}; ending")
        self._leave(128 + number, f"{name}: no step was taken yet, so there is nothing to save; ending")

    def _leave(self, code: int, why: str) -> None:
        """Ends the process at once, whatever the training thread does, and whatever the disk does."""
        hurry = threading.Timer(_LEAVING_SECONDS, os._exit, (code,))
        hurry.daemon = True
        hurry.start()
        try:
            self.say(why)
            self._reception.close()
            self._refuse_waiting(why)
            self.run.close(f"left: {why}", code)
        finally:
            with suppress(OSError):
                if sys.stdout.isatty():
                    sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _refuse_waiting(self, why: str) -> None:
        waiting = self._reception.take()
        saving.answer_all(self.run, Answer(saved=False, step=self._reached or 0, error=why), waiting)


def _stopped_after_save() -> int:
    return 0 if ranks.under_elastic_agent() else STOPPED_AFTER_SAVE
