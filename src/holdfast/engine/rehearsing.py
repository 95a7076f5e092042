"""The rehearsed program's part of `holdfast drill`: it leaves a digest of all its state at every boundary, and ends.

Costs a pass over the whole state at every boundary; without a rehearsal there is none of it.
"""

import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import bytes_of, in_order
from holdfast.capture.replicas import Content, Replicas
from holdfast.capture.subject import LiveSubject, Subject
from holdfast.engine.stop import Stop
from holdfast.layouts.layout import BY_NAME
from holdfast.log import LOGGER
from holdfast.ranks.channel import Channel
from holdfast.run import rehearsal
from holdfast.run.rehearsal import Rehearsal
from holdfast.state import values
from holdfast.store import digest
from holdfast.store.appending import append
from holdfast.store.folder import Folder, files_below

# A training in small steps would be over before it could be asked.
_PACE_SECONDS = 0.1
_STEP_SECONDS = 1.0
_LOOK_SECONDS = 0.01
# Whoever drills has given up by then.
_LONGEST_SECONDS = 600.0
# Not state, or measured: times, what a trainer reports of itself, what a loader has ahead of training.
_NO_STATE = ("training_args.bin",)
_OF_A_LOG = ("step", "epoch", "loss", "eval_loss", "grad_norm", "learning_rate")
_OF_NO_BOUNDARY = ("elapsed_seconds", "trl_metrics", "fetched")


class Rehearsing:
    """Follows a rehearsal from the first boundary to the last.

    Args:
        plan: The rehearsal.
        channel: To the other ranks; None where there are none.
    """

    def __init__(self, plan: Rehearsal, channel: Channel | None) -> None:
        self._plan = plan
        self._channel = channel
        self._rank = 0 if channel is None else channel.rank
        self._size = 1 if channel is None else channel.size
        self._loss: str | None = None
        if not self._rank:
            LOGGER.addHandler(_Warnings(plan.lines))

    def begin(self, step: int) -> None:
        """Notes that training begins, and in which process."""
        self._write({"pid": os.getpid(), "rank": self._rank, "world_size": self._size, "begins_at": step})

    def take_loss(self, loss: Any) -> None:
        """Takes the loss that the program gives for the step whose boundary comes next."""
        number = loss.detach() if isinstance(loss, torch.Tensor) else loss
        self._loss = None if number is None else float(number).hex()

    def reach(self, subject: Subject, boundary: Boundary) -> None:
        """Leaves a digest of what a checkpoint of this boundary would hold. Called by training, at the boundary."""
        line = {"step": boundary.step, "stage": boundary.stage, "loss": self._loss}
        self._write({**line, "parts": _digests(subject, boundary, is_of_ranks=self._size > 1)})

    def go_on(self, step: int, stop: Stop, *, is_last_stage: bool) -> None:
        """Ends the program at the last step; before a stop it waits for whoever asks and stops it.

        Args:
            step: The step of the boundary.
            stop: The stop that comes.
            is_last_stage: True where nothing more of the step is to come.
        """
        plan = self._plan
        if is_last_stage and plan.steps and step >= plan.steps:
            self.leave(step)
        if not plan.interrupted_at or step < plan.interrupted_at:
            return
        if step == plan.interrupted_at:
            _wait_for(plan.asked.exists)
        elif stop.noticed.is_set() or step >= plan.until - 2:
            _wait_for(stop.noticed.is_set)
            if self._channel is not None:
                # Small steps would come to their end before all ranks leave; each must come to the boundary before.
                _wait_for(lambda: stop.requested, _STEP_SECONDS)
        else:
            time.sleep(_PACE_SECONDS)

    def leave(self, step: int) -> None:
        """Ends the process, so that no code after the training runs: when all ranks have come as far."""
        self._write({"left_at": step})
        if (channel := self._channel) is not None:
            channel.put(f"drill/{channel.rank}", step)
            for rank in channel.others if not channel.rank else [0]:
                channel.get(f"drill/{rank}", _LONGEST_SECONDS)
            channel.put(f"drill/{channel.rank}/heard", step)
            if not channel.rank:  # it may be the one that serves the store
                for rank in channel.others:
                    channel.get(f"drill/{rank}/heard", channel.seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _write(self, content: Mapping[str, Any]) -> None:
        append(self._plan.trace(self._rank), json.dumps(content).encode() + b"\n")


class _Warnings(logging.Handler):
    """Leaves the warnings of a training in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Leaves one."""
        append(self._path, self.format(record).encode(errors="replace") + b"\n")


def rehearsing(channel: Channel | None) -> Rehearsing | None:
    """Returns this process's part of a rehearsal; None where it trains in earnest."""
    plan = rehearsal.current()
    return None if plan is None else Rehearsing(plan, channel)


def _digests(subject: Subject, boundary: Boundary, *, is_of_ranks: bool) -> dict[str, str]:
    """Returns a digest of each file that a checkpoint would have, by its path; of random generators one for each.

    Where several ranks save a plain loop, all that this one holds of a part has one digest, by the part's name.
    """
    entry = dict(subject.manifest_entry(boundary.recorded))
    for name in _OF_NO_BOUNDARY:
        entry.pop(name, None)
    digests = {"boundary": _of_json(entry)}
    if (live := subject.as_live()) is None:
        return digests  # written by collectives of its own: the loss and the counters must do
    # Who of several ranks writes what of a part depends on what the last save saw to differ between them.
    parts = _of_parts(live, boundary) if is_of_ranks and BY_NAME[live.layout].every_rank_writes else {}
    digests.update(parts)
    with tempfile.TemporaryDirectory(prefix="holdfast-drill-") as made, Folder.open(Path(made)) as folder:
        for image in subject.file_images(boundary, folder):
            if not any(image.path.startswith((f"{part}.", f"{part}-")) for part in parts):
                digests.update(digests_of_file(image.path, [_bytes_of(piece) for piece in image.pieces]))
        for path in map(Path(made).joinpath, files_below(folder)):
            if path.is_file() and path.name not in _NO_STATE and path.suffix != ".md":
                digests.update(digests_of_file(path.relative_to(made).as_posix(), [path.read_bytes()]))
    return digests


def _of_parts(subject: LiveSubject, boundary: Boundary) -> dict[str, str]:
    contents = dict(subject.contents(boundary))
    plain = {f"{part}.{name}" for part, content in contents.items() for name in content.large}
    if shards := {path: tensor for path, tensor in subject.live().items() if path not in plain}:
        contents["shards"] = Content(None, {}, shards)
    return {part: _of_json(digests) for part, digests in Replicas().tally(contents).items()}


def _bytes_of(piece: bytes | torch.Tensor) -> bytes | memoryview:
    return piece if isinstance(piece, bytes) else bytes_of(in_order(piece)).cpu().numpy().data


def digests_of_file(path: str, content: Sequence[bytes | memoryview]) -> dict[str, str]:
    """Returns the digests of what a file says of the state, by its path; of random generators one for each.

    Args:
        path: The file's path in a checkpoint.
        content: The pieces of what is in it.
    """
    if path == "trainer_state.json":
        state = json.loads(b"".join(content))
        # It is there once its save is complete, sooner or later; the step says which it is.
        state.pop("best_model_checkpoint", None)
        state["log_history"] = [{key: row[key] for key in _OF_A_LOG if key in row} for row in state["log_history"]]
        return {path: _of_json(state)}
    if path.startswith("random") and path.endswith(".json"):
        return {f"{path}: {name}": _of_json(state) for name, state in json.loads(b"".join(content)).items()}
    if path.startswith("data") and path.endswith(".json"):
        return {}  # one position can be said in several ways; the batches that follow it show in what they leave
    if path in ("optimizer.pt", "scheduler.pt"):
        return {path: _of_values(torch.load(io.BytesIO(b"".join(content)), weights_only=True))}
    return {path: digest.of(content)}


def _of_values(state: Any) -> str:
    """Returns a digest of the values of a state: the bytes of its pickle also tell which of them are one object."""
    tensors: dict[str, torch.Tensor] = {}
    tree = values.encode(state, "state", tensors)
    return digest.of([json.dumps(tree, sort_keys=True).encode(), *map(_bytes_of, tensors.values())])


def _of_json(content: Any) -> str:
    return digest.of([json.dumps(content, sort_keys=True, default=repr).encode()])


def _wait_for(happened: Callable[[], bool], seconds: float = _LONGEST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
