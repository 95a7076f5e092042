"""Who started this process."""

import os

from holdfast.errors import STOPPED_AFTER_SAVE


def world_size() -> int:
    """How many processes the launcher says that train together."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def under_elastic_agent() -> bool:
    """Whether torchrun started this process. It starts again what does not exit with 0, a good stop included (seen)."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def stopped_after_save() -> int:
    """The exit code after a good save: 75; under torchrun 0, because it starts again whatever ends otherwise."""
    return 0 if under_elastic_agent() else STOPPED_AFTER_SAVE
