"""The processes that train together, and who started them. This version saves for one process."""

import os

from holdfast.errors import UnsupportedError


def require_one() -> None:
    """Refuses to go on in a training of several processes.

    Raises:
        UnsupportedError: The launcher says that there are several.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise UnsupportedError(
            f"this training has WORLD_SIZE={size}, and this version of Holdfast saves a single process",
            hint="start it without a launcher, or with one process",
        )


def under_elastic_agent() -> bool:
    """Whether torchrun started this process. It starts again what does not exit with 0, a good stop included (seen)."""
    return "TORCHELASTIC_RUN_ID" in os.environ
