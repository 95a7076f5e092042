"""The launcher that started this process, and the notebook that it may be."""

import os
import sys

from holdfast.errors import STOPPED_AFTER_SAVE


def world_size() -> int:
    """Returns how many processes train together, going by what the launcher says."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def under_elastic_agent() -> bool:
    """Tells whether torchrun started this process. It restarts what does not exit with 0, a good stop too (seen)."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def stopped_after_save() -> int:
    """Returns the exit code after a good save: 75; under torchrun 0, because it restarts whatever ends otherwise."""
    return 0 if under_elastic_agent() else STOPPED_AFTER_SAVE


def in_notebook() -> bool:
    """Tells whether IPython runs the code: its process is its user's, who goes on after whatever ends a training."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
