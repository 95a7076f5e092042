"""The lines at the start of a training that say how to ask for a save, and how to stop it."""

import os
from pathlib import Path

from holdfast.settings import DynamicCheckpoint


def hints(root: Path, settings: DynamicCheckpoint) -> list[str]:
    """Returns the lines.

    Args:
        root: The run directory.
        settings: Those of the trigger file.
    """
    pid = os.getpid()
    if settings.enabled:
        when = f"within {settings.check_interval} steps" if settings.check_interval else "at once"
        trigger = f"to save {when}:  touch {root / settings.trigger_file_path}"
    else:
        trigger = "the trigger file is off; to turn it on: dynamic_checkpoint: {enabled: true}"
    return [
        f"run {root}, process {pid}",
        trigger,
        f"to save at once:  holdfast save {root} --wait   (or: kill -USR1 {pid})",
        f"to save and stop:  holdfast stop {root}   (or: Ctrl+C, kill -TERM {pid}, kill -USR2 {pid})",
        f"to look at it:  holdfast status {root}",
    ]
