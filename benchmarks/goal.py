"""One figure beside what it should be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One figure beside what it should be.

    Args:
        text: What it is.
        value: What was measured.
        limit: What it should be.
        unit: The unit of both; empty for ratios.
        least: Whether more is better.
        bound: What it would be on this machine if ours took no longer than the disk alone, or a copy of what is cached;
            None where that is unknown.
    """

    text: str
    value: float
    limit: float
    unit: str = ""
    least: bool = False
    bound: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is what it should be."""
        return self.value >= self.limit if self.least else self.value <= self.limit
