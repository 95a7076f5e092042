"""`attach(trainer)`: the transformers layout, in a Trainer's own loop.

The Trainer calls what the benchmark does between two updates: a script, which is a generator that yields when the
step's forward and backward pass are over.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import holdfast
from benchmarks.ours import Saves
from benchmarks.states import State

Script = Callable[["Attached"], Iterator[None]]


class Attached:
    """A Trainer that trains a state by a script, and the times at which its steps passed their marks.

    Args:
        state: What is trained and saved.
        run: The run directory.
    """

    title = "holdfast, attach"

    def __init__(self, state: State, run: Path) -> None:
        self.state = state
        self.run = run
        self.saves = Saves(run)
        self.updating_at = self.updated_at = self.entered_at = 0.0
        """When the last update began, behind the gate; when it was done; when the last forward pass began."""
        self._wanted = False
        self._script: Iterator[None] = iter(())
        args = TrainingArguments(
            str(run),
            max_steps=1_000,
            save_strategy="no",
            logging_strategy="no",
            max_grad_norm=0.0,
            per_device_train_batch_size=1,
            report_to="none",
            use_cpu=state.device.type == "cpu",
            dataloader_pin_memory=False,
            ignore_data_skip=True,
            disable_tqdm=True,
        )
        self._trainer = Trainer(
            state.model,
            args,
            train_dataset=_Rows(),
            optimizers=(state.optimizer, state.scheduler),
            callbacks=[_Scheduled(self)],
        )
        self._trainer.training_step = self._training_step

    def save_next(self) -> None:
        """Has the schedule ask for a save of the next boundary."""
        self.saves.expect()
        self._wanted = True

    def save_is_due(self) -> bool:
        """Whether the boundary that was reached is to be saved."""
        wanted, self._wanted = self._wanted, False
        return wanted

    @property
    def path(self) -> Path:
        """Where the checkpoint of the last boundary is, or will be."""
        return self.run / f"checkpoint-{self._trainer.state.global_step}"

    def train(self, script: Script, resume: Path | None = None, *, attach: bool = True) -> None:
        """Trains until the script is over.

        Args:
            script: What is done between two updates.
            resume: The checkpoint to go on from.
            attach: False leaves the Trainer as it is.
        """
        self._script = script(self)
        before = self.state.optimizer.register_step_pre_hook(self._note_updating)
        after = self.state.optimizer.register_step_post_hook(self._note_updated)
        attached = holdfast.attach(self._trainer, save_on_exception=False) if attach else self._trainer
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(_OverError):
                attached.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            before.remove()
            after.remove()

    def _training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.state.settle()
        self.entered_at = time.perf_counter()
        try:
            next(self._script)
        except StopIteration:
            raise _OverError from None
        return torch.zeros((), device=self.state.device)

    # The optimizer's own hooks are called after those of all optimizers, one of which is the gate.
    def _note_updating(self, *args: Any) -> None:
        self.updating_at = time.perf_counter()

    def _note_updated(self, *args: Any) -> None:
        self.state.settle()
        self.updated_at = time.perf_counter()


class _OverError(Exception):
    pass


class _Scheduled(TrainerCallback):  # type: ignore[misc]
    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= self._attached.save_is_due()


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 1_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(1, dtype=torch.long)}
