"""The outcome of the last start in a run directory: the record that programs decide by. The journal is for people."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from holdfast.errors import FAILED, STOPPED_AFTER_SAVE, RunError
from holdfast.run.directory import OUTCOME, RunDirectory, opened_private
from holdfast.run.lease import Holder
from holdfast.store import files, names
from holdfast.store.folder import Folder, Place, status_of

RUNNING: Final = "running"
"""The outcome of a start that has not ended; a process that was killed leaves it behind."""
_MOST_BYTES = 64 << 10
_END_OF_TIME = 2.0**40  # seconds; also keeps out NaN


@dataclass(frozen=True)
class Outcome:
    """The last start in a run directory, and how it ended.

    Args:
        run: The run.
        token: The start's lease.
        generation: The number of the start in this directory.
        pid: The process that trains, rank 0 of several.
        parent: The attempt that it was resumed from; None where it began anew.
        began_at: Seconds since the epoch.
        outcome: `running`, `finished`, `stopped`, or how else it ended.
        code: The exit code of that process; None while it runs.
        ended_at: Seconds since the epoch; None while it runs.
    """

    run: str
    token: str
    generation: int
    pid: int
    parent: str | None
    began_at: float = field(default_factory=time.time)
    outcome: str = RUNNING
    code: int | None = None
    ended_at: float | None = None

    @classmethod
    def of_start(cls, holder: Holder, parent: str | None) -> "Outcome":
        """Returns the record of a start that has just taken the lease."""
        return cls(holder.run, holder.token, holder.generation, holder.pid, parent)

    @property
    def has_ended(self) -> bool:
        """True where the start has said how it ended."""
        return self.outcome != RUNNING

    @property
    def exit_code(self) -> int:
        """The exit code that one process of `holdfast train` would have had; of a start that did not end: a failure."""
        if self.outcome == "finished":
            return self.code or 0
        # Under torchrun a rank says 0 after a good save, because its agent takes anything else for a failure.
        return STOPPED_AFTER_SAVE if self.code == 0 else FAILED if self.code is None else self.code


def write(directory: RunDirectory, outcome: Outcome) -> None:
    """Puts a record in the place of the one before, durably.

    Raises:
        OSError: The disk does not take it.
    """
    files.replace(directory.outcome, json.dumps(asdict(outcome), indent=1).encode())


def read(directory: RunDirectory) -> Outcome | None:
    """Returns the record of the last start; None where there is none, or none that is one.

    Raises:
        RunError: It cannot be read.
    """
    return _read(directory.outcome)


def last_in(root: Path) -> Outcome | None:
    """Returns the record of the last start in a directory in which there may have been none.

    Raises:
        RunError: Others may write where it lies, or it cannot be read.
    """
    try:
        with Folder.open(root, follow=True) as folder:
            status_of(folder / names.CONTROL)
            with opened_private(folder / names.CONTROL) as control:
                return _read(control / OUTCOME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{root} cannot be looked at: {error.strerror or error}") from error


def _read(where: Place) -> Outcome | None:
    try:
        return _decoded(json.loads(files.read(where, limit=_MOST_BYTES)))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise RunError(f"{where} cannot be read: {error.strerror or error}") from error


def _decoded(content: object) -> Outcome | None:
    number = (int, float)
    kinds: dict[str, Any] = {"run": str, "token": str, "generation": int, "pid": int, "parent": (str, type(None))}
    kinds |= {"began_at": number, "outcome": str, "code": (int, type(None)), "ended_at": (*number, type(None))}
    if not isinstance(content, dict) or set(content) != set(kinds):
        return None
    if any(not isinstance(content[key], kind) or isinstance(content[key], bool) for key, kind in kinds.items()):
        return None
    times = (content["began_at"], content["ended_at"] or 0.0)
    if not all(0 <= seconds < _END_OF_TIME for seconds in times):
        return None
    outcome = Outcome(**content)
    return outcome if names.is_token(outcome.token) and names.is_token(outcome.run) else None
