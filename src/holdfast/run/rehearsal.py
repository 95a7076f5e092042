"""A rehearsal of a preemption, as the program that is rehearsed sees it: `holdfast drill` starts it with this.

One environment variable says where the run directory is instead of the program's own, where to leave traces, and at
which step to end. Every entry of Holdfast honours it: `Checkpointer`, `attach` and `holdfast train`.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast.errors import ConfigError

ENVIRONMENT = "HOLDFAST_DRILL"


@dataclass(frozen=True)
class Rehearsal:
    """One start of the program.

    Args:
        output_dir: The run directory, in place of the program's own.
        traces: The directory for what each rank leaves: `rank-<n>.jsonl`, and `lines.txt` of rank 0.
        steps: The step at which the program ends; 0 where a stop ends it.
        interrupted_at: The step from which on it waits to be asked, and then to be stopped; 0 for never.
        until: The step before which the stop must come.
    """

    output_dir: str
    traces: str
    steps: int
    interrupted_at: int = 0
    until: int = 0

    @property
    def asked(self) -> Path:
        """The file that appears when a save has been asked for."""
        return Path(self.traces, "asked")

    @property
    def lines(self) -> Path:
        """The file of the warnings that Holdfast gave."""
        return Path(self.traces, "lines.txt")

    def trace(self, rank: int) -> Path:
        """Returns the file of a rank's steps, one JSON object a line."""
        return Path(self.traces, f"rank-{rank}.jsonl")

    def environment(self) -> dict[str, str]:
        """Returns the environment of the program: this one's, with the rehearsal, and with trackers turned off."""
        quiet = {"WANDB_MODE": "disabled", "COMET_MODE": "disabled", "DISABLE_MLFLOW_INTEGRATION": "TRUE"}
        return {**os.environ, **quiet, ENVIRONMENT: json.dumps(asdict(self))}


def current() -> Rehearsal | None:
    """Returns the rehearsal that this process is part of; None where it trains in earnest.

    Raises:
        ConfigError: The variable holds something else.
    """
    text = os.environ.get(ENVIRONMENT)
    if not text:
        return None
    try:
        return Rehearsal(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise ConfigError([f"{ENVIRONMENT}: holdfast drill sets this, and {text!r} is not what it sets"]) from error


def output_dir_for(own: str | os.PathLike[str]) -> Path:
    """Returns the run directory of this process: its own, or that of a rehearsal."""
    rehearsal = current()
    return Path(own if rehearsal is None else rehearsal.output_dir)
