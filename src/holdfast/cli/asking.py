"""Asks for a save, as `save` and `stop` do, and prints what became of it."""

import os
from pathlib import Path

from holdfast.cli.output import as_json, tell
from holdfast.errors import ConfigError, SaveError
from holdfast.run import asking
from holdfast.run.asking import AskedSave
from holdfast.run.request import IN_NO_FILE, MOST_LABEL_BYTES


def ask(root: Path, *, stop: bool, label: str, why: str, wait: bool, timeout: float | None, json: bool) -> None:
    """Asks a run for a save, and prints what became of it.

    Raises:
        RunNotFoundError: There is no run in `root`.
        RunNotAliveError: No process trains it, or its process ended before it answered.
        WaitTimeoutError: There was no answer in time.
        SaveError: The save failed.
    """
    text = os.fsencode(label)  # a shell passes any bytes
    if len(text) > MOST_LABEL_BYTES:
        raise ConfigError([f"--label: has {len(text)} bytes, and a label has at most {MOST_LABEL_BYTES}"])
    if timeout is not None and not wait:
        raise ConfigError(["--timeout: has no meaning without --wait"])
    asked = asking.ask(root, text, stop=stop, why=why)
    if not wait:
        _print_asked(root, asked, json, stop=stop)
        return
    answer = asked.hear(timeout)
    if json:
        fields = {name: value for name, value in vars(answer).items() if name not in IN_NO_FILE}
        as_json({"request": asked.id, **fields})
    elif answer.saved:
        tell(answer.line(f"request:{asked.id}"))
    if problem := asking.problem_of(answer):
        raise SaveError(problem) if not json else SystemExit(SaveError.exit_code)


def _print_asked(root: Path, asked: AskedSave, json: bool, *, stop: bool) -> None:
    if json:
        as_json({"request": asked.id})
        return
    after = "saves and ends" if stop else "saves and goes on"
    tell(f"asked: the run {after}, with its last boundary (request {asked.id})")
    tell(f"  to wait for the answer, add --wait; to look, holdfast status {root}")
