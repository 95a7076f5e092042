"""Launch: make gpu, make gpu-table, or python -m benchmarks.gpu check|table [--part NAME ...]."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import parts
from benchmarks.gpu.bench import Bench


def main() -> None:
    """Runs what is asked for, and ends with 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Holdfast on a GPU.")
    parser.add_argument("what", choices=("check", "table", "page", "part"))
    parser.add_argument("name", nargs="?", help="with `part`: the one to run in this process")
    parser.add_argument("--part", action="append", help="this alone, with commas between several")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu is a dry run; without it the one that is there")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    parser.add_argument("--into", type=Path, help="with `part`: where its findings go")
    parser.add_argument("--seconds", type=int, default=0, help="no part is begun later than this; 0: all are")
    given = parser.parse_args()
    if given.what == "page":
        from benchmarks.gpu import page

        page.write()
    elif given.what == "part":
        parts.run_one(given.name, Bench(given.device, given.folder, given.into))
    else:
        signal.signal(signal.SIGTERM, _interrupt)
        sys.exit(_run(parser, given))


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    if lacking := parts.missing():
        print(f"not installed here, and needed: {', '.join(lacking)} (pip install {' '.join(lacking)})")
        return 2
    import torch

    from benchmarks.gpu import report

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    all_parts = parts.CHECK if given.what == "check" else parts.TABLE
    names = [name for text in given.part or [] for name in text.split(",") if name]
    if unknown := sorted(set(names) - set(all_parts)):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(all_parts)}")
    chosen = {name: part for name, part in all_parts.items() if not names or name in names}
    if device == "cpu":
        print("there is no CUDA device: a DRY RUN on the CPU with tiny sizes, which measures nothing", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-gpu-", dir=given.folder))
    keeper = report.Keeper(given.what, device, folder)
    begun = time.monotonic()
    try:
        for group in parts.in_order(chosen):
            if given.seconds and time.monotonic() - begun > given.seconds:
                for name in group:
                    keeper.leave_out(name, f"{given.seconds} s are over; alone: PART={name}")
                continue
            running = [parts.Running(name, chosen[name], device, folder) for name in group]
            try:
                for one in running:
                    keeper.take(one.name, one.wait(), one.into)
            finally:
                for one in running:
                    one.end()
        return keeper.end(time.monotonic() - begun)
    except KeyboardInterrupt:
        print(f"interrupted; what was found until then: {keeper.path if device == 'cuda' else 'nothing to keep'}")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
