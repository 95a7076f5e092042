"""Tests that need more than the oldest versions of the trainers' libraries have."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs_transformers(first: str, because: str) -> pytest.MarkDecorator:
    """Marks a test that an older version of transformers cannot pass.

    Args:
        first: The first version that can.
        because: What the older ones lack; docs/exactness.md says it too.
    """
    return pytest.mark.skipif(
        Version(version("transformers")) < Version(first), reason=f"before transformers {first}: {because}"
    )
