"""The part of a resume that a Trainer's own loading leaves out: its counters, the rest of the step, the batch ahead.

Read against transformers 5.23.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import Trainer

from holdfast.capture import boundary
from holdfast.engine.engine import Engine
from holdfast.integrations.trainer import best, callbacks, counters
from holdfast.integrations.trainer.counters import reading_boundary
from holdfast.integrations.trainer.data import PrefetchTracker
from holdfast.integrations.trainer.epochs import EpochAccounting
from holdfast.resume.choose import ResumePoint
from holdfast.state import environment
from holdfast.state.rng import state as rng_state
from holdfast.store.manifest import Manifest


class Resumed(NamedTuple):
    """The part of a checkpoint that comes back later than its counters."""

    elapsed: float = 0.0
    """Seconds of training that were before, over all resumes."""
    pending: Mapping[str, Any] = {}
    """The part of the step that was still to be done, as `Pending.encode` gave it; empty where nothing was."""
    fetched: Mapping[str, Any] | None = None
    """The progress of the loader, as `PrefetchState.encode` gave it; None where it is not known, or of no use here."""
    data_goes_on: bool = True
    """False where the loader goes through other data than it did, which the user knows."""

    @property
    def has_pending(self) -> bool:
        """True where something of the step was still to be done."""
        return "callbacks" in self.pending or any(
            self.pending.get(name) for name in ("log", "evaluate", "save", "epoch_end")
        )


def restore_counters(trainer: Trainer, engine: Engine, chosen: ResumePoint, epochs: EpochAccounting) -> Resumed:
    """Puts back what a Trainer forgets, right before the first step, and says what goes on otherwise than it was.

    Args:
        trainer: The trainer, which has loaded the checkpoint.
        engine: The open engine.
        chosen: The checkpoint.
        epochs: Knows if the loader goes on as it did.

    Raises:
        CheckpointError: The manifest does not say what a Trainer goes on from.
    """
    best.find(trainer, engine, chosen)
    for line in callbacks.restore(trainer):
        engine.log.announce(line, logging.WARNING)
    # The intervals in a resumed state are those of the old configuration; the user may have changed them.
    trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
    state, manifest = trainer.state, chosen.manifest
    engine.log.announce(f"resumed from {chosen.path}: step {state.global_step}, epoch {state.epoch or 0.0:.2f}")
    if manifest is None:
        return Resumed()
    entry = boundary.of_rank(manifest.boundary, engine.rank) or manifest.boundary
    with reading_boundary(chosen.path):
        elapsed = counters.restore(trainer, entry)
        pending = {**entry.get("pending", {})}
        uncarried = callbacks.still_here(trainer, entry.get("uncarried", []))
    _announce_changes(engine, manifest, epochs)
    if uncarried:
        engine.log.announce(f"begins anew, for no checkpoint has it: {', '.join(uncarried)}", logging.WARNING)
    goes_on = epochs.goes_on and manifest.world_size == engine.world_size
    return Resumed(elapsed, pending, entry.get("fetched") if goes_on else None, goes_on)


def redraw_batch_ahead(
    trainer: Trainer,
    engine: Engine,
    prefetch: PrefetchTracker,
    resumed: Resumed,
    inner_ahead: Mapping[str, Any],
    chosen: ResumePoint,
    restore_random_state: Callable[[str], None],
    go_on: Callable[[], None],
) -> None:
    """Has the batch that was fetched ahead drawn as it was before, or says why it is not.

    Args:
        trainer: The trainer.
        engine: The open engine.
        prefetch: Watches the trainer's loader.
        resumed: What the checkpoint says of the loader.
        inner_ahead: What is inside the loader, before it fetched that batch.
        chosen: The checkpoint.
        restore_random_state: The trainer's own, which reads the checkpoint.
        go_on: Called when the batch is there.

    Raises:
        CheckpointError: The manifest does not say what a Trainer goes on from.
    """

    def set_random_state(others: Mapping[str, Any]) -> None:
        restore_random_state(str(chosen.folder.through))
        rng_state.restore({**rng_state.record().encode(), **others})

    if not resumed.data_goes_on:
        return
    fetched = resumed.fetched
    epoch = trainer.state.epoch or 0.0
    why_not = prefetch.why_not or ("" if fetched else "the checkpoint does not say where that stood")
    if fetched and not why_not:
        with reading_boundary(chosen.path):
            prefetch.redraw(fetched, set_random_state, go_on, inner_ahead)
    elif epoch != int(epoch) and not trainer.args.ignore_data_skip:
        engine.log.announce(
            f"data: the order goes on, what samples and collator draw at random does not: {why_not}", logging.WARNING
        )


def _announce_changes(engine: Engine, manifest: Manifest, epochs: EpochAccounting) -> None:
    before, now = manifest.world_size, engine.world_size
    if before != now:
        others = (
            "random numbers are others" if epochs.is_resumed else "random numbers and the order of the data are others"
        )
        engine.log.announce(
            f"{before} processes saved it and {now} go on: {others} are others from here on",
            logging.WARNING,
        )
    if changed := environment.differences(manifest.versions, environment.record()):
        engine.log.announce(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}", logging.WARNING)
