"""Fuzzes every parser of `parsers.py` with atheris, guided by what the code does with the bytes. Not part of the tests.

    pip install atheris
    nice -n 19 python tests/security/fuzz.py --seconds 60           each parser, one after the other
    python tests/security/fuzz.py --seconds 600 --only manifest     one of them
    python tests/security/fuzz.py --only manifest --input crash-1   what it found, once more

Ends with 1 when a parser broke; what broke it is left in the current directory.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    sys.exit("fuzzing needs atheris: pip install atheris (it has wheels for Linux and few versions of Python)")

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["holdfast"]):
    from security.parsers import PARSERS


def fuzz_one(name: str, seconds: int) -> None:
    """Fuzzes one parser in this process, which libFuzzer ends."""
    parser = PARSERS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(parser.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", corpus], parser.survives)
        atheris.Fuzz()


def main() -> int:
    options = argparse.ArgumentParser(description="Fuzz the parsers of what somebody else may have written.")
    options.add_argument("--seconds", type=int, default=60, help="for each parser")
    options.add_argument("--only", choices=sorted(PARSERS), help="this parser alone")
    options.add_argument("--input", type=Path, help="with --only: have it read this file, and nothing else")
    options.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.input:
        PARSERS[given.only].survives(given.input.read_bytes())
        return 0
    if given.here:
        fuzz_one(given.only, given.seconds)
    broken = []
    for name in [given.only] if given.only else PARSERS:
        print(f"== {name}", flush=True)
        again = [sys.executable, __file__, "--here", "--only", name, "--seconds", str(given.seconds)]
        with tempfile.TemporaryDirectory() as scratch:  # libFuzzer ends its process without a last word
            if subprocess.run(again, env={**os.environ, "TMPDIR": scratch}, check=False).returncode:
                broken.append(name)
    print(f"broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
