"""The epochs of a plain loop: which one's body is run, where it is within, and the way out of it at a stop."""

import logging
from collections.abc import Mapping

import torch

from holdfast.capture.boundary import Boundary
from holdfast.engine.bodies import Bodies
from holdfast.engine.engine import Engine
from holdfast.errors import HoldfastError
from holdfast.loop.subject import LoopRecord, LoopState
from holdfast.state.data.cursor import DataCursor


class Epochs:
    """Counts the epochs of a loop, and tells the engine where in the body of one it is.

    Args:
        engine: The training's saves.
        state: The state of the loop.
        data: The data that its batches are of.
    """

    def __init__(self, engine: Engine, state: LoopState, data: DataCursor) -> None:
        self._engine = engine
        self._bodies: Bodies = engine.bodies
        self._state = state
        self._data = data
        self._batches: object | None = None
        self._cut_after = 0
        self._is_told_of_cut = self._is_told_of_held = self._is_told_of_memory = False
        self.in_body = False
        """True while the body of an epoch is run."""
        self.are_past = False
        """True from the end of its batches to its end."""
        self.has_none_left = False
        """True in a body that runs again without its batches: they were taken before the run was left."""
        self.wanted = 0
        """The number of epochs that the loop asks for."""

    @property
    def epoch(self) -> int:
        """The epoch whose body is run, or comes next, from 0."""
        return self._data.epoch if self._state.epoch is None else self._state.epoch

    @property
    def _place(self) -> str:
        return f"in the rest of epoch {self.epoch}'s body"

    def begin(self, wanted: int) -> None:
        """Takes in that a loop begins to go through epochs, until it has done so many.

        Raises:
            HoldfastError: It does so already.
        """
        if self.in_body:
            raise HoldfastError("epochs() inside of epochs()", hint="call it once, around batches()")
        self.wanted = wanted
        if self._state.epoch is None:
            is_resumed = self._engine.origin.chosen is not None and self._engine.gate.boundary is None
            if is_resumed and self._data.epoch and not self._data.consumed:
                self._engine.log.announce(
                    f"epochs() goes on with epoch {self._data.epoch}: the checkpoint does not say whether what follows"
                    " the batches of the one before was done",
                    logging.WARNING,
                )
            self._state.epoch = self._data.epoch
        if self._state.epoch == self._data.epoch:
            self._data.arrive_between()

    def do_without(self) -> None:
        """Takes in that the loop goes through batches without epochs."""
        epoch, self._state.epoch = self._state.epoch, None
        if epoch is not None and self._state.begins_past_batches and self._engine.gate.boundary is None:
            self._engine.log.announce(
                f"the body of epoch {epoch} was left after its batches, and is not gone on with: this loop does without"
                " epochs()",
                logging.WARNING,
            )

    def enter(self) -> int:
        """Takes in that the body of an epoch begins, and returns the epoch."""
        self.in_body, self.are_past, self._batches, self._cut_after = True, False, None, 0
        self._bodies.enter()
        return self.epoch

    def begin_batches(self, batches: object) -> bool:
        """Takes in that the batches of the epoch are asked for.

        Returns:
            False where they were taken before the run was left: the rest of the body runs again.

        Raises:
            HoldfastError: They were gone through in this body already.
        """
        if self._batches is not None:
            raise HoldfastError(
                f"batches() twice in the body of epoch {self.epoch}: they were gone through",
                hint="call it once in the body of epochs(); the next epoch has its own",
            )
        self._batches = batches
        self.has_none_left = self._state.begins_past_batches and self._engine.gate.boundary is None
        self._bodies.begin_batches()
        if self._data.epoch == self.epoch:
            return True
        self._data.arrive_between()
        return False

    def end_batches(self, batches: object, *, may_leave: bool = True) -> bool:
        """Takes in that the batches of the epoch have ended, or the loop has left them: the rest of the body comes.

        Args:
            batches: The ones that `begin_batches` was given: older ones have no say any more.
            may_leave: True where training can leave here.

        Returns:
            False where it leaves, as a stop was asked for.
        """
        if not self.in_body or self.are_past or batches is not self._batches:
            return True
        if not self._bodies.pass_batches() and may_leave:
            return False
        self.are_past = True
        self._engine.run.status.update(body=self._place)
        self._cut_after = 0 if self._data.epoch > self.epoch else self._data.end_epoch()
        self._keep(is_cut=bool(self._cut_after))
        return True

    def keep_again(self) -> None:
        """Takes in a step after the end of the batches, by a loop that has some ahead: its boundary is the last now."""
        self._bodies.pass_batches()
        self._keep(is_cut=False)

    def end(self) -> None:
        """Takes in that the body of the epoch is at its end.

        Raises:
            HoldfastError: It has not gone through its batches.
        """
        if self._batches is None:
            raise HoldfastError(
                f"the body of epoch {self.epoch} took nothing from batches()",
                hint="take the batches of the epoch from checkpointer.batches(), or do without epochs()",
            )
        is_held = not self.are_past
        self.end_batches(self._batches, may_leave=False)
        if self._cut_after and is_held and not self._is_told_of_held:
            self._is_told_of_held = True
            self._engine.log.announce(
                f"the loop left epoch {self.epoch}, and batches() was still held (by a progress bar with a name?): that"
                " was noticed at the end of the body alone, and a save before is of the middle of the epoch, with what"
                " the body had changed; close it after the break",
                logging.WARNING,
            )
        if self._cut_after and not self._is_told_of_cut:  # not before: an error may have left the batches
            self._is_told_of_cut = True
            self._engine.log.announce(
                f"the loop left epoch {self.epoch} after {self._cut_after} batches: the next one begins the data anew,"
                " and a checkpoint of that very step goes on with the next batch"
            )
        self._state.epoch = self.epoch + 1
        self.in_body = self.are_past = self.has_none_left = False

    def reach_end(self) -> None:
        """Takes in that the boundary there was reached, or there will be none."""
        self._engine.run.status.update(body="")

    def leave(self) -> None:
        """Takes in that the loop goes through epochs no more, whatever the reason."""
        self.in_body = False
        self.reach_end()

    def _keep(self, *, is_cut: bool) -> None:
        """Keeps the last boundary as it is, whatever the rest of the body does."""
        if not is_cut and not self._state.not_stepped():
            return
        with self._bodies.undisturbed() as here:
            if here is None:
                return
            recorded: LoopRecord = here.recorded
            self._copy(here)
            self._bodies.exchange(here, recorded._replace(data=self._data.record()) if is_cut else recorded)

    def _copy(self, here: Boundary) -> None:
        """Copies what no optimizer steps, or has it watched where it cannot be copied any more, or has no room."""
        tensors, own = self._state.not_stepped(), self._state.bodies
        if not tensors or self._engine.gate.only_when_blocked:
            return
        if moved := [name for name in self._bodies.changed(here) if name in tensors]:
            own.watch(tensors, moved)
            return
        needed = sum(tensor.nbytes for tensor in tensors.values())
        try:
            if self._bodies.lend(needed):
                self._state.copy(tensors)
                return
        except (MemoryError, RuntimeError):
            self._bodies.lend(0)
        own.watch(tensors)
        self._tell_of_memory(tensors, needed)

    def _tell_of_memory(self, tensors: Mapping[str, torch.Tensor], needed: int) -> None:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in tensors))
        line = (
            f"{parts}: {needed:,} bytes that the rest of an epoch's body may change do not fit into the staging"
            " memory: once it has changed them, a save waits for the end of the body"
        )
        self._engine.run.status.update(body=f"{self._place}: {line}")
        if not self._is_told_of_memory:
            self._is_told_of_memory = True
            self._engine.log.announce(line, logging.WARNING)
