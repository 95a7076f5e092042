"""How figures are printed: a median with its minimum and maximum."""

import statistics
from collections.abc import Sequence


def head(text: str, unit: str) -> None:
    """Begins a table."""
    print(f"\n{text:52}{unit:>10}  (min-max)", flush=True)


def row(text: str, values: Sequence[float], scale: float) -> None:
    """Adds what was measured, one value a round, in the table's unit."""
    middle, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    print(f"  {text:50}{middle:10.3g}  ({low:.3g}-{high:.3g})", flush=True)
