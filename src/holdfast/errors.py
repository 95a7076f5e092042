"""Everything that Holdfast raises, and every exit code of its own: here, and for users in `docs/cli.md`.

    HoldfastError                       exit code 1
      ConfigError                       2   the configuration cannot be used
      UnsupportedError                  2   asked for something that this version cannot do
      RunError
        RunNotFoundError                4   there is no run in that directory
        RunNotAliveError                4   there is one, and no process is training it
        RunBusyError                    1   another process is training it
        LeaseLostError                  1   another process has taken the run over, or its lease is gone
      RanksError                        1   a rank did not answer, or the ranks' store is gone
      WaitTimeoutError                  5   the answer did not come in time; the request stands
      SaveError                         1   a save failed; training goes on
        NoSpaceError                    1   the disk is full, or would be
        LateError                       1   a rank did not come to a stop's boundary in time; it is tried again
        DeviceLostError                 1   a card is lost, and had not given all of the state
        TornError                       1   the state was written to outside an update while it was saved
      PartialAccumulationError          1   `step()` was called in the middle of an accumulation
      CheckpointError
        DamagedCheckpointError          3   what is on disk is not what was written
        NoCheckpointError               1   nothing that could be resumed from
      MirrorError
        MirrorAccessError               2   no credentials, or they are refused; no such bucket; a store without
                                            put-if-absent
        MirrorUnavailableError          1   the store does not answer, is busy, or is full: it is tried again
          MirrorNameError               2   no server has the name: most likely it is mistyped
        MirrorTakenError                2   the place belongs to another run, or another start has the run
        AbsentError                     1   there is no such object
      Stopped                           75, or 128 + the signal: a stop that was asked for

Each message says what happened and to what; `hint` says what to do next.
"""

import signal
from collections.abc import Sequence

from holdfast.text import lines_shown

FAILED = 1
"""The exit code of whatever failed and has no code of its own."""
STOPPED_AFTER_SAVE = 75
"""The exit code of a stop with a good save: EX_TEMPFAIL of sysexits.h, come back later."""
DIFFERENT = 1
"""The exit code of `holdfast diff` when the two are not the same, and of `holdfast drill` when the resume is not."""
NOT_DETERMINISTIC = 6
"""The exit code of `holdfast drill` when two uninterrupted starts already differ."""
STILL_TRAINING = 7
"""The exit code of `holdfast status --outcome` while a process trains the run."""
DID_NOT_END = 8
"""The exit code of `holdfast status --outcome` when nobody trains the run and nothing says how the last start ended."""


def ended_by_signal(number: int) -> int:
    """Returns the exit code of a process that a signal has ended, as shells have it."""
    return 128 + number


def exit_code_of(error: SystemExit | KeyboardInterrupt) -> int:
    """Returns the exit code of a process that is left by an error that means to leave it."""
    if isinstance(error, KeyboardInterrupt):
        return ended_by_signal(signal.SIGINT)
    return error.code if isinstance(error.code, int) else FAILED if error.code else 0


class HoldfastError(Exception):
    """The base of every error of Holdfast.

    A message may quote what anybody has written, and ends on a terminal whoever catches it: so it is escaped here.

    Args:
        message: The event, and the thing that it happened to.
        hint: The next thing to do; shown on a line of its own.
    """

    exit_code = FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(lines_shown(message))
        self.hint = None if hint is None else lines_shown(hint)
        if self.hint:
            self.add_note(self.hint)  # where nobody catches it, the trace ends with what to do


class ConfigError(HoldfastError):
    """The configuration cannot be used. `problems` holds one line for each thing that is wrong."""

    exit_code = 2

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class UnsupportedError(HoldfastError):
    """Something was asked for that this version cannot do."""

    exit_code = 2


class RunError(HoldfastError):
    """Something is wrong with a run directory or its owner."""


class RunNotFoundError(RunError):
    """There is no run in the directory."""

    exit_code = 4


class RunNotAliveError(RunError):
    """There is a run in the directory, and no process is training it."""

    exit_code = 4


class RunBusyError(RunError):
    """Another process is training the run."""


class LeaseLostError(RunError):
    """Another process took the run over while this one was not looking."""


class RanksError(HoldfastError):
    """A rank did not tell what the others wait for, or cannot be reached."""


class WaitTimeoutError(HoldfastError):
    """The answer did not come in time; the request stands."""

    exit_code = 5


class SaveError(HoldfastError):
    """A save failed. What was committed before is untouched."""


class NoSpaceError(SaveError):
    """The file system has too little room, or too few inodes, for the checkpoint."""


class TornError(SaveError):
    """The state was written to, outside an update, while or before it was read. Nothing of it is published.

    Args:
        names: The tensors that were seen to change.
        at_rest: True where training stood still meanwhile, so that another try would end alike. None: whoever reads
            the state knows.
    """

    def __init__(self, names: Sequence[str], at_rest: bool | None = None) -> None:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        super().__init__(
            f"{shown}: written outside the optimizer's step, while the last boundary was to be saved",
            hint="put such writes before step(), or into: with checkpointer.update():",
        )
        self.names = tuple(names)
        self.at_rest = at_rest


class DeviceLostError(SaveError):
    """A card is lost, or a copy from it has failed. Nothing more is read from it."""


class LateError(SaveError):
    """A rank did not come to the boundary of a stop's save in time. It is tried again, with the mark before that."""


class PartialAccumulationError(HoldfastError):
    """`step()` was called with gradients present and no optimizer's step since the last boundary."""


class CheckpointError(HoldfastError):
    """Something is wrong with a checkpoint."""


class DamagedCheckpointError(CheckpointError):
    """Something on disk is not what was written. `problems` names each difference."""

    exit_code = 3

    def __init__(self, message: str, problems: list[str] | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems or []


class NoCheckpointError(CheckpointError):
    """Nothing in the directory could be resumed from."""


class MirrorError(HoldfastError):
    """Something is wrong with a place beyond this disk, or with what is there."""


class MirrorAccessError(MirrorError):
    """The place cannot be used as it is given: trying again would end alike."""

    exit_code = 2


class MirrorUnavailableError(MirrorError):
    """The place did not do it this time. What it was asked for may have been done all the same."""


class MirrorNameError(MirrorUnavailableError):
    """No server is known by the place's name: it is mistyped, or this machine has no network yet."""

    exit_code = 2


class MirrorTakenError(MirrorError):
    """The place belongs to another run, or another start has taken the run over."""

    exit_code = 2


class AbsentError(MirrorError):
    """There is no object of that key."""


class Stopped(SystemExit):
    """Training ended because a stop was asked for. `code` is the exit code of the process.

    A `SystemExit`, so that a script that does not know Holdfast ends instead of taking a stopped training for a
    finished one.
    """
