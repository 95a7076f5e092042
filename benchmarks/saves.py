"""A save of ours beside the Trainer's own, in turns, while a real training loop runs."""

import contextlib
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

import holdfast
from benchmarks.table import head, row

SMALL = LlamaConfig(
    vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=5, num_attention_heads=8
)
# As many parameters as GPT-2 small: 124 M, with AdamW's moments 1.5 GB in fp32.
LARGE = LlamaConfig(
    vocab_size=32768, hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=12
)


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.arange(64) + index % 50
        return {"input_ids": row, "labels": row}


def report(folder: Path) -> None:
    """Prints the tables."""
    for size, config, rounds in (("25 M", SMALL, 5), ("124 M", LARGE, 3)):
        head(f"one save of {size} parameters with AdamW, training", "s")
        seconds = compare_saves(folder, config, rounds)
        for what, values in seconds.items():
            row(what, values, 1)
        for what in ("stall", "durable"):
            pairs = zip(seconds[f"our {what}"], seconds[f"their {what}"], strict=True)
            row(f"{what}, ours / Trainer's own", [ours / theirs for ours, theirs in pairs], 1)


def compare_saves(folder: Path, config: LlamaConfig, rounds: int) -> dict[str, list[float]]:
    """Seconds, one value a round: how long training stood still for one save, and until it was durable."""
    found: dict[str, list[float]] = {"their stall": [], "their durable": [], "our stall": [], "our durable": []}
    transformers_logging.disable_progress_bar()
    for turn in range(rounds):
        for who in ("their", "our"):
            directory = folder / f"{who}-{turn}"
            stall, durable = _theirs(directory, config) if who == "their" else _ours(directory, config)
            found[f"{who} stall"].append(stall)
            found[f"{who} durable"].append(durable)
            shutil.rmtree(directory)
    return found


def _theirs(directory: Path, config: LlamaConfig) -> tuple[float, float]:
    trainer = _trainer(directory, config)
    own, times = trainer._save_checkpoint, []

    def timed(*args: Any) -> None:
        begun = time.perf_counter()
        own(*args)
        ended = time.perf_counter()
        for path in sorted(directory.rglob("*"), reverse=True):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        times.append((ended - begun, time.perf_counter() - begun))

    trainer._save_checkpoint = timed
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return times[1]  # the first save of a process pays for imports


def _ours(directory: Path, config: LlamaConfig) -> tuple[float, float]:
    trainer = _trainer(directory, config)
    with contextlib.redirect_stdout(io.StringIO()):
        holdfast.attach(trainer).train()
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    saved = [event for event in events if event["event"] == "saved"][1]  # the first touches the memory and pays for it
    held = sum(event["seconds"] for event in events if event["event"] == "held" and event["step"] == saved["step"])
    return held, saved["seconds"]


def _trainer(directory: Path, config: LlamaConfig) -> Trainer:
    args = TrainingArguments(
        str(directory),
        max_steps=9,
        save_steps=3,
        per_device_train_batch_size=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return Trainer(LlamaForCausalLM(config), args, train_dataset=_Rows())
