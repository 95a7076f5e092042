"""Waiting for a condition, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], limit: float = 30.0, what: str = "") -> Found:
    """Waits until `condition` gives something true, and gives it back."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit:g} s in vain for {what or condition}"
        time.sleep(0.01)
    return found
