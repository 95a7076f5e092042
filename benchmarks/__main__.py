"""Launch: make bench, or python -m benchmarks [--only ranks].

Every figure is a median with its minimum and maximum. What is compared is measured in turns, within one run, because a
machine's speed drifts; only the ratios carry over to another one.
"""

import argparse
import importlib
import shutil
import tempfile
from pathlib import Path

_SECTIONS = ("boundary", "verbs", "saves", "ranks", "agreement")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What Holdfast costs on this machine.")
    parser.add_argument("--only", choices=_SECTIONS, action="append", help="print this alone; may be given again")
    only = parser.parse_args().only
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="."))
    try:
        for name in only or _SECTIONS:
            # Not before its turn: a table must not wait for what another one imports.
            importlib.import_module(f"benchmarks.{name}").report(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
