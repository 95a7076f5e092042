"""A Trainer that is saved at each of its boundaries, and resumed from each: it ends as one without Holdfast."""

import copy
import hashlib
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pyarrow import parquet
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until

When = Literal["log", "late"]
"""The time of a request: as a step's loss is logged, or in the next step, right before its update."""

# What is measured, and what a resume counts anew.
_TIMES = ("_runtime", "_per_second", "step_time")


class Asking(TrainerCallback):  # type: ignore[misc]
    """Asks for a save of each step, and waits there until it is durable."""

    def __init__(self, when: When) -> None:
        self._when = when
        self._asked = 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._when == "log":
            self._ask(Path(args.output_dir), state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._when == "late":
            self._ask(Path(args.output_dir), state.global_step)

    def _ask(self, run: Path, step: int) -> None:
        if step > self._asked:
            self._asked = step
            saved = len(events(run, "saved"))
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: len(events(run, "saved")) > saved or events(run, "failed"))


def compare(name: str, make: Callable[[Path], Trainer], when: When = "late", table: str = "") -> None:
    """Prints whether a trainer ends alike, from each of its boundaries, as one without Holdfast.

    Args:
        name: Its name, which its folders begin with.
        make: Makes one, with an `output_dir`.
        when: The time of the requests.
        table: The folder below `output_dir` whose files are to be alike as well, if any.
    """
    _be_quiet()
    alone = make(Path(f"{name}-alone"))
    alone.remove_callback(PrinterCallback)
    alone.train()
    asked = Path(f"{name}-{when}")
    problems = _different(alone, _trained(make, asked, Asking(when)), table)
    steps = sorted(int(path.name.partition("-")[2]) for path in asked.glob("checkpoint-*"))
    for step in steps:
        run = Path(f"{name}-{when}-{step}")
        shutil.copytree(asked / f"checkpoint-{step}", run / f"checkpoint-{step}")
        problems += [f"from {step}: {problem}" for problem in _different(alone, _trained(make, run), table)]
    shown = "".join(f"\n  {problem}" for problem in problems[:20])
    print(f"{name} {when} {'differs' if problems else 'same'} from {steps}{shown}", flush=True)


def _trained(make: Callable[[Path], Trainer], run: Path, *callbacks: Any) -> Trainer:
    trainer = make(run)
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    holdfast.attach(trainer).train(resume_from_checkpoint="auto")
    return trainer


def _different(alone: Trainer, other: Trainer, table: str) -> list[str]:
    problems = [] if _digest(alone.model) == _digest(other.model) else ["the weights differ"]
    logged, expected = _logged(other), _logged(alone)
    if len(logged) != len(expected):
        problems.append(f"{len(logged)} lines of the log, not {len(expected)}")
    for line, wanted in zip(logged, expected, strict=False):
        names = [name for name in {**line, **wanted} if repr(line.get(name)) != repr(wanted.get(name))]
        problems += [f"step {line['step']}: {name}: {line.get(name)}, not {wanted.get(name)}" for name in names]
    if table:
        there, wanted = _table(other, table), _table(alone, table)
        problems += [f"{name} differs" for name, rows in there.items() if rows != wanted[name]]
    return problems


def _logged(trainer: Trainer) -> list[dict[str, Any]]:
    history = copy.deepcopy(trainer.state.log_history)
    return [{name: value for name, value in line.items() if not name.endswith(_TIMES)} for line in history]


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _table(trainer: Trainer, folder: str) -> dict[str, Any]:
    files = sorted(Path(trainer.args.output_dir, folder).glob("*.parquet"))
    return {file.name: parquet.read_table(file).to_pydict() for file in files}


def _be_quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
