"""Asks for a save, as `save` and `stop` do: through the run directory, and with a wait for the answer."""

import os
from pathlib import Path

from holdfast.cli.output import as_json, tell
from holdfast.errors import ConfigError, RunNotAliveError, SaveError
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.lease import Holder
from holdfast.run.request import MOST_LABEL_BYTES, Request, clean_label
from holdfast.text import one_line


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
    directory = RunDirectory.open(root)
    holder = _require_alive(directory)
    inbox = Inbox(directory)
    request = Request("command", stop=stop, label=clean_label(text), why=why)
    inbox.submit(request)
    if not wait:
        _print_asked(root, request, json)
        return
    answer = inbox.wait(request.id, timeout, lambda: _require_alive_or_answered(directory, holder, inbox, request))
    if json:
        as_json({"request": request.id, **{name: value for name, value in vars(answer).items() if name != "note"}})
    elif answer.saved:
        tell(answer.line(f"request:{request.id}"))
    problem = "" if answer.saved else f"the save failed at step {answer.step}: {one_line(answer.error)}"
    if answer.saved and not answer.durable:
        problem = "the file system cannot promise that the checkpoint's name survives a power cut"
    if problem:
        raise SaveError(problem) if not json else SystemExit(SaveError.exit_code)


def _print_asked(root: Path, request: Request, json: bool) -> None:
    if json:
        as_json({"request": request.id})
        return
    after = "saves and ends" if request.stop else "saves and goes on"
    tell(f"asked: the run {after}, with its last boundary (request {request.id})")
    tell(f"  to wait for the answer, add --wait; to look, holdfast status {root}")


def _require_alive(directory: RunDirectory) -> Holder:
    holder = lease.read(directory)
    if holder is None or not lease.is_alive(directory, holder):
        raise RunNotAliveError(
            f"no process is training the run in {directory.root}",
            hint=f"see what it left with: holdfast list {directory.root}",
        )
    return holder


def _require_alive_or_answered(directory: RunDirectory, holder: Holder, inbox: Inbox, request: Request) -> None:
    lease.follow(directory, holder.token)
    try:
        _require_alive(directory)
    except RunNotAliveError:
        if inbox.answer_to(request.id) is None:
            raise RunNotAliveError(
                f"the run in {directory.root} ended before it answered; the request is served when it is resumed",
                hint=f"see what it left with: holdfast list {directory.root}",
            ) from None
