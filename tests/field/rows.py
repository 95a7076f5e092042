"""The trainers of the matrix in docs/trainers.md, one row each."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from field.program import APART, path_of

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Row:
    """One trainer, and the program that uses it.

    Args:
        name: As the page has it.
        program: The file below `programs/` or `examples/`, or the whole command; `OUT` is the run directory.
        packages: The distributions that it is made of; their versions stand in the page.
        ranks: The number of processes.
        line: A line that it prints and that the page quotes; empty where nothing is to be said.
        env: Further variables of its environment.
    """

    name: str
    program: str | tuple[str, ...]
    packages: tuple[str, ...]
    ranks: int = 1
    line: str = ""
    env: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def command(self) -> list[str]:
        """What Python is called with."""
        if isinstance(self.program, str):
            return [str(PROGRAMS / self.program), "OUT"]
        return list(self.program)

    @property
    def missing(self) -> list[str]:
        """The distributions that are not installed here."""
        return [package for package in self.packages if not _version(package)]

    @property
    def versions(self) -> str:
        """The versions of what is installed here, in words."""
        return ", ".join(f"{package} {_version(package)}" for package in self.packages)


def _version(package: str) -> str:
    installed = distributions(name=package, path=[*sys.path, *map(str, APART.values())])
    return next((distribution.version for distribution in installed), "")


DEEPSPEED = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": path_of("deepspeed")}
"""The environment of a program that trains with DeepSpeed."""


def _example(name: str, file: str, packages: tuple[str, ...], ranks: int = 1) -> Row:
    """Returns the row of a file below `examples/`."""
    return Row(name, "example.py", packages, ranks, env={"EXAMPLE": file})


def _trl(name: str, kind: str, ranks: int = 1) -> Row:
    return Row(name, (str(PROGRAMS / "trl_trainer.py"), "OUT", kind), ("trl", "transformers"), ranks)


_AXOLOTL = ("axolotl", "transformers", "accelerate", "peft")


def _lightning(name: str, module: str, package: str, ranks: int = 1) -> Row:
    program = (str(PROGRAMS / "lightning_trainer.py"), "OUT", module, str(ranks))
    return Row(name, program, (package, "torch"), ranks)


ROWS = (
    Row("transformers `Trainer`", "transformers_trainer.py", ("transformers", "accelerate", "torch")),
    Row("transformers `Trainer`, two processes", "transformers_trainer.py", ("transformers", "accelerate"), ranks=2),
    Row(
        "transformers `Trainer` with FSDP2 through accelerate, on a CPU, two processes",
        "transformers_trainer.py",
        ("transformers", "accelerate"),
        ranks=2,
        line="shards nothing here (MULTI_CPU): each process has all of the model, and checkpoints are plain ones",
        env={"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    ),
    _example("accelerate loop", "accelerate_loop.py", ("accelerate", "torch")),
    _example("accelerate loop, two processes", "accelerate_loop.py", ("accelerate", "torch"), ranks=2),
    *(
        Row(
            f"transformers `Trainer` with DeepSpeed, ZeRO {stage}, two processes",
            "transformers_deepspeed.py",
            ("deepspeed", "transformers", "accelerate"),
            ranks=2,
            env={"STAGE": str(stage), **DEEPSPEED},
        )
        for stage in (1, 2, 3)
    ),
    _example("nanoGPT-style loop", "nanogpt_loop.py", ("torch",)),
    _example("timm", "timm_loop.py", ("timm", "torchvision")),
    _example("ignite", "ignite_loop.py", ("pytorch-ignite",)),
    _example("torch_geometric", "torch_geometric_loop.py", ("torch-geometric",)),
    _trl("TRL `SFTTrainer`, LoRA", "sft"),
    _trl("TRL `DPOTrainer`, `sync_ref_model`", "dpo"),
    _trl("TRL `RewardTrainer`", "reward"),
    _trl("TRL `KTOTrainer`", "kto"),
    _trl("TRL `RLOOTrainer`, `steps_per_generation`, `num_iterations`, `sync_ref_model`", "rloo"),
    _trl("TRL `GRPOTrainer`, `steps_per_generation`, `num_iterations`, `sync_ref_model`", "grpo"),
    _trl("TRL `GRPOTrainer`, two processes", "grpo", ranks=2),
    _trl("TRL `ORPOTrainer`", "orpo"),
    Row(
        "sentence-transformers, a loss with weights and one without",
        "sentence_transformers_trainer.py",
        ("sentence-transformers", "transformers"),
    ),
    Row("Axolotl, full", "axolotl_causal.py", _AXOLOTL),
    Row("Axolotl, full, two processes", "axolotl_causal.py", _AXOLOTL, ranks=2),
    Row("Axolotl, LoRA", "axolotl_causal.py", _AXOLOTL, env={"LORA": "1"}),
    Row("Axolotl, LoRA, two processes", "axolotl_causal.py", _AXOLOTL, ranks=2, env={"LORA": "1"}),
    _lightning("Lightning", "lightning.pytorch", "lightning"),
    _lightning("`pytorch_lightning`", "pytorch_lightning", "pytorch-lightning"),
    _lightning("Lightning, DDP, two processes", "lightning.pytorch", "lightning", ranks=2),
    Row("Fabric, a loop", "fabric_loop.py", ("lightning",)),
)


@dataclass(frozen=True)
class Refused:
    """Something that `attach` does not take.

    Args:
        name: As the page has it.
        make: Makes one.
        words: The end of the refusal, and what it names in its place.
    """

    name: str
    make: Callable[[], Any]
    words: tuple[str, str]


def _of(module: str, name: str) -> Any:
    """Returns an object of that class where trainers are tried, and elsewhere of one that goes by its name."""
    if not os.environ.get("HOLDFAST_TRAINERS") or not importlib.util.find_spec(module.partition(".")[0]):
        return type(name, (), {"__module__": module})()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import
        return object.__new__(getattr(importlib.import_module(module), name))


REFUSED = (
    Refused("`None`", lambda: None, ("this is None", "trainer = Trainer(...)")),
    Refused(
        "a module", lambda: torch.nn.Linear(1, 1), ("this is a model, Linear", "attach the trainer that trains it")
    ),
    Refused(
        "setfit `Trainer`",
        lambda: _of("setfit.trainer", "Trainer"),
        ("this is setfit's Trainer", "train its body with sentence_transformers.SentenceTransformerTrainer"),
    ),
    Refused(
        "accelerate `Accelerator`",
        lambda: _of("accelerate.accelerator", "Accelerator"),
        ("this is accelerate's Accelerator", "holdfast.Checkpointer(output_dir, model=..., optimizer=...)"),
    ),
    Refused(
        "ignite `Engine`",
        lambda: _of("ignite.engine.engine", "Engine"),
        ("this is ignite's Engine", "call its step() in a handler of the engine's ITERATION_COMPLETED"),
    ),
    Refused(
        "Fabric",
        lambda: _of("lightning.fabric.fabric", "Fabric"),
        ("this is lightning's Fabric", "with what setup() returned"),
    ),
    Refused(
        "DeepSpeed `DeepSpeedEngine`",
        lambda: _of("deepspeed.runtime.engine", "DeepSpeedEngine"),
        ("this is deepspeed's DeepSpeedEngine", "attach the transformers Trainer whose arguments have deepspeed=..."),
    ),
    Refused(
        "any other object",
        lambda: _of("mine", "Trainer"),
        ("this is mine's Trainer", "holdfast.Checkpointer(output_dir, model=..., optimizer=...)"),
    ),
)
