"""What `make test` leaves to `make test-full`, and why nothing is lost by it."""

import os

import pytest

FULL = bool(os.environ.get("HOLDFAST_FULL") or os.environ.get("HOLDFAST_FAULTS"))
"""Set by `make test-full`, and by `make test-faults`, which runs the tests of faults alone."""


def in_full(because: str) -> pytest.MarkDecorator:
    """Marks a test, or a case of one, that takes long and for which a cheaper one stands in `make test`.

    CONTRIBUTING.md lists each of them; a test holds the list.

    Args:
        because: What stands for it.
    """
    return pytest.mark.skipif(not FULL, reason=f"{because}: HOLDFAST_FULL=1, make test-full")
