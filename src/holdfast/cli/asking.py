"""Asks for a save, as `save` and `stop` do, and prints what became of it."""

import os
import time
from dataclasses import asdict
from pathlib import Path

from holdfast.cli.output import as_json, tell
from holdfast.errors import ConfigError, MirrorError, SaveError
from holdfast.mirror.asking import not_mirrored, require_mirror, wait_for_mirror
from holdfast.run import asking
from holdfast.run.asking import AskedSave
from holdfast.run.request import IN_NO_FILE, MOST_LABEL_BYTES


def ask(
    root: Path, *, stop: bool, label: str, why: str, wait: bool, mirrored: bool, timeout: float | None, json: bool
) -> None:
    """Asks a run for a save, and prints what became of it.

    Raises:
        ConfigError: The label is too long, an option has no meaning without another, or there is no mirror.
        RunNotFoundError: There is no run in `root`.
        RunNotAliveError: No process trains it, or its process ended before it answered.
        WaitTimeoutError: There was no answer in time.
        SaveError: The save failed.
        MirrorError: With `mirrored`: it was saved, and is on this disk only.
    """
    text = os.fsencode(label)  # a shell passes any bytes
    if len(text) > MOST_LABEL_BYTES:
        raise ConfigError([f"--label: has {len(text)} bytes, and a label has at most {MOST_LABEL_BYTES}"])
    if timeout is not None and not wait:
        raise ConfigError(["--timeout: has no meaning without --wait"])
    if mirrored:
        if not wait:
            raise ConfigError(["--mirrored: has no meaning without --wait"])
        require_mirror(root, "--mirrored")
    deadline = None if timeout is None else time.monotonic() + timeout
    asked = asking.ask(root, text, stop=stop, why=why)
    if not wait:
        _print_asked(root, asked, json, stop=stop)
        return
    answer = asked.hear(timeout)
    problem = asking.problem_of(answer)
    sent = None
    if answer.saved and not json:
        tell(answer.line(f"request:{asked.id}"))
    if mirrored and not problem:
        sent = wait_for_mirror(root, answer, deadline)
    if json:
        fields = {name: value for name, value in vars(answer).items() if name not in IN_NO_FILE}
        as_json({"request": asked.id, **fields, **({} if sent is None else {"mirror": asdict(sent)})})
    elif sent is not None and sent.mirrored:
        tell(f"mirrored step={sent.step} bytes={sent.bytes} seconds={sent.seconds:.3f}")
    if problem:
        raise SaveError(problem) if not json else SystemExit(SaveError.exit_code)
    if sent is not None and not sent.mirrored:
        raise not_mirrored(root, sent.step, sent.why) if not json else SystemExit(MirrorError.exit_code)


def _print_asked(root: Path, asked: AskedSave, json: bool, *, stop: bool) -> None:
    if json:
        as_json({"request": asked.id})
        return
    after = "saves and ends" if stop else "saves and goes on"
    tell(f"asked: the run {after}, with its last boundary (request {asked.id})")
    tell(f"  to wait for the answer, add --wait; to look, holdfast status {root}")
