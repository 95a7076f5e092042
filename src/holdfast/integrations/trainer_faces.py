"""Where a Trainer's step ends, and where its saves are taken.

A step ends in two or three faces: the update; logging and evaluation; and, after an epoch's last step, what belongs to
the end of the epoch. Saves are taken at the last of them: nothing of the step is left to do, so plain transformers too
resumes exactly. Read against transformers 5.23.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from holdfast.capture import environment
from holdfast.capture.boundary import Boundary
from holdfast.checkpointer import Checkpointer
from holdfast.integrations import trainer_counters, trainer_writer
from holdfast.layouts import transformers as layout
from holdfast.saving import Snapshot

_LOGGED = "logged"
_EPOCH_END = "epoch_end"


class Faces:
    """Stands in the places of a trainer where a step ends, as long as the context is open.

    Replaced on the trainer, and nothing else: `_maybe_log_save_evaluate`, `_save_checkpoint`, `_finalize_training`.

    Args:
        trainer: The trainer, before `train`.
        checkpointer: An open checkpointer.
    """

    def __init__(self, trainer: Trainer, checkpointer: Checkpointer) -> None:
        self._trainer = trainer
        self._checkpointer = checkpointer
        self._log_and_evaluate = trainer._maybe_log_save_evaluate
        self._write_checkpoint = trainer._save_checkpoint
        self._finalize = trainer._finalize_training
        self._callback = _Callback(self)
        self._wanted = False
        self._last_step = -1
        self._begun = time.monotonic()
        self._elapsed_before = 0.0

    def __enter__(self) -> "Faces":
        self._trainer._maybe_log_save_evaluate = self._end_of_step
        self._trainer._save_checkpoint = self._remember
        self._trainer._finalize_training = self._end_of_training
        self._trainer.add_callback(self._callback)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in ("_maybe_log_save_evaluate", "_save_checkpoint", "_finalize_training"):
            delattr(self._trainer, name)
        self._trainer.remove_callback(self._callback)

    def begin(self) -> None:
        """Right before the first step: what a Trainer forgets on resume comes back."""
        trainer, chosen = self._trainer, self._checkpointer.chosen
        self._begun = time.monotonic()
        self._checkpointer.begin(trainer.state.global_step, trainer.state.max_steps)
        if chosen is None:
            return
        # The intervals in a resumed state are those of the old configuration; the user may have changed them.
        trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
        if chosen.manifest is not None:
            self._elapsed_before = trainer_counters.restore(trainer, chosen.manifest.boundary)
            changed = environment.differences(chosen.manifest.versions, environment.record())
            if changed:
                self._checkpointer.say(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}")

    def log(self, logs: dict[str, Any]) -> None:
        """Passes the loss on to whoever looks at the status."""
        if "loss" in logs:
            self._checkpointer.run.status.update(loss=float(logs["loss"]))

    def _remember(self, model: Any, trial: Any) -> None:
        """In the place of the trainer's save, which is taken at the step's last face instead."""
        self._wanted = True

    def _end_of_step(self, *args: Any, **kwargs: Any) -> None:
        trainer, checkpointer = self._trainer, self._checkpointer
        if checkpointer.stop_requested:
            return  # the end of an epoch that was broken off: all is saved, and logging it would be false
        self._wanted |= trainer.control.should_save
        trainer.control.should_save = False
        with self._silent_on_save():
            self._log_and_evaluate(*args, **kwargs)
        step = trainer.state.global_step
        again, self._last_step = step == self._last_step, step
        if not again and self._another_face_follows():
            return
        if checkpointer.reach(step, last=self._is_last()) or self._wanted:
            self._save(_EPOCH_END if again else _LOGGED)
        if checkpointer.stop_requested:
            trainer.control.should_training_stop = True

    def _end_of_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        trainer, checkpointer = self._trainer, self._checkpointer
        step = trainer.state.global_step
        late = not checkpointer.stop_requested and checkpointer.reach(step, last=True)
        if late and not checkpointer.answer_with_last(step):
            self._save(_EPOCH_END)
        if step >= trainer.state.max_steps:
            checkpointer.finish()
        if checkpointer.stop_requested:
            # Not finished: no summary, no best model to load, nothing that reads like a completed training.
            trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            trainer.is_in_train = False
            return TrainOutput(step, float("nan"), {})
        # The sums go over all resumes, and so must the time.
        output: TrainOutput = self._finalize(trial, num_train_samples, start_time - self._elapsed_before)
        return output

    def _another_face_follows(self) -> bool:
        control, epoch = self._trainer.control, self._trainer.state.epoch
        return bool(control.should_training_stop or control.should_epoch_stop or epoch == int(epoch))

    def _is_last(self) -> bool:
        state = self._trainer.state
        return bool(self._trainer.control.should_training_stop or state.global_step >= state.max_steps)

    def _save(self, face: str) -> None:
        trainer = self._trainer
        scheduled = f"save_strategy {trainer.args.save_strategy.value}" if self._wanted else ""
        self._wanted = False
        best, chosen = trainer.state.best_model_checkpoint, self._checkpointer.chosen
        elapsed = self._elapsed_before + time.monotonic() - self._begun
        snapshot = Snapshot(
            boundary=Boundary(trainer.state.global_step, face, trainer_counters.record(trainer, elapsed)),
            write=lambda directory: trainer_writer.write(trainer, self._write_checkpoint, directory),
            layout=layout.NAME,
            estimate=trainer_writer.estimate(trainer),
            versions=environment.record(),
            spared=[*([Path(best)] if best else []), *([chosen.path] if chosen else [])],
        )
        if self._checkpointer.save(snapshot, scheduled=scheduled).saved:
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        else:
            trainer.state.best_model_checkpoint = best

    @contextmanager
    def _silent_on_save(self) -> Iterator[None]:
        """Callbacks learn of a save after its commit, not when the trainer only wishes for one."""
        handler = self._trainer.callback_handler
        handler.on_save = lambda args, state, control: control
        try:
            yield
        finally:
            del handler.on_save


class _Callback(TrainerCallback):  # type: ignore[misc]
    def __init__(self, faces: Faces) -> None:
        self._faces = faces

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._faces.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._faces.log(logs or {})
