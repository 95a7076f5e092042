"""TRL's trainers are saved at each boundary, while the next step is under way, and resumed from each: all is equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.trainings import Launcher

PROGRAM = """
import json, sys
from pathlib import Path
from helpers.every_boundary import compare
from helpers.trl_trainers import make
for name, kind, when, settings in json.loads(sys.argv[1]):
    table = "completions" if settings.get("log_completions") else ""
    base = settings.pop("base", None)
    compare(name, lambda out: make(kind, out, base=base and Path(base), **settings), when, table)
"""

# A loss is logged every third step, so that sums are carried; two batches make a step, so that counters are two.
USUAL = {"max_steps": 5, "gradient_accumulation_steps": 2, "logging_steps": 3, "save_strategy": "no"}
GENERATED = {"steps_per_generation": 4, "num_iterations": 2}
# The entropy of so small a model falls below that in its third step; from then on the coefficient goes up.
ENTROPY = {"use_adaptive_entropy": True, "entropy_coef": 0.02, "entropy_target": 4.154, "entropy_coef_delta": 0.01}
MOVED = {"sync_ref_model": True, "ref_model_sync_steps": 2}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
FROM_DISK = {"base": "base", "beta": 0.1}
ALL_OF_GRPO = {**GENERATED, **MOVED, **FROM_DISK, **ENTROPY, "log_completions": True, "num_completions_to_print": 0}

Cell = tuple[str, str, str, dict[str, Any]]
QUICK: list[Cell] = [
    ("grpo", "grpo", "late", ALL_OF_GRPO),
    ("grpo", "grpo", "log", {**FROM_DISK, **GENERATED}),
    ("orpo", "orpo", "late", {"max_steps": 3}),
]
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"plain": {}, "lora": {"lora": True}, "evaluated": EVALUATED},
    "dpo": {"plain": {}, "lora": {"lora": True}, "evaluated": EVALUATED, "moved": MOVED},
    "reward": {"plain": {}, "lora": {"lora": True}, "evaluated": EVALUATED},
    "kto": {"plain": {}, "lora": {"lora": True}, "moved": MOVED},
    "rloo": {
        "from-disk": FROM_DISK,
        "lora": {"lora": True},
        "generated": {**GENERATED, **FROM_DISK},
        "moved": {**GENERATED, **FROM_DISK, **MOVED},
    },
    "grpo": {
        "plain": {},
        "lora": {"lora": True, "beta": 0.1, "num_iterations": 3},
        "generated": GENERATED,
        "uneven": {"steps_per_generation": 3},
        "evaluated": {**GENERATED, **EVALUATED},
        "all": ALL_OF_GRPO,
    },
    "orpo": {"plain": {}, "lora": {"lora": True}, "evaluated": EVALUATED},
}
CELLS: list[Cell] = [
    (f"{kind}-{name}", kind, when, settings)
    for kind, variants in VARIANTS.items()
    for name, settings in variants.items()
    for when in ("log", "late")
]


def outcomes(launcher: Launcher, cwd: Path, cells: list[Cell]) -> str:
    told = [(name, kind, when, {**USUAL, **settings}) for name, kind, when, settings in cells]
    process = launcher.start(json.dumps(told), cwd=cwd, program=PROGRAM)
    assert process.wait(300) == 0, process.output
    return process.output


def test_what_trl_generates_moves_and_measures_comes_back_at_every_boundary(launcher: Launcher, tmp_path: Path) -> None:
    output = outcomes(launcher, tmp_path, QUICK)
    assert "grpo late same from [1, 2, 3, 4]" in output, output
    assert "grpo log same from [3, 5]" in output, output
    assert "orpo late same from [1, 2]" in output, output


@in_full("GRPO with all of it at once, and ORPO, stay")
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "kto", "rloo", "grpo", "orpo"])
def test_each_of_trls_trainers_is_exact_at_every_boundary(launcher: Launcher, tmp_path: Path, kind: str) -> None:
    cells = [cell for cell in CELLS if cell[1] == kind]
    output = outcomes(launcher, tmp_path, cells)
    assert output.count(" same from [") == len(cells) and "differs" not in output, output
