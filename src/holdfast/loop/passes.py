"""The way of a plain loop through its data: its batches, its epochs, and the place at which a stop lets it leave."""

import itertools
import logging
import sys
from collections.abc import Iterator
from typing import Any

from holdfast.arguments import require_count
from holdfast.engine.engine import Engine
from holdfast.errors import ConfigError
from holdfast.loop.ending import Ending
from holdfast.loop.epochs import Epochs
from holdfast.loop.subject import LoopState
from holdfast.resume import changed_settings
from holdfast.state.data.cursor import DataCursor

# What a loop changes after `step()` shows in so many steps, once it changes at all.
_LATE_LOOKS = 8
# An epoch, or so many batches, without a single step is no accumulation any more.
_MOST_WITHOUT_STEP = 1000


class Passes:
    """Gives a loop its batches, epoch after epoch, from where the run was left.

    Args:
        engine: The training's saves.
        state: The state of the loop.
        data: Its data.
        ending: The end of the training.
        save_at_end: Saves the last step of a loop that ends by itself.
    """

    def __init__(
        self, engine: Engine, state: LoopState, data: DataCursor, ending: Ending, *, save_at_end: bool
    ) -> None:
        self._engine = engine
        self._state = state
        self._data = data
        self._ending = ending
        self._save_at_end = save_at_end
        self._epochs = Epochs(engine, state, data)
        self._handled: BaseException | None = None  # training may be a second try, inside the handler of an error
        self._looks_left = _LATE_LOOKS
        self._without_step: int | None = 0
        """The batches so far, as long as no step was marked; None once one was, or its lack was told."""
        self._is_through = False

    @property
    def epoch(self) -> int:
        """The epoch that the loop is in, from 0; between two, the one to come."""
        return self._epochs.epoch

    def check(self, until: int | None, epochs: int | None, accumulate: int | None) -> None:
        """Refuses what is no number of steps, epochs or batches."""
        require_count("until", until, least=0)
        require_count("epochs", epochs, "epochs", least=0)
        require_count("accumulate", accumulate, "batches")

    def check_epochs(self, epochs: int) -> None:
        """Refuses what is no number of epochs, and a loop of them that could not be left."""
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ConfigError([f"epochs: {epochs!r} is no number of epochs; give 0 or more"])
        if self._ending.on_stop == "return" and not self._ending.in_block:
            raise ConfigError(
                ["on_stop: `return` takes a with block around epochs(): nothing else keeps what follows from running"]
            )

    def epochs(self, epochs: int) -> Iterator[int]:
        """Goes through epochs until so many are done, over all resumes.

        Raises:
            HoldfastError: It is inside of another, or its body does not go through `batches` once.
            Stopped: A stop was asked for.
        """
        self._epochs.begin(epochs)
        try:
            while self._epochs.epoch < epochs:
                self._leave_at_stop()
                yield self._epochs.enter()
                if not self._epochs.are_past:
                    self._leave_at_stop()
                self._end_body()
        finally:
            self._epochs.leave()
        self._finish()

    def batches(self, until: int | None, epochs: int | None, accumulate: int | None) -> Iterator[Any]:
        """Goes through the batches: of the epoch whose body is run, or epoch after epoch until an end.

        Args:
            until: Ends after this many steps, over all resumes.
            epochs: Ends after this many epochs, over all resumes.
            accumulate: Gives lists of so many batches.

        Raises:
            ConfigError: An end was given in the body of an epoch.
            Stopped: In such a body: a stop was asked for.
        """
        if self._epochs.in_body:
            if until is not None or epochs is not None:
                raise ConfigError(
                    ["batches: inside of epochs() it ends with its epoch, and takes neither until= nor epochs="]
                )
            yield from self._batches_of_epoch(accumulate)
            return
        self._epochs.do_without()
        self._begin_batches(until, epochs, accumulate)
        while not self._is_over(until) and (epochs is None or self._data.epoch < epochs):
            yield from self._each(_in_groups(self._data.rest_of_epoch(), accumulate), until)
        self._data.drain()
        if not self._engine.stop_requested or (until is not None and (self._state.step or 0) >= until):
            self._finish()

    def end(self, began_at: int) -> None:
        """Says that there was nothing to do, where that is so, at the end of a training that began at some step."""
        chosen, is_through, self._is_through = self._engine.origin.chosen, self._is_through, False
        if is_through and chosen is not None and self._state.step == began_at and not self._engine.stop_requested:
            self._engine.log.announce(
                f"nothing to do: {chosen.path} is where this training ends; to go on, ask for more steps or epochs"
            )

    def explain(self, error: BaseException) -> None:
        """Says why a name is not there in a body that runs again without its batches."""
        if isinstance(error, NameError) and self._epochs.has_none_left:
            self._engine.log.announce(
                f"{error}: batches() was empty, as the batches of epoch {self.epoch} were taken before the run was"
                " left; give what the rest of the body reads of them a value before the loop, or keep it in a dict",
                logging.WARNING,
            )

    def reach(self) -> None:
        """Takes in that a step was marked."""
        if self._epochs.are_past:
            self._epochs.keep_again()

    def heed_error(self) -> None:
        """Takes in the error that whoever asks for a save is handling: batches that it has left are to come again."""
        if sys.exception() is not self._handled and self._engine.gate.is_training_thread:
            self._engine.bodies.take_back_cut()

    def _batches_of_epoch(self, accumulate: int | None) -> Iterator[Any]:
        """Goes through the rest of the epoch whose body is run."""
        body, batches = self._epochs, object()
        self._begin_batches(None, body.wanted, accumulate)
        if body.begin_batches(batches):
            try:
                yield from self._each(_in_groups(self._data.rest_of_epoch(), accumulate), None)
            except GeneratorExit:  # a break, or an error that was caught: the rest of the body may follow
                if not self._ending.is_over and self._engine.gate.is_training_thread:
                    body.end_batches(batches, may_leave=False)
                raise
            self._data.drain()
        if self._engine.stop_requested and not self._engine.gate.is_training_thread:
            return  # a thread that loads ahead has nobody to take `Stopped`: the loop itself leaves where its body ends
        if not body.end_batches(batches):
            self._leave_at_stop()

    def _begin_batches(self, until: int | None, epochs: int | None, accumulate: int | None) -> None:
        assert self._state.given is not None
        self._handled = sys.exception()
        arguments = {"until": until, "epochs": epochs, "accumulate": accumulate}
        changed_settings.announce(self._engine.log, self._state.given.begin_batches(arguments))
        self._data.begin_loop(1 if accumulate else None)

    def _each(self, items: Iterator[Any], until: int | None) -> Iterator[Any]:
        """Yields batches, or lists of them, until there are no more, or the loop is over."""
        for item in items:
            self._data.take()
            step = self._state.step
            yield item
            if self._state.step != step:
                self._without_step = None
                self._tell_of_late_changes()
            elif self._without_step is not None:
                self._without_step += 1
                if self._without_step >= _MOST_WITHOUT_STEP:
                    self._tell_of_no_step()
            if self._is_over(until):
                break
        else:
            if self._without_step:
                self._tell_of_no_step()

    def _end_body(self) -> None:
        """Marks the boundary at the end of an epoch's body, which is the end of the training after the last of them."""
        self._epochs.end()
        last = self._epochs.epoch >= self._epochs.wanted
        scheduled = "save_at_end" if last and self._save_at_end else ""
        self._engine.reach(self._state.step or 0, stage="epoch_end", last=last, scheduled=scheduled, look=last)
        self._epochs.reach_end()

    def _leave_at_stop(self) -> None:
        """Leaves a loop of epochs after a stop: nothing of what follows is to run.

        Raises:
            Stopped: A stop was asked for. Without a `with` block the training is closed by then.
        """
        if not self._engine.stop_requested:
            return
        if not self._ending.in_block:
            self._ending.end(None, None, None)
        raise self._ending.leave()

    def _finish(self) -> None:
        self._engine.finish()
        self._is_through = True

    def _tell_of_no_step(self) -> None:
        """Says once that the loop marks no boundary: nothing can be saved, and no number of steps is reached."""
        self._engine.log.announce(
            f"{self._without_step:,} batches, and no step() yet: nothing of it can be saved, and a number of steps is"
            " never reached; call step() after each update",
            logging.WARNING,
        )
        self._without_step = None

    def _tell_of_late_changes(self) -> None:
        """Says once what the loop changes after `step()`: a checkpoint has it as it was before."""
        if self._looks_left and (late := self._state.changed_since_boundary()):
            self._looks_left = 0
            self._engine.log.warning(
                f"{', '.join(late)}: changed after step(), and a checkpoint has it as it was then: call step() last"
            )
        elif self._looks_left and self._state.has_moving:
            self._looks_left -= 1

    def _is_over(self, until: int | None) -> bool:
        return self._engine.stop_requested or (until is not None and (self._state.step or 0) >= until)


def _in_groups(batches: Iterator[Any], size: int | None) -> Iterator[Any]:
    if size is None:
        yield from batches
        return
    while group := list(itertools.islice(batches, size)):
        yield group
