"""Where a Trainer's step ends: the boundaries that are marked there, and what is done of a step after a resume.

A step ends in two or three stages: the update; logging and evaluation; and, after an epoch's last step, what belongs to
the end of the epoch. Each is a boundary. A scheduled save is taken at the last: nothing of the step is left to do, so
plain transformers too resumes exactly. One on demand is taken of the last stage that was reached; a resume does the
rest of that step before the next. Read against transformers 5.23.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from holdfast.capture import boundary
from holdfast.engine.engine import Engine
from holdfast.errors import CheckpointError
from holdfast.integrations.trainer import counters as trainer_counters
from holdfast.integrations.trainer import own_writer as trainer_own_writer
from holdfast.integrations.trainer.data import PrefetchTracker
from holdfast.integrations.trainer.hub import Pushes
from holdfast.integrations.trainer.own_writer import OwnWriterSubject
from holdfast.integrations.trainer.record import Pending
from holdfast.integrations.trainer.subject import TrainerSubject
from holdfast.run.request import Answer
from holdfast.state import environment
from holdfast.state.rng import state as random_state
from holdfast.store import names

_UPDATE = "update"
_LOGGED = "logged"
_EPOCH_END = "epoch_end"

_REPLACED = ("_maybe_log_save_evaluate", "_save_checkpoint", "_finalize_training", "_load_rng_state")


class StepHooks:
    """Stands in the places of a trainer where a step ends, as long as the context is open.

    Args:
        trainer: The trainer, before `train`.
        engine: An open engine.
    """

    def __init__(self, trainer: Trainer, engine: Engine) -> None:
        self._trainer = trainer
        self._engine = engine
        self._log_and_evaluate = trainer._maybe_log_save_evaluate
        self._finalize = trainer._finalize_training
        self._restore_random_state = trainer._load_rng_state
        self._callback = _Callback(self)
        self._pushes = Pushes(trainer, engine.log)
        self._subject: TrainerSubject | OwnWriterSubject | None = None
        self._why_own_writer = ""
        self._fetching: PrefetchTracker | None = None
        self._has_gone_on = False
        self._wanted = False
        self._last_step = -1
        self._begun = time.monotonic()
        self._elapsed_before = 0.0
        self._unfinished: Mapping[str, Any] = {}

    def __enter__(self) -> "StepHooks":
        replacements = (self._end_of_step, self._remember, self._end_of_training, self._go_on)
        for name, replacement in zip(_REPLACED, replacements, strict=True):
            setattr(self._trainer, name, replacement)
        self._trainer.add_callback(self._callback)
        # An error of a Trainer's own callback ends the training, as it does in plain transformers.
        self._engine.on_published(self._tell_of_save, raises=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in _REPLACED:
            delattr(self._trainer, name)
        self._trainer.remove_callback(self._callback)
        self._pushes.close()
        if self._fetching is not None:
            self._fetching.close()

    def begin(self) -> None:
        """Right before the first step: what a Trainer forgets on resume comes back."""
        trainer, chosen = self._trainer, self._engine.origin.chosen
        self._begun = time.monotonic()
        self._has_gone_on = False
        self._fetching = fetching = PrefetchTracker(trainer.callback_handler.train_dataloader)
        fetched: Mapping[str, Any] | None = None
        if chosen is not None:
            # The intervals in a resumed state are those of the old configuration; the user may have changed them.
            trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
        if chosen is not None and chosen.manifest is not None:
            own = boundary.of_rank(chosen.manifest.boundary, self._engine.rank)
            small = own or chosen.manifest.boundary
            with _read_from(chosen.path):
                self._elapsed_before = trainer_counters.restore(trainer, small)
                self._unfinished = {**small.get("pending", {})}
            then, now = chosen.manifest.world_size, self._engine.world_size
            if then == now:
                fetched = small.get("fetched")
            else:
                self._engine.announce(
                    f"{then} processes saved it and {now} go on: random numbers and the order of the data are others"
                    " from here on"
                )
            changed = environment.differences(chosen.manifest.versions, environment.record())
            if changed:
                self._engine.announce(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}")
        if chosen is not None:
            self._resume_data(fetching, fetched, str(chosen.path))
        protected = [chosen.path] if chosen else []
        rank, world_size = self._engine.rank, self._engine.world_size
        self._why_own_writer = why = trainer_own_writer.why(trainer)
        if why:
            run = self._engine.gate.run_on_training_thread
            self._subject = OwnWriterSubject(trainer, fetching, protected, rank, world_size, why, run)
        else:
            self._subject = TrainerSubject(trainer, fetching, protected, rank, world_size)
        self._subject.elapsed = lambda: self._elapsed_before + time.monotonic() - self._begun
        self._engine.begin(self._subject, trainer.state.global_step, trainer.state.max_steps)

    def begin_step(self) -> None:
        """Right before the first forward pass of a step. From here on, a state that is written whole is not the last.

        DeepSpeed updates within the backward pass, out of sight of any hook, and FSDP has its parameters whole in
        between: what only the trainer's own writer can read is that of the last boundary until here, and no further.
        """
        if self._why_own_writer:
            self._engine.gate.enter_update()

    def log(self, logs: dict[str, Any]) -> None:
        """Passes the loss on to whoever looks at the status."""
        if "loss" in logs:
            self._engine.run.status.update(loss=float(logs["loss"]))

    def _resume_data(self, fetching: PrefetchTracker, fetched: Mapping[str, Any] | None, checkpoint: str) -> None:
        def stand(others: Mapping[str, Any]) -> None:
            self._restore_random_state(checkpoint)
            random_state.restore({**random_state.record().encode(), **others})

        epoch = self._trainer.state.epoch or 0.0
        why_not = fetching.why_not or ("" if fetched else "the checkpoint does not say where that stood")
        if fetched and not why_not:
            with _read_from(checkpoint):
                fetching.draw_again(fetched, stand, lambda: self._go_on(checkpoint))
        elif epoch != int(epoch) and not self._trainer.args.ignore_data_skip:
            self._engine.announce(
                f"data: the order goes on, what samples and collator draw at random does not: {why_not}"
            )

    def _remember(self, model: Any, trial: Any) -> None:
        """In the place of the trainer's save, which is taken at the step's last stage instead."""
        self._wanted = True

    def _end_of_step(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: Any,
        ignore_keys_for_eval: Any,
        start_time: Any,
        learning_rate: float | None = None,
    ) -> None:
        trainer, engine, control = self._trainer, self._engine, self._trainer.control
        if engine.stop_requested:
            # Broken off: all is saved that will be, and to log or evaluate it would only cost the time that is left.
            control.should_training_stop = True
            return
        step = trainer.state.global_step
        again, self._last_step = step == self._last_step, step
        self._wanted |= control.should_save
        control.should_save = False
        epoch_end = not again and self._another_stage_follows()
        todo = Pending(
            control.should_log, control.should_evaluate, self._wanted, epoch_end, grad_norm, learning_rate, float(epoch)
        )
        if not again and (todo.log or todo.evaluate):
            self._mark(_UPDATE, todo)
        with self._silent_on_save():
            self._log_and_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
            )
        if epoch_end:
            self._mark(_LOGGED, Pending(save=self._wanted, epoch_end=True, epoch=float(epoch)))
        else:
            self._mark(_EPOCH_END if again else _LOGGED, Pending(), last_of_step=True)
        if engine.stop_requested:
            trainer.control.should_training_stop = True

    def _mark(self, stage: str, pending: Pending, *, last_of_step: bool = False) -> None:
        trainer, subject = self._trainer, self._subject
        assert subject is not None
        self._look_at_saves()
        subject.pending = pending
        scheduled = ""
        if last_of_step and self._wanted:
            scheduled = f"save_strategy {trainer.args.save_strategy.value}"
            self._wanted = False
        step = trainer.state.global_step
        self._engine.reach(
            step, stage=stage, last=last_of_step and self._is_last(), scheduled=scheduled, look=last_of_step
        )

    def _go_on(self, checkpoint: str | None) -> None:
        """In the place of restoring the random state on resume: then, and not before, the rest of the step is done.

        In the middle of an epoch that is as soon as the batch is there that was fetched ahead. The trainer, which
        restores the random state when it has fetched all batches of a step, finds it done.
        """
        if self._has_gone_on:
            return
        self._has_gone_on = True
        assert self._fetching is not None
        self._fetching.cancel()
        self._restore_random_state(checkpoint)
        trainer, todo = self._trainer, self._unfinished
        self._unfinished = {}
        if not todo:
            return
        control = trainer.control
        control.should_log, control.should_evaluate, control.should_save = todo["log"], todo["evaluate"], todo["save"]
        numbers = {name: _number(todo[name]) for name in ("grad_norm", "learning_rate")}
        call = (trainer._tr_loss, numbers["grad_norm"], trainer.model_wrapped, None, todo["epoch"], None, time.time())
        if todo["log"] or todo["evaluate"] or (todo["save"] and not todo["epoch_end"]):
            self._end_of_step(*call, learning_rate=numbers["learning_rate"])
        if todo["epoch_end"]:
            self._last_step = trainer.state.global_step
            trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
            self._end_of_step(*call, learning_rate=numbers["learning_rate"])

    def _end_of_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        trainer, engine = self._trainer, self._engine
        step = trainer.state.global_step
        if not engine.stop_requested and self._last_step >= 0:
            self._mark(_EPOCH_END, Pending(), last_of_step=True)
        engine.settle()
        self._look_at_saves()
        if step >= trainer.state.max_steps or not engine.stop_requested:
            engine.finish()
        if engine.stop_requested:
            # Not finished: no summary, no best model to load, nothing that reads like a completed training.
            trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            trainer.is_in_train = False
            return TrainOutput(step, float("nan"), {})
        # The sums go over all resumes, and so must the time.
        output: TrainOutput = self._finalize(trial, num_train_samples, start_time - self._elapsed_before)
        self._pushes.look()
        return output

    def _look_at_saves(self) -> None:
        """Has whoever must see a finished checkpoint see it here, in the training thread, after its commit."""
        self._pushes.look()
        self._engine.run_hooks()

    def _tell_of_save(self, answer: Answer) -> None:
        trainer = self._trainer
        if trainer.state.best_global_step == answer.step:
            trainer.state.best_model_checkpoint = str(Path(trainer.args.output_dir, names.checkpoint(answer.step)))
        # Callbacks find the directory by the step, and training may be further by now.
        then = copy.copy(trainer.state)
        then.global_step = answer.step
        if trainer.args.push_to_hub:
            self._pushes.begin(Path(answer.path), then)
        trainer.control = trainer.callback_handler.on_save(trainer.args, then, trainer.control)

    def _another_stage_follows(self) -> bool:
        control, epoch = self._trainer.control, self._trainer.state.epoch
        return bool(control.should_training_stop or control.should_epoch_stop or epoch == int(epoch))

    def _is_last(self) -> bool:
        state = self._trainer.state
        return bool(self._trainer.control.should_training_stop or state.global_step >= state.max_steps)

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
    def __init__(self, hooks: StepHooks) -> None:
        self._hooks = hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hooks.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hooks.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._hooks.log(logs or {})


def _number(text: str | None) -> float | None:
    return None if text is None else float.fromhex(text)


@contextmanager
def _read_from(checkpoint: Path | str) -> Iterator[None]:
    """What a manifest says of a boundary was checked to be JSON, and no further."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint}: its manifest does not say of the boundary what a Trainer goes on from ({error!r})",
            hint="it was changed since it was written, or was written by another version; resume from another one",
        ) from error
