"""What the processes of two accounts run: trainings that print their weights, and the verbs of the command line."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from transformers import TrainerCallback

import holdfast
from helpers.loops import Loop
from helpers.small_trainer import small_trainer
from holdfast.cli.app import main
from holdfast.errors import HoldfastError

STEPS = 5


def digest_of(model: Any) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def resumes(run: Path, times: int) -> None:
    """Begins with a loop again and again, and prints the weights or why not."""
    for _ in range(times):
        try:
            loop = Loop(run, say=print)
            with loop.ckpt:
                step = loop.ckpt.resume()
                print("begins", step, digest_of(loop.model), flush=True)
        except HoldfastError as error:
            print("refused", error, flush=True)


def trains(run: Path) -> None:
    """Trains with a loop, and prints the weights of each step."""
    loop = Loop(run, save_steps=1, say=print)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=STEPS):
            loop.update(batch)
            print("trains", loop.ckpt.step_count, digest_of(loop.model), flush=True)


def words_of(printed: str, first: str) -> list[list[str]]:
    """The lines that begin with a word, in words."""
    return [line.split()[1:] for line in printed.splitlines() if line.startswith(f"{first} ")]


def of_ones(weights: bytes) -> bytes:
    """Other weights of the same names and shapes."""
    return save({name: tensor * 0 + 1 for name, tensor in load(weights).items()}, metadata={"format": "pt"})


class PrintsWeights(TrainerCallback):  # type: ignore[misc]
    """Prints the weights with which a Trainer begins, and those of each step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        print("begins", state.global_step, digest_of(others["model"]), flush=True)
        print("weights", *(tensor.flatten().tolist() for tensor in others["model"].state_dict().values()), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        print("trains", state.global_step, digest_of(others["model"]), flush=True)


def fits(run: Path, times: int = 1, resume: str = "auto", model: Any = None, **settings: Any) -> None:
    """Trains with a Trainer, again and again, and prints the weights or why not."""
    for _ in range(times):
        trainer = small_trainer(run, [PrintsWeights()], max_steps=STEPS, save_steps=1, **settings)
        if model is not None:
            trainer.model = trainer.model_wrapped = model
        try:
            holdfast.attach(trainer).train(resume_from_checkpoint=resume)
        except HoldfastError as error:
            print("refused", error, flush=True)


def runs(*argv: str, times: int = 1) -> None:
    """Runs a verb again and again, and prints the exit codes. `{number}` in an argument counts."""
    for number in range(times):
        sys.argv = ["holdfast", *(each.format(number=number) for each in argv)]
        try:
            main()
        except SystemExit as end:
            print("code", end.code, flush=True)
