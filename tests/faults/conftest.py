"""The fixture of those tests that need two accounts."""

from faults.ground import place

__all__ = ["place"]
