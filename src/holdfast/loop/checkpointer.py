"""The object that a plain PyTorch loop holds."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from holdfast.arguments import checked_directory, require_count, require_function, require_on_stop, require_resume
from holdfast.doors.signals import ends_training
from holdfast.engine.engine import Engine
from holdfast.engine.losses import require_loss
from holdfast.engine.on_published import Hook, require_hook
from holdfast.engine.pending_save import PendingSave
from holdfast.errors import ConfigError, DamagedCheckpointError, HoldfastError, PartialAccumulationError
from holdfast.layouts.layout import NATIVE
from holdfast.loop.ending import Ending, take_over
from holdfast.loop.passes import Passes
from holdfast.loop.restore import load_into, tell_of_what_is_not_watched
from holdfast.loop.settings import LoopSettings
from holdfast.loop.subject import LoopState
from holdfast.run.request import Request, checked_label, checked_slot, clean_label
from holdfast.settings import DEFAULTS, Priority, ResumeSettings, validated
from holdfast.state.data.cursor import DataCursor
from holdfast.state.gradients import Gradients
from holdfast.state.outside import Outside
from holdfast.state.reachable import known_of
from holdfast.state.registry import Parts, parts_of
from holdfast.store.retention import RetentionPolicy


class Checkpointer:
    """Saves a plain loop's last boundary whenever somebody asks, and resumes it exactly where it was.

        with Checkpointer("runs/gpt", model=model, optimizer=optimizer, scheduler=scheduler, data=loader) as ckpt:
            for batch in ckpt.batches(until=10_000):
                loss = model(batch).loss
                loss.backward(); optimizer.step(); scheduler.step(); optimizer.zero_grad()
                ckpt.step(loss=loss)

    Args:
        output_dir: The run directory.
        data: The data that `batches` goes through: a DataLoader, or any iterable that can be gone through again.
        save_steps: Saves every so many steps.
        save_total_limit: The number of scheduled checkpoints that are kept; the oldest go first. None keeps all.
        save_at_end: Saves the last step of a loop that ends by itself, if it has no checkpoint yet.
        keep_every: Keeps those whose step is a multiple of this for good.
        resume: The checkpoint to go on from. `auto`: the newest good one in `output_dir` or in the mirror, or a start
            from zero where there is none; True: the newest good one, which must be there; `local`: the newest good one
            in `output_dir`, which must be there, and the mirror is left alone; a path: that one; False: none.
        strict: Refuses a checkpoint that does not fit. False takes what fits, and says what it left out.
        replay: Loads the batches before the position and drops them, which is exact also where samples draw
            random numbers inside worker processes. They are skipped unloaded otherwise.
        on_stop: The end of the `with` block after a stop: `exit` raises `Stopped`, a `SystemExit` with code 75,
            so that the code after it does not take the training for finished; `return` goes on.
        on_saved: Called with the answer of each save that has succeeded (`path`, `step`, `bytes`, `labels`, ...), once
            the checkpoint is durable: in the thread that trains, at its next boundary or its end. An error of it is
            logged, and training goes on.
        on_saved_all_ranks: Calls it in every rank, and not in rank 0 alone.
        say: Takes each line for the user. Unset, they go to `logging.getLogger("holdfast")`, and are printed where no
            handler of the application would take them.
        dynamic_checkpoint, save_minutes, save_on_exception, stop_grace_seconds, staging_memory, rank_timeout_seconds,
        save_rate_limit, save_io_priority, resume_settings, mirror, mirror_keep, mirror_endpoint, mirror_region: As
            `holdfast.settings.Settings` describes them.
        **parts: The state that is saved, by name: `model=`, `optimizer=`, `scheduler=`, `scaler=`, any module,
            optimizer, random generator, object with `state_dict` and `load_state_dict`, or plain dict of numbers,
            texts and tensors.

    Raises:
        ConfigError: A part cannot be saved, or a setting is wrong.
        RunBusyError: Another process trains in `output_dir`.
        NoCheckpointError: `resume` names something that cannot be resumed from.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        data: Any = None,
        save_steps: int | None = None,
        save_minutes: float | None = None,
        save_total_limit: int | None = None,
        save_at_end: bool = True,
        keep_every: int | None = None,
        resume: str | bool = "auto",
        strict: bool = True,
        replay: bool = False,
        on_stop: Literal["exit", "return"] = "exit",
        on_saved: Hook | None = None,
        on_saved_all_ranks: bool = False,
        say: Callable[[str], None] | None = None,
        dynamic_checkpoint: Mapping[str, Any] | None = None,
        save_on_exception: bool = DEFAULTS.save_on_exception,
        stop_grace_seconds: float = DEFAULTS.stop_grace_seconds,
        staging_memory: int | str | None = None,
        rank_timeout_seconds: float = DEFAULTS.rank_timeout_seconds,
        save_rate_limit: int | str | None = None,
        save_io_priority: Priority = DEFAULTS.save_io_priority,
        resume_settings: ResumeSettings = DEFAULTS.resume_settings,
        mirror: str | None = None,
        mirror_keep: int = DEFAULTS.mirror_keep,
        mirror_endpoint: str | None = None,
        mirror_region: str | None = None,
        **parts: Any,
    ) -> None:
        settings = validated(
            dynamic_checkpoint=dynamic_checkpoint,
            save_minutes=save_minutes,
            save_on_exception=save_on_exception,
            stop_grace_seconds=stop_grace_seconds,
            staging_memory=staging_memory,
            rank_timeout_seconds=rank_timeout_seconds,
            save_rate_limit=save_rate_limit,
            save_io_priority=save_io_priority,
            resume_settings=resume_settings,
            mirror=mirror,
            mirror_keep=mirror_keep,
            mirror_endpoint=mirror_endpoint,
            mirror_region=mirror_region,
        )
        root = checked_directory("output_dir", output_dir)
        require_count("save_steps", save_steps)
        require_count("save_total_limit", save_total_limit, "checkpoints")
        require_resume("resume", resume)
        require_on_stop(on_stop)
        require_hook(on_saved)
        require_function("say", say, "a line of text")
        generators = {name: part for name, part in parts.items() if isinstance(part, torch.Generator)}
        named = {name: part for name, part in parts.items() if name not in generators}
        registered = Parts(parts_of(named, _settings()))
        policy = RetentionPolicy(save_total_limit, settings.dynamic_checkpoint.keep, every=keep_every)
        take_over(root)
        self._engine = Engine(root, settings, policy, resume, NATIVE, say)
        if on_saved is not None and (on_saved_all_ranks or not self._engine.rank):
            self._engine.on_published(on_saved)
        chosen = self._engine.origin.chosen
        self._data = None if data is None else DataCursor(data)
        protected = [chosen.path] if chosen else []
        outside = Outside(named.copy, partial(known_of, named))
        self._state = LoopState(
            registered, outside, generators, self._data, protected, self._engine.rank, self._engine.world_size
        )
        self._scales = any(isinstance(p, torch.amp.GradScaler) and p.is_enabled() for p in parts.values())
        self._save_steps = save_steps
        self._save_at_end = save_at_end
        self._began_at = 0
        self._strict = strict
        self._replay = replay
        self._ending = Ending(self._engine, self._data, on_stop)
        self._passes = (
            None
            if self._data is None
            else Passes(self._engine, self._state, self._data, self._ending, save_at_end=save_at_end)
        )
        self._parameters: list[torch.Tensor] = []
        self._until = 0

    def __enter__(self) -> "Checkpointer":
        if self._ending.in_block:
            raise HoldfastError("this training was entered already", hint="make a new Checkpointer, which resumes it")
        self._ending.begin()
        self._ending.in_block = True
        return self

    @ends_training
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if is_ours := error is not None and error is self._ending.left_by:
            kind = error = trace = None
        if error is None:
            self._come_to_the_end()
        elif self._passes is not None:
            self._passes.explain(error)
        return self._ending.end(kind, error, trace) or is_ours

    @ends_training
    def close(self) -> None:
        """Does what leaving the `with` block does, for those who have none. Does nothing where that was done.

        Raises:
            Stopped: Training has ended because a stop was asked for.
        """
        self._come_to_the_end()
        self._ending.end(None, None, None)

    @property
    def stop_requested(self) -> bool:
        """True when a stop was asked for and saved: the loop should end. `batches` does so by itself."""
        return self._engine.stop_requested

    @property
    def epoch(self) -> int:
        """The epoch that the loop is in, from 0; between two bodies of `epochs`, or two epochs, the one to come."""
        return 0 if self._passes is None else self._passes.epoch

    @property
    def step_count(self) -> int:
        """The optimizer steps taken, over all resumes."""
        return self._state.step or 0

    def resume(self) -> int:
        """Puts back what the checkpoint holds, in place, and announces it in one line.

        `batches` calls it. A loop with its own loader calls it once, before its first batch. It opens every door where
        no `with` block has: saves are served from here on.

        Returns:
            The step to go on from; 0 at the beginning.

        Raises:
            CheckpointError: The checkpoint does not fit the parts, and nothing was changed. Or it is damaged, there is
                no other, and what the parts hold now is worth nothing.
        """
        if self._state.step is not None:
            raise HoldfastError("this training was resumed already", hint="call resume() once, before the first batch")
        self._ending.begin()
        engine, step = self._engine, None if self._engine.origin.chosen is not None else 0
        self._state.given = LoopSettings(self._state.parts, keep=engine.settings.resume_settings == "keep")
        self._state.outside.begin()
        tell_of_what_is_not_watched(self._state, engine.log)
        while step is None:
            try:
                step = load_into(self._state, engine.origin, strict=self._strict, replay=self._replay, log=engine.log)
            except DamagedCheckpointError as error:
                self._state.protect(engine.origin.fall_back(error).path)
        self._state.step = self._began_at = step
        self._parameters = self._state.parameters()
        engine.begin(self._state, step, self._until)
        return step

    def epochs(self, epochs: int) -> Iterator[int]:
        """Goes through epochs from the one that was left, with `batches` in the body of the loop, and whatever follows.

            for epoch in ckpt.epochs(10):
                for batch in ckpt.batches():
                    ...
                    ckpt.step(loss=loss)
                scheduler.step()
                validate(model)

        Left after an epoch's last step, a run goes on with the rest of that epoch's body: `batches` is empty, so what
        the rest reads of a batch (`loss`) needs a value before the loop, or is kept in a dict part. The end of the body
        is a boundary. On a stop `batches` raises `Stopped`, which the `with` block takes.

        Args:
            epochs: Ends after this many, over all resumes.

        Raises:
            ConfigError: There is no data to go through, `epochs` is no number of epochs, or there is no `with` block
                and `on_stop` is `return`.
            HoldfastError: It is inside of another, or its body does not go through `batches` once.
            Stopped: A stop was asked for.
        """
        passes = self._passes_for("epochs")
        passes.check_epochs(epochs)
        if self._state.step is None:
            self.resume()
        yield from passes.epochs(epochs)

    def batches(
        self, until: int | None = None, epochs: int | None = None, accumulate: int | None = None
    ) -> Iterator[Any]:
        """Goes through the data from where the run was left, epoch after epoch, until the end or a stop.

        In the body of `epochs` it goes through that epoch.

        Args:
            until: Ends after this many steps, over all resumes.
            epochs: Ends after this many epochs, over all resumes.
            accumulate: Gives lists of so many batches, one list for one step; the last of an epoch may be shorter.

        Raises:
            ConfigError: There is no data to go through, an argument is no whole number, or an end was given in the body
                of `epochs`.
            Stopped: In the body of `epochs`: a stop was asked for.
        """
        passes = self._passes_for("batches")
        passes.check(until, epochs, accumulate)
        if self._state.step is None:
            self._until = until or 0
            self.resume()
        elif until is not None:
            self._until = until
            self._engine.run.status.update(max_steps=until)
        yield from passes.batches(until, epochs, accumulate)

    def _passes_for(self, caller: str) -> Passes:
        if self._passes is None:
            raise ConfigError([f"data: {caller}() goes through the data, and there is none; give data=..."])
        return self._passes

    def step(self, loss: float | torch.Tensor | None = None) -> None:
        """Marks a boundary: the update is done, and model, optimizer and schedule agree. Once for each update.

        Args:
            loss: Shown by `holdfast status`: a number, or a tensor of one element.

        Raises:
            ConfigError: The loss is no number.
            PartialAccumulationError: There are gradients, and no optimizer has stepped since the last boundary.
        """
        if self._state.step is None:
            raise HoldfastError(
                "step() before resume(): nothing says where this training begins",
                hint="take the data from batches(), or call resume() before the first batch",
            )
        require_loss(loss)
        self._require_an_update()
        for line in self._data.reach() if self._data is not None else ():
            self._engine.log.announce(line, logging.WARNING)
        self._engine.losses.take(loss)
        self._state.step += 1
        self._engine.losses.show(loss)
        due = self._save_steps is not None and self._state.step % self._save_steps == 0
        last = self._state.step == self._until
        scheduled = f"save_steps {self._save_steps}" if due else "save_at_end" if last and self._save_at_end else ""
        self._engine.reach(self._state.step, last=last, scheduled=scheduled)
        if self._passes is not None:
            self._passes.reach()
        gradients: Gradients = self._state.gradients
        if news := gradients.news(self._state.step):
            self._engine.log.announce(news)

    def update(self) -> AbstractContextManager[None]:
        """Encloses an update that no torch optimizer makes: it waits while a snapshot is being taken.

        On a GPU the wait is one of the stream that is current here: choose another for the update before, not inside.
        """
        return self._engine.update()

    def save(self, label: str = "", *, slot: str = "", wait: bool = False, stop: bool = False) -> PendingSave:
        """Asks for a save of the last boundary. From any thread, at any time.

        What the thread that trains asks for between two updates is of the boundary at the call, and holds what the
        loop has changed since `step()`: a learning rate, a best result, random numbers drawn by an evaluation. (If it
        has its next batch already, it holds what was there at `step()`, and a resume gives that batch again.) In the
        rest of an epoch's body, after `batches()`, it is of the end of the body, with all that the body did; of the
        epoch's last step, without that, with `wait` or `stop`, or where the loop leaves before. Among
        ranks all of them make the call; what some ask for alone may be of a later boundary, which the answer's `note`
        and a line say. In the middle of an update, and from other threads, it is the next that all can give.

        Args:
            label: A text by which the checkpoint is to be known; at most 4 KiB.
            slot: A name that one checkpoint has at a time, such as `best`: this one takes the place of the one that has
                it, which goes unless something else keeps it. Neither retention nor `holdfast prune` takes the one that
                has it. It is of the boundary at the call or fails, so among ranks all of them make the call.
            wait: Returns only when it is durable.
            stop: Has training end after it.

        Returns:
            The pending save, which learns what becomes of it.

        Raises:
            ConfigError: The label is no text or too long; the slot is no name, or is that of a stop.
            SaveError: With `wait`: it failed, or other ranks, which have not asked, were past the boundary.
        """
        if wait and self._state.step is None and self._engine.gate.is_training_thread:
            raise HoldfastError(
                "save(wait=True) before resume(): nothing says what this training holds",
                hint="take the data from batches(), or call resume() before",
            )
        slot, text = checked_slot(slot, stop=stop), clean_label(checked_label(label))
        if self._passes is not None:
            self._passes.heed_error()
        request = Request("python", stop=stop, label=text, why="Checkpointer.save", slot=slot)
        pending = self._engine.ask(request, at_once=wait)
        if wait:
            pending.wait()
        return pending

    def _come_to_the_end(self) -> None:
        """Saves the last step of a loop that has ended by itself, or says that there was nothing to do."""
        if self._save_at_end:
            self._engine.save_at_end()
        if self._passes is not None:
            self._passes.end(self._began_at)

    def _require_an_update(self) -> None:
        if self._engine.updating or self._scales:
            return
        if any(parameter.grad is not None for parameter in self._parameters):
            raise PartialAccumulationError(
                f"step() after step {self._state.step}: there are gradients, and no optimizer has taken its step"
                " with them",
                hint="call step() once for each update (with accelerate: if accelerator.sync_gradients); an update of"
                " your own goes into: with checkpointer.update():",
            )


@cache
def _settings() -> list[str]:
    """Returns the names of all that a `Checkpointer` takes beside parts."""
    parameters = inspect.signature(Checkpointer.__init__).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
