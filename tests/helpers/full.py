"""What `make test` leaves to `make test-full`, and why nothing is lost by it."""

import os

import pytest

FULL = any(os.environ.get(f"HOLDFAST_{name}") for name in ("FULL", "FAULTS", "REMOTE"))
"""Set by `make test-full`, and by `make test-faults` and `make test-remote`, which run the tests of one kind alone."""


def in_full(because: str) -> pytest.MarkDecorator:
    """Marks a test, or a case of one, that takes long and for which a cheaper one stands in `make test`.

    CONTRIBUTING.md lists each of them; a test holds the list.

    Args:
        because: What stands for it.
    """
    return pytest.mark.skipif(not FULL, reason=f"{because}: HOLDFAST_FULL=1, make test-full")
