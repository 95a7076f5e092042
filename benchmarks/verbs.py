"""What verbs cost as whole processes."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.table import head, row
from holdfast.run.run import Run


def report(folder: Path) -> None:
    """Prints the table."""
    run = folder / "verbs"
    Run.open(run).close("measured", 0)
    head("a verb, from start to end", "s")
    for verb in ("list", "status", "verify"):
        row(f"holdfast {verb}", verb_cost(verb, run), 1)


def verb_cost(verb: str, run: Path, rounds: int = 9) -> list[float]:
    """Seconds of whole processes."""
    costs = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "holdfast", verb, str(run)], capture_output=True, check=False)
        costs.append(time.perf_counter() - begun)
    return costs
