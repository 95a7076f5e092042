"""The beginning and the end of a plain loop's training, whichever way it ends: its block, `close()`, or nobody's call.

A loop without a `with` block may be left by an exception that nobody catches, which comes to `sys.excepthook`; and it
may forget `close()`, which is noticed when the interpreter ends.
"""

import atexit
import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from holdfast.doors.signals import ends_training
from holdfast.engine.engine import Engine
from holdfast.errors import HoldfastError, Stopped, exit_code_of
from holdfast.ranks.launcher import in_notebook
from holdfast.state.data.cursor import DataCursor

# In a notebook a cell is run again, with the training of the run before still open. Elsewhere nobody is kept here.
_OPEN: dict[Path, "Ending"] = {}


def take_over(root: Path) -> None:
    """Ends the training of this notebook that has a run open, for another that is about to begin there."""
    earlier = _OPEN.get(root.resolve()) if in_notebook() else None
    if earlier is not None:
        earlier.hand_over()


class Ending:
    """Opens the doors of a training, and ends it once.

    Args:
        engine: The training's saves.
        data: Its data, if it goes through `batches`.
        on_stop: The end after a stop: `exit` raises `Stopped`, `return` returns.
    """

    def __init__(self, engine: Engine, data: DataCursor | None, on_stop: Literal["exit", "return"]) -> None:
        self._engine = engine
        self._data = data
        self.on_stop = on_stop
        """The end after a stop."""
        self.in_block = False
        """True where a `with` block was entered."""
        self.left_by: Stopped | None = None
        """That by which the loop has left its block, at a stop."""
        self._process = os.getpid()
        self._hook_before = sys.excepthook
        self._hook = self._at_uncaught
        self._is_begun = self._is_over = False
        self._root = engine.run.root.resolve()  # a relative path leads elsewhere once the process works elsewhere
        if in_notebook():
            _OPEN[self._root] = self

    def begin(self) -> None:
        """Opens every door, if that was not done. From now on the training ends when its process does, if not before.

        Raises:
            HoldfastError: The training has ended.
        """
        if self._is_over:
            raise HoldfastError("this training was closed", hint="make a new Checkpointer, which resumes it")
        if self._is_begun:
            return
        self._is_begun = True
        self._engine.__enter__()
        atexit.register(self._at_exit)
        if not in_notebook() and not hasattr(sys, "ps1"):  # there nothing ends with an exception
            self._hook_before, sys.excepthook = sys.excepthook, self._hook

    @property
    def is_over(self) -> bool:
        """True from the end of the training on."""
        return self._is_over

    def leave(self) -> Stopped:
        """Returns that by which a loop leaves its block at a stop, wherever it is in it."""
        self.left_by = Stopped(self._engine.exit_code)
        return self.left_by

    def hand_over(self) -> None:
        """Ends the training for another of this process, which takes its run over."""
        self._engine.log.info(f"a new Checkpointer takes over the run in {self._engine.run.root}: this one is closed")
        self._engine.outcome = "taken over"
        with suppress(SystemExit, KeyboardInterrupt):  # it has been stopped, and the cell that it ended is no more
            self.end(None, None, None)

    @ends_training
    def end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Ends the training, as leaving a `with` block does. True swallows an error that was the stop itself.

        Raises:
            Stopped: It has ended because a stop was asked for.
        """
        if self._is_over:
            return False
        self._is_over = True
        _OPEN.pop(self._root, None)
        atexit.unregister(self._at_exit)
        if sys.excepthook == self._hook:
            sys.excepthook = self._hook_before
        engine = self._engine
        try:
            was_the_stop = engine.__exit__(kind, error, trace)
        finally:
            if self._data is not None:
                self._data.close()
        if engine.stop_requested and (error is None or was_the_stop) and self.on_stop == "exit":
            raise Stopped(engine.exit_code) from None
        return was_the_stop

    def _at_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Ends the training by an exception that nobody has caught, then shows it as ever."""
        if self._is_over or os.getpid() != self._process or not self._engine.gate.is_training_thread:
            self._hook_before(kind, error, trace)
            return
        try:
            was_the_stop = self.end(kind, error, trace)
        except (SystemExit, KeyboardInterrupt) as left:
            _exit_with(exit_code_of(left))
            return
        if not was_the_stop:
            self._hook_before(kind, error, trace)

    def _at_exit(self) -> None:
        """Ends the training where the interpreter ends. Python starts no threads there any more, so little is saved."""
        if os.getpid() != self._process:
            return
        left_by = self._engine.exit_of_handler
        if left_by is None:
            self._engine.log.warning(
                "the interpreter ends, and close() was not called: put the loop into a with block, or call close()"
            )
        try:
            self.end(None if left_by is None else type(left_by), left_by, None)
        except (SystemExit, KeyboardInterrupt) as left:
            _exit_with(exit_code_of(left))


def _exit_with(code: int) -> None:
    """Gives the process an exit code when the interpreter is ending already, and cannot be told another any more.

    The last thing that it does is to call C's `exit`, whose handlers come first that were registered last: ours is
    `_exit` itself. Everything of Python has been ended in order by then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    libc.__cxa_atexit(libc._exit, ctypes.c_void_p(code), None)
