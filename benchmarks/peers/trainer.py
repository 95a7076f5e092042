"""The transformers Trainer's own save."""

from pathlib import Path

from transformers import Trainer, TrainingArguments

from benchmarks.peers.saver import Saver
from benchmarks.states import State


class TrainerSave(Saver):
    """`Trainer._save_checkpoint`, which training stands still for."""

    title = "transformers Trainer"
    package = "transformers"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        args = TrainingArguments(
            str(folder),
            report_to="none",
            use_cpu=state.device.type == "cpu",
            save_strategy="no",
            disable_tqdm=True,
        )
        self._trainer = Trainer(
            state.model, args, train_dataset=[0], optimizers=(state.optimizer, state.scheduler), processing_class=None
        )

    def save(self, number: int) -> Path:
        """Writes the directory of a checkpoint."""
        self._trainer.state.global_step = number
        self._trainer._save_checkpoint(self.state.model, trial=None)
        return self.folder / f"checkpoint-{number}"

    def load(self, path: Path) -> None:
        """What a resume of it reads."""
        self._trainer._load_from_checkpoint(str(path))
        self._trainer._load_optimizer_and_scheduler(str(path))
