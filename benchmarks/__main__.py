"""Launch: make bench, or python -m benchmarks [--only ranks].

Every figure is a median with its minimum and maximum. What is compared is measured in turns, within one run, because a
machine's speed drifts; only the ratios carry over to another one.
"""

import argparse
import importlib
import shutil
import tempfile
from pathlib import Path

_SECTIONS = ("save", "boundary", "verbs", "ranks", "agreement", "resume", "trace", "mirror")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What Holdfast costs on this machine.")
    parser.add_argument("--only", choices=_SECTIONS, action="append", help="print this alone; may be given again")
    parser.add_argument(
        "--peers", type=_names, help="whom a save is compared with, with commas between; all if not given"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the state that is saved is")
    parser.add_argument("--rounds", type=int, default=3, help="of saves and loads; of training, one less")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the figures into the page anew")
    given = parser.parse_args()
    if given.page:
        _write_page()
        return
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="."))
    try:
        for name in given.only or _SECTIONS:
            if name == "save":
                _report_saves(folder, given.peers, given.device, given.rounds)
            else:
                # Not before its turn: a table must not wait for what another one imports.
                importlib.import_module(f"benchmarks.{name}").report(folder)
    finally:
        shutil.rmtree(folder)


def _report_saves(folder: Path, names: list[str] | None, device: str, rounds: int) -> None:
    from benchmarks import peers, plan, save

    found, missing = peers.found(names or peers.NAMES)
    save.report(folder, plan.Plan(found, device, rounds, max(1, rounds - 1)), missing)


def _write_page() -> None:
    from benchmarks import page

    path = page.named()
    page.write(path, path.with_suffix(".png"))


def _names(text: str) -> list[str]:
    from benchmarks.peers import NAMES

    names = text.split(",")
    if unknown := sorted(set(names) - set(NAMES)):
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    main()
