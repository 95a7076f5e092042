"""How many processes train together. This version saves for one; more are refused before anything is written."""

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
