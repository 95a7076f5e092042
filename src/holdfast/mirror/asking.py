"""A run and its mirror, seen from another process: `status`, and a save that is to be in the mirror."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.arguments import checked_directory, require_seconds
from holdfast.errors import ConfigError, MirrorError
from holdfast.mirror.queue import Answer, Queue
from holdfast.run import asking
from holdfast.run.asking import AskedSave
from holdfast.run.directory import RunDirectory
from holdfast.run.request import Answer as SaveAnswer
from holdfast.run.request import checked_label
from holdfast.store import catalog


def save(
    run: str | Path,
    label: str = "",
    *,
    wait: bool = False,
    mirrored: bool = False,
    stop: bool = False,
    timeout: float | None = None,
) -> AskedSave:
    """Asks a training in another process for a checkpoint, as `holdfast save` does.

    Args:
        run: The `output_dir` of the training.
        label: A text by which the checkpoint is to be known; at most 4 KiB.
        wait: Returns only when it is durable.
        mirrored: With `wait`: returns only when it is in the run's mirror, too.
        stop: Has training end after it.
        timeout: With `wait`: the seconds to wait at most.

    Returns:
        The save that was asked for: its `answer`, which is None until it is there, and `wait()`.

    Raises:
        ConfigError: An argument is of another kind, the label is too long, `timeout` or `mirrored` is given without
            `wait`, or the run has no mirror.
        RunNotFoundError: There is no run in that directory.
        RunNotAliveError: No process trains it, or its process ended before it answered.
        WaitTimeoutError: There was no answer in time. The request stands.
        SaveError: With `wait`: the save failed.
        MirrorError: With `mirrored`: it was saved, and is on this disk only; the message says why.
    """
    root, text = checked_directory("run", run), checked_label(label)
    require_seconds("timeout", timeout)
    if timeout is not None and not wait:
        raise ConfigError(["timeout: has no meaning without wait=True"])
    if mirrored and not wait:
        raise ConfigError(["mirrored: has no meaning without wait=True"])
    if mirrored:
        require_mirror(root, "mirrored")
    deadline = None if timeout is None else time.monotonic() + timeout
    asked = asking.ask(root, text, stop=stop, why="holdfast.save")
    if wait:
        answer = asked.wait(timeout)
        if mirrored and not (sent := wait_for_mirror(root, answer, deadline)).mirrored:
            raise not_mirrored(root, sent.step, sent.why)
    return asked


def status(run: str | Path) -> dict[str, Any]:
    """Returns how a training is, as `holdfast status --json` prints it.

    Args:
        run: The `output_dir` of the training.

    Returns:
        `path`, `alive`, and what the run says of itself: `phase`, `step`, `rate`, `loss`, `last_checkpoint`,
        `pending`, ...; docs/cli.md lists it. The fields of one that never said anything are missing.

    Raises:
        ConfigError: `run` is no path.
        RunNotFoundError: There is no run in that directory.
    """
    directory = RunDirectory.open(checked_directory("run", run))
    alive = asking.living(directory) is not None
    return {"path": str(run), "alive": alive, **said_by(directory, alive=alive)}


def said_by(directory: RunDirectory, *, alive: bool) -> dict[str, Any]:
    """Returns what a run last wrote of itself; of one that nobody trains, with what has become of its mirror since.

    Args:
        directory: The run directory.
        alive: True where a process trains it.
    """
    known = asking.said_by(directory)
    mirror, queue = known.get("mirror"), Queue(directory)
    if alive or not isinstance(mirror, dict) or "waiting" not in mirror:
        return known
    with suppress(TypeError, LookupError):  # another version wrote it, or somebody's script
        since: dict[str, Any] = {
            "waiting": [queued.in_short() for queued in queue.waiting()],
            "uploading": None,
            "next_try_at": None,
        }
        if not since["waiting"]:
            since |= {"failing_since": None, "why": ""}
        sent = [answer for answer in queue.answers() if answer.mirrored and answer.at >= known["written_at"]]
        before = mirror.get("mirrored")
        for answer in sent:
            if not before or (before["term"], before["sequence"]) < (answer.term, answer.sequence):
                before = since["mirrored"] = answer.place()
        known["mirror"] = {**mirror, **since}
        known["mirror"].pop("more_waiting", None)
    return known


def require_mirror(root: Path, name: str) -> None:
    """Refuses to wait for the mirror of a run that has none. Of one that nobody trains that is said elsewhere.

    Args:
        root: The run directory.
        name: The name of the argument or option that asks for it.

    Raises:
        ConfigError: It has none.
        RunNotFoundError: There is no run in `root`.
    """
    directory = RunDirectory.open(root)
    if asking.living(directory) is not None and not asking.said_by(directory).get("mirror"):
        raise ConfigError(
            [f"{name}: the run in {root} has no mirror"],
            hint=f"start it with mirror: s3://BUCKET/PREFIX, or leave {name} out",
        )


def wait_for_mirror(root: Path, answer: SaveAnswer, deadline: float | None) -> Answer:
    """Waits until the mirror's process has answered a checkpoint.

    Args:
        root: The run directory.
        answer: The answer to its save.
        deadline: The end of the wait, by the monotonic clock; None waits as long as the run is alive.

    Raises:
        WaitTimeoutError: The time is up.
        MirrorError: Nobody will answer.
    """
    directory = RunDirectory.open(root)
    queue = Queue(directory)
    manifests = [entry.manifest for entry in catalog.entries(root) if entry.manifest is not None]
    attempt = next((manifest.attempt for manifest in manifests if manifest.sha256 == answer.digest), "")

    def require_alive() -> None:
        if asking.living(directory) is None and queue.answer_to(attempt) is None:
            raise not_mirrored(root, answer.step, "the training ended before")

    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    sent = queue.wait(attempt, left, require_alive)
    if sent is None:
        raise not_mirrored(root, answer.step, "it does not wait for the mirror")
    return sent


def not_mirrored(root: Path, step: int, why: str) -> MirrorError:
    """Returns the error of a checkpoint that was saved, and is not in the mirror."""
    return MirrorError(
        f"step {step} is saved, and is on this disk only: {why}", hint=f"to send it: holdfast push {root}"
    )
