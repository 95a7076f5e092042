"""One `fit` of an attached trainer: the run is open while it lasts, and every boundary of its loops is marked.

A batch that updates ends in two or three stages: the update; a validation and what goes by it; the end of an epoch.
Each is a boundary. Lightning steps schedules and calls `on_train_batch_end` within the first. Read against 2.6.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from holdfast.arguments import checked_directory
from holdfast.doors.signals import ends_training
from holdfast.engine.engine import Engine
from holdfast.engine.on_published import Hook
from holdfast.errors import Stopped
from holdfast.integrations.lightning import supported
from holdfast.integrations.lightning.averaging import averaging_of
from holdfast.integrations.lightning.data import LightningData
from holdfast.integrations.lightning.resume import Resume
from holdfast.layouts.layout import NATIVE
from holdfast.run import rehearsal
from holdfast.settings import Settings
from holdfast.store.retention import RetentionPolicy

UPDATE, LOGGED, EPOCH_END = "update", "logged", "epoch_end"
"""The stages, by the names that other trainers' have."""


@dataclass(frozen=True)
class Attachment:
    """The arguments of `attach`, checked: they hold for every fit of a trainer.

    Args:
        settings: The settings of its saves.
        policy: The rules by which checkpoints stay.
        save_steps: Saves every so many optimizer steps.
        strict: Refuses a checkpoint that does not fit.
        on_saved: Called with the answer of each save that has succeeded.
        on_saved_all_ranks: Calls it in every rank.
        lines: Lines for the user that came up before a run was open.
    """

    settings: Settings
    policy: RetentionPolicy
    save_steps: int | None
    strict: bool
    on_saved: Hook | None
    on_saved_all_ranks: bool
    lines: Sequence[str]


class Fit:
    """Opens a run when a fit has its processes, and closes it when the fit ends, whichever way. A context.

    Args:
        trainer: The trainer.
        attachment: The arguments of `attach`.
        wanted: The checkpoint of ours to go on from; None where Lightning loads its own, or none.
    """

    def __init__(self, trainer: Any, attachment: Attachment, wanted: str | None) -> None:
        self._trainer = trainer
        self._attachment = attachment
        self._wanted = wanted
        loop = trainer.fit_loop
        self._own_advance = loop.epoch_loop.advance
        self._own_advance_end = loop.epoch_loop.on_advance_end
        self._own_epoch_start = loop.on_advance_start
        self._own_epoch_end = loop.on_advance_end
        self._own_run_end = loop.on_run_end
        self._own_run = loop.run
        self._own_load_loaders = loop._load_combined_loader_states
        self._replaced: list[tuple[Any, str]] = []
        self._callback: Any = None
        self._sanity_steps: int | None = None
        self._data = LightningData(waits=False)
        self._resume: Resume | None = None
        self._is_active = self._is_closed = False
        self._marked = self._looked = self._scheduled = -1
        self.engine: Engine | None = None
        """The engine, from the moment on at which the processes of the fit are there."""

    def __enter__(self) -> "Fit":
        trainer, loop = self._trainer, self._trainer.fit_loop
        package = supported.package_of(trainer)
        self._callback = _callback(importlib.import_module(package).Callback, self)
        trainer.callbacks.insert(0, self._callback)
        self._replace(loop, "_load_combined_loader_states", self._follow_loaders)
        self._replace(loop, "run", self._run)
        self._replace(loop, "on_advance_start", self._start_epoch)
        self._replace(loop, "on_advance_end", self._end_epoch)
        self._replace(loop, "on_run_end", self._end_training)
        self._replace(loop.epoch_loop, "advance", self._train_batch)
        self._replace(loop.epoch_loop, "on_advance_end", self._end_batch)
        self._replace(trainer._signal_connector, "register_signal_handlers", self._leave_signals)
        if self._wanted is not None:
            # It would take another file of its own, such as that of OnExceptionCheckpoint, and load it over ours.
            self._replace(trainer._checkpoint_connector, "_select_ckpt_path", lambda *args, **kwargs: None)
        return self

    @ends_training
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Takes everything back. True swallows an error that was the stop itself."""
        try:
            is_stop = self.close(error)
        finally:
            self._take_back()
        return is_stop or isinstance(error, Stopped) or self._was_interrupted(error)

    def open(self) -> None:
        """Opens the run: the processes of the fit are there, and nothing is loaded yet."""
        trainer, attachment = self._trainer, self._attachment
        root = checked_directory("default_root_dir", trainer.default_root_dir)
        self.engine = engine = Engine(root, attachment.settings, attachment.policy, self._wanted, NATIVE)
        engine.__enter__()
        for line in attachment.lines:
            engine.log.announce(line, logging.WARNING)
        if attachment.on_saved is not None and (attachment.on_saved_all_ranks or not engine.rank):
            engine.on_published(attachment.on_saved)
        chosen = engine.origin.chosen
        self._data = LightningData(waits=chosen is not None and not supported.has_tuner(trainer))
        self._resume = Resume(trainer, engine, self._data, strict=attachment.strict)

    def start(self) -> None:
        """Takes in that the fit starts: optimizers are there, and the callbacks' own hooks come next."""
        self._is_active = True
        if self.engine is None or self._resume is None or self.engine.origin.chosen is None:
            return
        # Lightning skips it after a restart of its own, too.
        self._sanity_steps, self._trainer.num_sanity_val_steps = self._trainer.num_sanity_val_steps, 0
        self._resume.load_callbacks()

    def take_loss(self, outputs: Any) -> None:
        """Takes the loss of a batch, as Lightning gives it to `on_train_batch_end`."""
        if self._resume is not None and isinstance(outputs, dict) and isinstance(outputs.get("loss"), torch.Tensor):
            self._resume.progress.loss = outputs["loss"].detach()

    @ends_training
    def close(self, error: BaseException | None) -> bool:
        """Ends the training, once. True tells that the error was the stop itself.

        Args:
            error: What ends it; None where it came to its end.
        """
        if self._is_closed or self.engine is None:
            return False
        self._is_closed = True
        own = error is None or isinstance(error, Stopped)
        kind, trace = (None, None) if own or error is None else (type(error), error.__traceback__)
        return self.engine.__exit__(kind, None if own else error, trace)

    def _replace(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        setattr(owner, name, replacement)
        self._replaced.append((owner, name))

    def _take_back(self) -> None:
        for owner, name in reversed(self._replaced):
            delattr(owner, name)
        self._replaced.clear()
        if self._callback in self._trainer.callbacks:
            self._trainer.callbacks.remove(self._callback)
        self._give_back_sanity_steps()
        self._data.unfollow(self._trainer.fit_loop._combined_loader)

    def _give_back_sanity_steps(self) -> None:
        if self._sanity_steps is not None:
            self._trainer.num_sanity_val_steps, self._sanity_steps = self._sanity_steps, None

    def _was_interrupted(self, error: BaseException | None) -> bool:
        """Tells whether Lightning has made an exit of a Ctrl+C that was a stop."""
        return isinstance(error, SystemExit) and self.engine is not None and self.engine.stop_requested

    def _leave_signals(self) -> None:
        """Replaces Lightning's handlers: SIGTERM would raise in the next batch, and requeue what is to be saved."""
        self._trainer._signal_connector.received_sigterm = False

    def _follow_loaders(self) -> None:
        """Replaces the moment before Lightning iterates its training loaders."""
        loop = self._trainer.fit_loop
        self._data.follow(loop._combined_loader, loop.epoch_progress.current.processed)
        self._own_load_loaders()

    def _run(self) -> None:
        """Replaces the loop over epochs: a resume goes on in the middle of it."""
        if not self._is_active or self._resume is None:
            self._own_run()
            return
        self._give_back_sanity_steps()
        self._resume.run(self._own_run, self._begin)

    def _begin(self, *, is_pending: bool = False) -> None:
        """Begins to serve saves: everything is as it will be before the next batch, or what is pending before it."""
        engine, resume, trainer = self.engine, self._resume, self._trainer
        if not self._is_active or self._is_closed or engine is None or resume is None or resume.is_begun:
            return
        resume.is_begun = True
        self._looked = trainer.global_step
        self._marked = -1 if is_pending else self._looked
        engine.begin(resume.state(), trainer.global_step, _steps_of(trainer))

    def _train_batch(self, fetcher: Any) -> None:
        """Replaces the training of one batch."""
        self._data.watch(fetcher)
        self._begin()
        self._own_advance(fetcher)
        loop = self._trainer.fit_loop.epoch_loop
        if self._has_stepped and (
            self._trainer._val_check_time_interval is not None or loop._should_check_val_fx(fetcher)
        ):
            self._mark(UPDATE)

    def _end_batch(self, fetcher: Any) -> None:
        """Replaces what follows a batch: a validation where one is due, and schedules that go by it."""
        self._own_advance_end(fetcher)
        if self._has_stepped:
            self._mark(LOGGED)
            self._marked = self._trainer.global_step

    def _start_epoch(self) -> None:
        if self._is_serving and averaging_of(self._trainer) is not None:
            assert self.engine is not None
            self.engine.gate.enter_update()  # the average is moved now
        self._own_epoch_start()

    def _end_epoch(self) -> None:
        """Replaces the end of an epoch."""
        self._own_epoch_end()
        self._data.leave()
        if self._is_serving:
            self._mark(EPOCH_END)

    def _end_training(self) -> None:
        """Replaces the end of a fit that has come to its end: what hooks do to the weights then is none of a step's."""
        if self._is_serving and self.engine is not None:
            if self._attachment.save_steps is not None and self._scheduled != self._trainer.global_step:
                self.engine.save_at_end()
            self.engine.finish()
            self.close(None)
        self._own_run_end()

    @property
    def _is_serving(self) -> bool:
        return self._resume is not None and self._resume.is_begun and not self._is_closed

    @property
    def _has_stepped(self) -> bool:
        return self._is_serving and bool(self._trainer.global_step != self._marked)

    def _mark(self, stage: str) -> None:
        engine, resume, step = self.engine, self._resume, self._trainer.global_step
        assert engine is not None and resume is not None
        scheduled = ""
        engine.losses.take(resume.progress.loss)
        if stage == LOGGED:
            engine.losses.show(resume.progress.loss)
            # Several optimizers make several steps in one batch.
            every = self._attachment.save_steps
            if every is not None and step // every > self._looked // every:
                scheduled, self._scheduled = f"save_steps {every}", step
            self._looked = step
        is_over = stage == EPOCH_END and _is_over(self._trainer)
        engine.reach(step, stage=stage, last=is_over, scheduled=scheduled, look=stage == LOGGED or is_over)
        if news := resume.state().gradients.news(step):
            engine.log.announce(news)
        if engine.stop_requested and not is_over:
            raise Stopped(engine.exit_code)


def _is_over(trainer: Any) -> bool:
    """Tells whether a fit is over after an epoch, as its loop will find a moment later."""
    loop = trainer.fit_loop
    by_steps = loop.max_steps != -1 and trainer.global_step >= loop.max_steps
    by_epochs = loop.max_epochs not in (-1, None) and loop.epoch_progress.current.processed >= loop.max_epochs
    return bool(by_steps or by_epochs or (trainer.should_stop and loop._can_stop_early))


def _steps_of(trainer: Any) -> int:
    """Returns the step at which a fit ends; 0 where that is not known."""
    if trainer.max_steps != -1:
        return int(trainer.max_steps)
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs in (-1, None) or batches == float("inf") or not trainer.lightning_module.automatic_optimization:
        return 0
    return int(-(-batches // trainer.accumulate_grad_batches) * epochs)


def _callback(base: type, fit: Fit) -> Any:
    """Returns a callback of the trainer's own package, which is first to hear of a fit's beginning, loss and error."""

    class HoldfastCallback(base):  # type: ignore[misc]
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit" and fit.engine is None:
                fit.open()

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            fit.start()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            fit.take_loss(outputs)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            fit.close(exception)

    return HoldfastCallback()


def rehearse(trainer: Any) -> None:
    """Takes a trainer's loggers and own checkpoints away in a rehearsal, which nobody is to be told of."""
    if rehearsal.current() is not None:
        trainer.loggers = []
