"""The resume of a Lightning fit: everything is put back, and its loops go on in the middle.

Lightning's own restart counts what was under way as not done, and begins the data of the epoch anew. So its counters
are put back as they were, and the rest of the epoch is gone through here, with its own methods.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

import torch

from holdfast.engine.engine import Engine
from holdfast.errors import DamagedCheckpointError
from holdfast.integrations.lightning import supported
from holdfast.integrations.lightning.averaging import exchange_schedule
from holdfast.integrations.lightning.data import LightningData
from holdfast.integrations.lightning.parts import CALLBACKS, PROGRESS, LightningCallbacks, LightningProgress
from holdfast.integrations.lightning.state import LightningState
from holdfast.layouts.native_reading import NativeReading
from holdfast.loop.restore import load_into
from holdfast.state import values
from holdfast.text import shown

_UPDATE, _EPOCH_END = "update", "epoch_end"


class Resume:
    """The state of a fit, and the way back to it.

    Args:
        trainer: The trainer.
        engine: Its engine, open.
        data: Its position in the data.
        strict: Refuses a checkpoint that does not fit.
    """

    def __init__(self, trainer: Any, engine: Engine, data: LightningData, *, strict: bool) -> None:
        package = supported.package_of(trainer)
        self._version = supported.version_of(package)
        self._trainer = trainer
        self._engine = engine
        self._data = data
        self._strict = strict
        self._callbacks = LightningCallbacks(trainer)
        has_metrics = supported.has_metrics(trainer)
        self.progress = LightningProgress(trainer, package, with_metrics=has_metrics)
        """The progress of the loops, the metrics, and the last loss."""
        self._state: LightningState | None = None
        self._begin: Callable[..., None] = lambda: None
        self.is_begun = False
        """True once saves are served."""

    def state(self) -> LightningState:
        """Returns the state that is saved; made when it is first asked for, with all that a fit has by then."""
        if self._state is None:
            engine = self._engine
            protected = [] if engine.origin.chosen is None else [engine.origin.chosen.path]
            keep = engine.settings.resume_settings == "keep"
            self._state = LightningState(
                self._trainer, self._data, self.progress, self._callbacks, protected, engine.rank, engine.world_size,
                keep=keep, version=self._version,
            )  # fmt: skip
            self._state.outside.begin()
            for key, reason in self._callbacks.left_out.items():
                engine.log.announce(f"callbacks: the state of {key} is not saved: {reason}", logging.WARNING)
            if left_out := self._state.left_out:
                engine.log.announce(f"hparams: a .ckpt that is exported will be without {', '.join(left_out)}")
        return self._state

    def load_callbacks(self) -> None:
        """Has the callbacks load their states before the fit starts, as Lightning does: they go by them there."""
        chosen, engine = self._engine.origin.chosen, self._engine
        if chosen is None or chosen.manifest is None:
            return
        manifest, names = chosen.manifest, (CALLBACKS, PROGRESS)
        files = [file for file in manifest.files if re.split(r"[.-]", file.path, maxsplit=1)[0] in names]
        tensors = {name: manifest.tensors[name] for name in names if name in manifest.tensors}
        own = manifest.world_size == engine.world_size
        try:
            reading = NativeReading(chosen.folder, files, tensors, engine.rank, manifest.world_size, own)
            reading.read()
        except DamagedCheckpointError:
            return  # all of it is read again, where an older one can be taken
        for name, part in ((CALLBACKS, self._callbacks), (PROGRESS, self.progress)):
            if (stored := reading.stored.get(name)) is not None:
                part.load_state_dict(values.decode(stored.rest.get("state"), stored.tensors))
        for path in self._callbacks.lost():
            engine.log.announce(
                f"{shown(path)}, the best that a ModelCheckpoint had written, is not here: its own files are in no"
                " checkpoint and no mirror",
                logging.WARNING,
            )

    def run(self, own: Callable[[], None], begin: Callable[..., None]) -> None:
        """Runs the loop over epochs, from where the checkpoint is; with none, as Lightning does.

        Args:
            own: Lightning's own run.
            begin: Begins to serve saves; told where a step has yet to be finished.
        """
        self._begin = begin
        chosen = self._engine.origin.chosen
        if chosen is None:
            own()
            return
        step = self._load()
        if self._data.is_between_epochs and not self._trainer.fit_loop.epoch_loop.batch_progress.total.ready:
            self._settle()
            self.progress.begin_anew()
            own()
            return
        chosen = self._engine.origin.chosen
        assert chosen is not None and chosen.manifest is not None
        stage = str(chosen.manifest.boundary.get("face", _UPDATE))
        loop, trainer = self._trainer.fit_loop, self._trainer
        self.progress.make_loaders()
        trainer.should_stop = self.progress.should_stop
        if stage == _EPOCH_END and loop.done:
            self._tell_of_the_end(step)
            return
        trainer.should_stop = False  # the end that it makes is not before what is pending
        loop.reset()
        loop.on_run_start()
        self.progress.arrive()
        if stage == _EPOCH_END:
            self._settle()
        else:
            self._finish_epoch(stage)
        while not loop.done:
            try:
                loop.on_advance_start()
                loop.advance()
                loop.on_advance_end()
            except StopIteration:
                break
            finally:
                loop.on_iteration_done()
        loop._restarting = False
        loop.on_run_end()

    def _load(self) -> int:
        """Puts back all but the position in the data, and the random state, which is set when that is reached."""
        engine, trainer = self._engine, self._trainer
        state = self.state()  # with the settings as they were given
        exchange_schedule(trainer)
        state.outside.begin()
        while True:
            try:
                step = load_into(state, engine.origin, strict=self._strict, replay=False, log=engine.log)
                break
            except DamagedCheckpointError as error:
                state.protect(engine.origin.fall_back(error).path)
        torch.set_grad_enabled(True)
        return step

    def _tell_of_the_end(self, step: int) -> None:
        trainer, chosen = self._trainer, self._engine.origin.chosen
        assert chosen is not None
        trainer.should_stop, was_early = False, bool(trainer.should_stop)
        ends, more = "ends", "max_epochs or max_steps"
        if was_early and not trainer.fit_loop.done:
            ends, more = "stopped early", "max_time" if self.progress.is_out_of_time else "min_epochs or min_steps"
        self._engine.log.announce(
            f"nothing to do: {chosen.path} is where this training {ends}, at step {step}; to go on, set {more} to more"
        )

    def _settle(self) -> None:
        """Takes the position between two epochs."""
        self._data.settle()
        self._tell_notices()

    def _finish_epoch(self, stage: str) -> None:
        """Goes through the rest of the epoch that the checkpoint is in."""
        loop = self._trainer.fit_loop
        for loader in loop._combined_loader.flattened:
            _tell_epoch(loader, loop.epoch_progress.current.processed)
        try:
            self._finish_batches(stage)
            loop.on_advance_end()
        except StopIteration:
            pass
        finally:
            loop.on_iteration_done()

    def _finish_batches(self, stage: str) -> None:
        epoch_loop, fetcher = self._trainer.fit_loop.epoch_loop, self._trainer.fit_loop._data_fetcher
        if self._data.is_between_epochs:
            self._settle()  # without a length data is fetched ahead: it was at its end, with the last batch to finish
        else:
            self._data.arrive(fetcher)
            self._tell_notices()
            fetcher.fetched += epoch_loop.batch_progress.current.ready
        self._begin(is_pending=stage == _UPDATE)
        if stage == _UPDATE:
            epoch_loop.on_advance_end(fetcher)
            epoch_loop.on_iteration_done()
        while not epoch_loop.done:
            try:
                epoch_loop.advance(fetcher)
                epoch_loop.on_advance_end(fetcher)
            except StopIteration:
                break
            finally:
                epoch_loop.on_iteration_done()

    def _tell_notices(self) -> None:
        for line in self._data.notices:
            self._engine.log.announce(line, logging.WARNING)
        self._data.notices.clear()


def _tell_epoch(loader: Any, epoch: int) -> None:
    """Tells a loader's samplers their epoch, as Lightning does where an epoch begins."""
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    for sampler in {id(sampler): sampler for sampler in samplers}.values():
        if callable(tell := getattr(sampler, "set_epoch", None)):
            tell(epoch)
