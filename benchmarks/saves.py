"""A save of ours beside the Trainer's own, in turns."""

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

import holdfast


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.arange(8) + index % 50
        return {"input_ids": row, "labels": row}


class _Timed(TrainerCallback):  # type: ignore[misc]
    """Writes down how long each save took, from the end of the step to `on_save`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


def compare_saves(folder: Path, rounds: int = 5) -> tuple[list[float], list[float]]:
    """Seconds of the Trainer's own saves and of ours, one pair a round."""
    theirs, ours = [], []
    transformers_logging.disable_progress_bar()
    for turn in range(rounds):
        theirs.append(_one_save(folder / f"theirs-{turn}", attached=False))
        ours.append(_one_save(folder / f"ours-{turn}", attached=True))
    return theirs, ours


def _one_save(output_dir: Path, *, attached: bool) -> float:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=5, num_attention_heads=8
    )
    args = TrainingArguments(
        str(output_dir),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    timed = _Timed()
    trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=_Rows(), callbacks=[timed])
    if attached:
        holdfast.attach(trainer)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return timed.seconds[1]  # the first save of a process pays for imports
