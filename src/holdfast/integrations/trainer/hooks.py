"""The hooks at the end of a Trainer's step: they mark its boundaries, and finish the step that a resume goes on from.

A step ends in two or three stages: the update; logging and evaluation; and, after an epoch's last step, what belongs to
the end of the epoch. Each is a boundary. A scheduled save is taken at the last: nothing of the step is left to do, so
plain transformers too resumes exactly. One on demand is taken of the last stage that was reached; a resume does the
rest of that step before the next. Read against transformers 5.23.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from holdfast.engine.engine import Engine
from holdfast.integrations.trainer import best, callbacks, counters, ended
from holdfast.integrations.trainer.data import PrefetchTracker
from holdfast.integrations.trainer.epochs import EpochAccounting
from holdfast.integrations.trainer.hub import Pushes
from holdfast.integrations.trainer.outside import TrainerOutside
from holdfast.integrations.trainer.own_writer import OwnWriterSubject, why_own_writer
from holdfast.integrations.trainer.readable import explaining
from holdfast.integrations.trainer.record import Pending, Watched
from holdfast.integrations.trainer.resume import Resumed, redraw_batch_ahead, restore_counters
from holdfast.integrations.trainer.settings import TrainerSettings
from holdfast.integrations.trainer.stand_in import REPLACED
from holdfast.integrations.trainer.subject import TrainerSubject
from holdfast.run.request import Answer
from holdfast.store import names

_CALLBACKS = "callbacks"
_UPDATE = "update"
_LOGGED = "logged"
_EPOCH_END = "epoch_end"

_Arguments = tuple[Any, Any, Any, Any, Any, Any, Any]
"""The arguments of a trainer's logging and evaluation, by position."""


class StepHooks:
    """Replaces a trainer's methods where a step ends, as long as the context is open.

    Args:
        trainer: The trainer, before `train`.
        engine: An open engine.
        settings: The settings of the trainer, taken before it loads anything.
        epochs: Keeps the trainer's position in its data.
    """

    def __init__(self, trainer: Trainer, engine: Engine, settings: TrainerSettings, epochs: EpochAccounting) -> None:
        self._trainer = trainer
        self._engine = engine
        self._settings = settings
        self._epochs = epochs
        self._log_and_evaluate = trainer._maybe_log_save_evaluate
        self._finalize = trainer._finalize_training
        self._restore_random_state = explaining(trainer._load_rng_state, "its random state")
        self._step_end = trainer.callback_handler.on_step_end
        self._own_grad_norm = getattr(trainer, "_get_grad_norm", None)
        self._grad_norm: torch.Tensor | float | None = None
        self._learning_rate: float | None = None
        self._skipping = ended.Skipping(trainer)
        self._callback = _Callback(self)
        self._pushes = Pushes(trainer, engine.log)
        self._subject: TrainerSubject | OwnWriterSubject | None = None
        self._why_own_writer = ""
        self._prefetch: PrefetchTracker | None = None
        self._resumed = Resumed()
        self._has_gone_on = False
        self._save_wanted = False
        self._named: set[str] = set()
        self._last_step = -1
        self._begun = time.monotonic()

    def __enter__(self) -> "StepHooks":
        for name, replacement in zip(REPLACED, self._replacements(), strict=True):
            setattr(self._trainer, name, replacement)
        self._trainer.callback_handler.on_step_end = self._call_step_end
        self._trainer.add_callback(self._callback)
        # An error of a Trainer's own callback ends the training, as it does in plain transformers.
        self._engine.on_published(self._tell_of_save, raises=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for name in REPLACED:
            delattr(self._trainer, name)
        self._skipping.end()
        del self._trainer.callback_handler.on_step_end
        self._trainer.remove_callback(self._callback)
        self._pushes.close()
        if self._prefetch is not None:
            self._prefetch.close()

    def _replacements(self) -> tuple[Callable[..., Any], ...]:
        """Returns what stands for the trainer's own methods, in the order of `REPLACED`."""
        return (
            self._end_step,
            self._note_save,
            self._end_training,
            self._go_on,
            self._note_grad_norm,
        )

    def begin(self) -> None:
        """Puts back what a Trainer forgets on resume, and begins to serve saves, right before the first step."""
        trainer, engine, chosen = self._trainer, self._engine, self._engine.origin.chosen
        self._begun = time.monotonic()
        self._has_gone_on = False
        if self._prefetch is not None:
            self._prefetch.close()  # training begins anew, with smaller batches
        self._prefetch = prefetch = PrefetchTracker(trainer.callback_handler.train_dataloader, self._epochs.inner)
        outside = TrainerOutside(trainer, engine.rank)
        outside.restore(engine, chosen)
        self._settings.begin()
        if chosen is not None:
            chosen.require_in_place()
            self._resumed = restore_counters(trainer, engine, chosen, self._epochs)
        if chosen is not None and ended.has_ended(trainer):
            self._skipping.begin()
            if not self._resumed.has_pending:
                state = trainer.state
                engine.log.announce(
                    f"{engine.run.root} has ended at step {state.global_step} of {state.max_steps}: nothing is left to"
                    " do; to go on, set num_train_epochs or max_steps to more"
                )
                return
        elif chosen is not None:
            redraw_batch_ahead(
                trainer,
                engine,
                prefetch,
                self._resumed,
                self._epochs.inner_ahead,
                chosen,
                self._restore_random_state,
                lambda: self._go_on(str(chosen.folder.through)),
            )
        self._subject = self._new_subject(prefetch, outside, [chosen.path] if chosen else [])
        self._subject.given = self._settings
        self._subject.elapsed = lambda: self._resumed.elapsed + time.monotonic() - self._begun
        engine.begin(self._subject, trainer.state.global_step, trainer.state.max_steps)

    def begin_step(self) -> None:
        """Ends the time of the last boundary, right before a step's first forward, where the state is written whole.

        DeepSpeed updates within the backward pass, out of sight of any hook, and FSDP has its parameters whole in
        between: what only the trainer's own writer can read is that of the last boundary until here, and no further.
        """
        if self._why_own_writer:
            self._engine.gate.enter_update()

    def end_update(self, optimizer: Any) -> None:
        """Notes the learning rate of an update, before the schedule goes on."""
        self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def log(self, logs: dict[str, Any]) -> None:
        """Shows the loss in the run's status."""
        if "loss" in logs:
            self._engine.losses.show(logs["loss"], each_time=True)

    def _new_subject(
        self, prefetch: PrefetchTracker, outside: TrainerOutside, protected: list[Path]
    ) -> TrainerSubject | OwnWriterSubject:
        trainer, engine = self._trainer, self._engine
        watched = Watched(trainer, prefetch, outside, self._epochs, engine.run.folder)
        self._why_own_writer = why = why_own_writer(trainer)
        if not why:
            return TrainerSubject(watched, protected, engine.rank, engine.world_size)
        run = engine.gate.run_on_training_thread
        return OwnWriterSubject(watched, protected, engine.rank, engine.world_size, why, run)

    def _note_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces the trainer's own, whose result its callbacks do not see and the log after them has."""
        assert self._own_grad_norm is not None
        self._grad_norm = self._own_grad_norm(*args, **kwargs)
        return self._grad_norm

    def _call_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Replaces the event at the end of an update: callbacks may raise, or outlast the grace of a stop."""
        if self._subject is not None and not self._why_own_writer:
            control_flags = control.state()["args"]
            epoch = float(math.ceil(state.epoch) - 1)
            self._subject.pending = Pending(
                grad_norm=self._grad_norm, learning_rate=self._learning_rate, epoch=epoch, callbacks=control_flags
            )
            self._engine.mark(state.global_step, _CALLBACKS)
        return self._step_end(args, state, control, **kwargs)

    def _note_save(self, model: Any, trial: Any) -> None:
        """Replaces the trainer's save, which is taken at the step's last stage instead."""
        self._save_wanted = True

    def _end_step(
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
        """Replaces the trainer's logging, evaluation and saving; called once more for a step that ends an epoch."""
        trainer, engine, control = self._trainer, self._engine, self._trainer.control
        if engine.stop_requested:
            # Broken off: all is saved that will be, and to log or evaluate it would only cost the time that is left.
            control.should_training_stop = True
            return
        step = trainer.state.global_step
        at_epoch_end, self._last_step = step == self._last_step, step
        if at_epoch_end and not control.should_training_stop:
            self._epochs.end_epoch()
        self._save_wanted |= control.should_save
        control.should_save = False
        epoch_ends = not at_epoch_end and self._epoch_end_follows()
        log, evaluate = control.should_log, control.should_evaluate
        if not at_epoch_end and (log or evaluate):
            save = self._save_wanted
            self._mark(_UPDATE, Pending(log, evaluate, save, epoch_ends, grad_norm, learning_rate, float(epoch)))
            if engine.stop_requested and step < trainer.state.max_steps:
                control.should_training_stop = True
                return
        with callbacks.silent_on_save(trainer):
            self._log_and_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
            )
        if epoch_ends:
            self._mark(_LOGGED, Pending(save=self._save_wanted, epoch_end=True, epoch=float(epoch)))
        else:
            self._mark(_EPOCH_END if at_epoch_end else _LOGGED, Pending(), last_of_step=True)
        if engine.stop_requested:
            trainer.control.should_training_stop = True

    def _mark(self, stage: str, pending: Pending, *, last_of_step: bool = False) -> None:
        trainer, subject = self._trainer, self._subject
        assert subject is not None
        self._pushes.report_failures()
        subject.pending = pending
        scheduled = ""
        if last_of_step and self._save_wanted:
            scheduled = f"save_strategy {trainer.args.save_strategy.value}"
            self._save_wanted = False
        step = trainer.state.global_step
        self._engine.losses.take(counters.sum_of_losses(trainer))
        self._engine.reach(
            step, stage=stage, last=last_of_step and self._is_last(), scheduled=scheduled, look=last_of_step
        )
        if news := subject.news(step):
            self._engine.log.announce(news)

    def _go_on(self, checkpoint: str | None) -> None:
        """Replaces restoring the random state on resume: then, and not before, the rest of the step is done.

        In the middle of an epoch that is as soon as the batch is there that was fetched ahead. The trainer, which
        restores the random state when it has fetched all batches of a step, finds it done.
        """
        if self._has_gone_on:
            return
        self._has_gone_on = True
        assert self._prefetch is not None
        self._prefetch.cancel()
        self._epochs.arrive()
        self._restore_random_state(checkpoint)
        if self._engine.origin.chosen is not None:
            self._engine.origin.chosen.require_in_place()  # that was the last to be read of it
        pending = self._resumed.pending
        self._resumed = self._resumed._replace(pending={})
        if pending:
            self._finish_step(pending)

    def _finish_step(self, pending: Mapping[str, Any]) -> None:
        """Does what of a step was still to be done at the boundary that was saved."""
        trainer, control = self._trainer, self._trainer.control
        log, evaluate, save, epoch_end = (pending[name] for name in ("log", "evaluate", "save", "epoch_end"))
        control.should_log, control.should_evaluate, control.should_save = log, evaluate, save
        grad_norm, learning_rate = _number(pending["grad_norm"]), _number(pending["learning_rate"])
        loss = counters.sum_of_losses(trainer)
        arguments = (loss, grad_norm, trainer.model_wrapped, None, pending["epoch"], None, time.time())
        if (flags := pending.get("callbacks")) is not None:
            self._finish_callbacks(flags, arguments, learning_rate)
            return
        if log or evaluate or (save and not epoch_end):
            self._end_step(*arguments, learning_rate=learning_rate)
        if epoch_end:
            self._finish_epoch(arguments, learning_rate)

    def _finish_callbacks(self, flags: Mapping[str, Any], arguments: _Arguments, learning_rate: float | None) -> None:
        """Does all that comes after an update."""
        trainer = self._trainer
        for name in trainer.control.state()["args"]:
            setattr(trainer.control, name, bool(flags[name]))
        self._grad_norm, self._learning_rate = arguments[1], learning_rate
        trainer.control = self._call_step_end(trainer.args, trainer.state, trainer.control)
        self._end_step(*arguments, learning_rate=learning_rate)
        if self._epoch_end_follows():
            self._finish_epoch(arguments, learning_rate)

    def _finish_epoch(self, arguments: _Arguments, learning_rate: float | None) -> None:
        trainer = self._trainer
        self._last_step = trainer.state.global_step
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        self._end_step(*arguments, learning_rate=learning_rate)

    def _end_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        """Replaces the trainer's summary, which follows only where training was not stopped."""
        trainer, engine = self._trainer, self._engine
        step, chosen = trainer.state.global_step, engine.origin.chosen
        if self._resumed.has_pending and chosen is not None and not engine.stop_requested:
            self._skipping.end()
            self._go_on(str(chosen.folder.through))  # there was no further step, before which it is done
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
        begun = start_time - self._resumed.elapsed
        with best.loading(trainer, engine):
            output = ended.finalize(trainer, lambda: self._finalize(trial, num_train_samples, begun))
        self._pushes.report_failures()
        return output

    def _look_at_saves(self) -> None:
        """Has whoever must see a finished checkpoint see it here, in the training thread, after its commit."""
        self._pushes.report_failures()
        self._engine.run_hooks()

    def _tell_of_save(self, answer: Answer) -> None:
        trainer = self._trainer
        if getattr(vars(trainer).get(REPLACED[0]), "__self__", self) is not self:
            return  # a later `train` on the same engine, which tells
        if trainer.state.best_global_step == answer.step:
            trainer.state.best_model_checkpoint = str(Path(trainer.args.output_dir, names.checkpoint(answer.step)))
        if uncarried := [name for name in self._uncarried() if name not in self._named]:
            self._named.update(uncarried)
            self._engine.log.announce(
                f"no checkpoint has {', '.join(uncarried)}, which changes: a callback comes back as it was if it is an"
                " ExportableState",
                logging.WARNING,
            )
        # Callbacks find the directory by the step, and training may be further by now.
        then = copy.copy(trainer.state)
        then.global_step = answer.step
        if trainer.args.push_to_hub:
            self._pushes.begin(Path(answer.path), then)
        trainer.control = trainer.callback_handler.on_save(trainer.args, then, trainer.control)

    def _uncarried(self) -> list[str]:
        return [] if self._subject is None else self._subject.uncarried.changed()

    def _epoch_end_follows(self) -> bool:
        control, epoch = self._trainer.control, self._trainer.state.epoch
        return bool(control.should_training_stop or control.should_epoch_stop or epoch == int(epoch))

    def _is_last(self) -> bool:
        state = self._trainer.state
        return bool(self._trainer.control.should_training_stop or state.global_step >= state.max_steps)


class _Callback(TrainerCallback):  # type: ignore[misc]
    def __init__(self, hooks: StepHooks) -> None:
        self._hooks = hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hooks.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hooks.begin_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._hooks.end_update(optimizer)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._hooks.log(logs or {})


def _number(text: str | None) -> float | None:
    return None if text is None else float.fromhex(text)
