"""The verbs of the command line, as a child runs them."""

import sys

from holdfast.cli.app import main


def runs(*argv: str, times: int = 1) -> None:
    """Runs a verb again and again, and prints the exit codes. `{number}` in an argument counts."""
    for number in range(times):
        sys.argv = ["holdfast", *(each.format(number=number) for each in argv)]
        try:
            main()
        except SystemExit as end:
            print("code", end.code, flush=True)
