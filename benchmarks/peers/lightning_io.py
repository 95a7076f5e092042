"""Lightning's AsyncCheckpointIO."""

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from benchmarks.peers.saver import Saver
from benchmarks.states import State


class LightningAsync(Saver):
    """`Trainer.save_checkpoint` with the plugin that writes in a thread."""

    title = "Lightning AsyncCheckpointIO"
    package = "lightning"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._io = AsyncCheckpointIO()
        self._module = _Module(state)
        self._trainer = trainer = lightning.Trainer(
            accelerator="cpu" if state.device.type == "cpu" else "gpu",
            devices=1,
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[self._io],
        )
        # What fit() does before its first step.
        trainer.strategy.connect(self._module)
        self._module.trainer = trainer
        trainer.strategy._lightning_module = self._module
        trainer.strategy.optimizers = [state.optimizer]
        trainer.state.fn = TrainerFn.FITTING

    def save(self, number: int) -> Path:
        """Copies, and begins to write."""
        path = self.folder / f"{number}.ckpt"
        self._trainer.save_checkpoint(path)
        return path

    def wait(self) -> None:
        """Waits for its one worker, which serves in order."""
        self._io._executor.submit(int).result()
        if self._io._error is not None:
            raise self._io._error

    def load(self, path: Path) -> None:
        """Reads it whole, then copies."""
        found = torch.load(path, weights_only=False)
        self._module.load_state_dict(found["state_dict"])
        self.state.optimizer.load_state_dict(found["optimizer_states"][0])

    def close(self) -> None:
        """Ends the worker."""
        self._io.teardown()


class _Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, state: State) -> None:
        super().__init__()
        self.model = state.model
        self._optimizer = [state.optimizer]

    def training_step(self, batch: Any, index: int) -> Any:
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> Any:
        return self._optimizer[0]
