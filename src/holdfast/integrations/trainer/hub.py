"""A Trainer's pushes to the hub: finished checkpoints and models, and nothing of what Holdfast keeps beside them.

`_push_from_checkpoint` and `push_to_hub` upload all of `output_dir` but for `checkpoint-*` (transformers 5.23).
"""

import copy
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from holdfast.integrations.trainer.contract import lacks
from holdfast.integrations.trainer.secrets import pickled_blank
from holdfast.store import names

_OURS = (f"{names.CONTROL}*", f"{names.JOURNAL}*", "superseded-*", ".tmp-*", ".trash-*", ".*.new")


class Pushes:
    """The pushes of one training. Whatever becomes of them, training goes on.

    Args:
        trainer: The trainer.
        log: Takes a line for the user.
    """

    def __init__(self, trainer: Trainer, log: logging.Logger) -> None:
        self._trainer = trainer
        self._log = log
        self._begun: set[Future[Any]] = set()
        self._under_way: dict[Future[Any], str] = {}
        self._closed = False

    def begin(self, checkpoint: Path, state: TrainerState) -> None:
        """Begins to push a checkpoint that is committed.

        Args:
            checkpoint: The checkpoint.
            state: The trainer's state as of the checkpoint, from which the hub's commit has its name.
        """
        if lacks(self._trainer, "_push_from_checkpoint", "push_in_progress"):
            return
        if self._closed:
            self._report(checkpoint.name, RuntimeError("training has ended"))
            return
        # Training may be further by now, and is not to be shown another step.
        stand_in = copy.copy(self._trainer)
        stand_in.state = state
        stand_in.args = pickled_blank(self._trainer.args)
        try:
            with uploads_without_ours():
                stand_in._push_from_checkpoint(str(checkpoint))
        except Exception as error:  # noqa: BLE001 - the hub's trouble is not the training's
            self._report(checkpoint.name, error)
        self._trainer.push_in_progress = in_progress = stand_in.push_in_progress
        begun = set() if in_progress is None else set(in_progress.jobs) - self._begun
        self._begun |= begun
        self._under_way |= dict.fromkeys(begun, checkpoint.name)

    def close(self) -> None:
        """Begins no more pushes: nobody would see what becomes of them."""
        self._closed = True

    def report_failures(self) -> None:
        """Says which have failed. transformers itself does not."""
        for job in [job for job in self._under_way if job.done()]:
            name = self._under_way.pop(job)
            if not job.cancelled() and (error := job.exception()) is not None:
                self._report(name, error)

    def _report(self, name: str, error: BaseException) -> None:
        why = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        self._log.warning(f"{name} was NOT pushed to the hub, and is here all the same: {why}")


@contextmanager
def uploads_without_ours() -> Iterator[None]:
    """Leaves out of a Trainer's uploads what is not the model's, as long as the context is open."""
    from transformers import trainer as module

    if not hasattr(module, "hf_api"):
        yield
        return
    original = module.hf_api
    module.hf_api = lambda: _Hub(original())
    try:
        yield
    finally:
        module.hf_api = original


class _Hub:
    """The hub's interface, but for the files that are left out of an upload.

    Args:
        api: The interface.
    """

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, *, ignore_patterns: list[str] | None = None, **kwargs: Any) -> Any:
        return self._api.upload_folder(ignore_patterns=[*(ignore_patterns or []), *_OURS], **kwargs)
