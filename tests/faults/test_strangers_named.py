"""A checkpoint that a stranger has crafted, and that the user names."""

import json
import re
import shutil
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from faults.ground import GROUP, Ground, give, pickled
from faults.programs import STEPS, fits, runs, words_of
from helpers.small_trainer import Fit

Record = Callable[[str, object], None]


def adapted() -> Any:
    """A model with adapters."""
    torch.manual_seed(5)
    return get_peft_model(Fit(), LoraConfig(r=2, target_modules=["line"]))


def index_of(path: str) -> bytes:
    """An index of weights that are all in one file."""
    names = ("line.weight", "line.bias")
    return json.dumps({"metadata": {"total_size": 16}, "weight_map": dict.fromkeys(names, path)}).encode()


def header_of(text: bytes) -> bytes:
    """A file of tensors with such a header and nothing else."""
    return struct.pack("<Q", len(text)) + text


def adapter_settings(**changes: Any) -> bytes:
    """What an adapter says of itself."""
    return json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["line"], **changes}).encode()


# Whether the checkpoint is one of adapters, a file that it lacks, and what is in it. At home the user has sevens.
CRAFTED: dict[str, tuple[bool, str, Callable[[Ground], Mapping[str, bytes]]]] = {
    "an index that leads out": (
        False,
        "model.safetensors",
        lambda place: {"model.safetensors.index.json": index_of("../../../../home/sevens.safetensors")},
    ),
    "an index by a whole path": (
        False,
        "model.safetensors",
        lambda place: {"model.safetensors.index.json": index_of(str(place.home / "sevens.safetensors"))},
    ),
    "a best that is elsewhere": (
        False,
        "",
        lambda place: {"trainer_state.json": json.dumps({"best_model_checkpoint": str(place.home)}).encode()},
    ),
    "a deep state": (False, "", lambda place: {"trainer_state.json": b"[" * 100_000 + b"]" * 100_000}),
    "a state in UTF-16": (False, "", lambda place: {"trainer_state.json": "{}".encode("utf-16")}),
    "a header in UTF-16": (False, "", lambda place: {"model.safetensors": header_of("{}".encode("utf-16"))}),
    "pickles": (
        False,
        "",
        lambda place: {name: pickled(place.ran) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")},
    ),
    "a scaler": (False, "", lambda place: {"scaler.pt": pickled(place.ran)}),
    "arguments": (False, "", lambda place: {"training_args.bin": pickled(place.ran)}),
    "weights in a pickle": (False, "model.safetensors", lambda place: {"pytorch_model.bin": pickled(place.ran)}),
    "an adapter in a pickle": (
        True,
        "adapter_model.safetensors",
        lambda place: {"adapter_model.bin": pickled(place.ran)},
    ),
    "an adapter's header in UTF-16": (
        True,
        "",
        lambda place: {"adapter_model.safetensors": header_of("{}".encode("utf-16"))},
    ),
    "an adapter of another base": (
        True,
        "",
        lambda place: {
            "adapter_config.json": adapter_settings(
                base_model_name_or_path=str(place.home),
                auto_mapping={"base_model_class": "system", "parent_library": "os"},
            )
        },
    ),
    "an adapter's deep settings": (True, "", lambda place: {"adapter_config.json": b"[" * 100_000 + b"]" * 100_000}),
    "an adapter's index that leads out": (
        True,
        "adapter_model.safetensors",
        lambda place: {"adapter_model.safetensors.index.json": index_of("../../../../home/sevens.safetensors")},
    ),
}


@pytest.mark.parametrize("place", [GROUP], indirect=True)
def test_security_s24_s32_with_two_accounts_a_crafted_checkpoint_that_is_named_runs_nothing_and_ends_in_words(
    place: Ground, record_property: Record
) -> None:
    """A checkpoint of another account that leads out of itself, or holds pickles and what nobody can read, is named."""
    sevens = {"line.weight": torch.full((1, 3), 7.0), "line.bias": torch.full((1,), 7.0)}
    save_file(sevens, place.home / "sevens.safetensors")
    give(place.home / "sevens.safetensors", place.user)
    place.remember()
    made, problems = {}, []
    for is_adapted in (False, True):
        run = place.run / str(is_adapted)
        with place.program(lambda: fits(run, model=adapted() if is_adapted else None)) as child:  # noqa: B023
            assert child.wait() == 0, child.said()
        made[is_adapted] = run / f"checkpoint-{STEPS - 1}"
    for number, (name, (is_adapted, without, files)) in enumerate(CRAFTED.items()):
        forged = place.forge(made[is_adapted], files(place), f"checkpoint-{number}x", without)
        forged = forged.rename(made[is_adapted].parent / "checkpoint-4-of-a-stranger")
        with place.program(lambda: tries(forged, is_adapted)) as child:  # noqa: B023
            code, said = child.wait(), child.said()
        codes = {int(number) for (number,) in words_of(said, "code")}
        if code or codes - {0, 3} or "Traceback" in said or re.search(r"^weights .*\b7\.0", said, re.MULTILINE):
            problems.append(f"{name}: {code} {codes}\n{said}")
        place.require_untouched()
        shutil.rmtree(forged)
    assert not problems, "\n".join(problems)
    record_property("injected", len(CRAFTED))


def tries(path: Path, is_adapted: bool) -> None:
    """Does all with a checkpoint that can be done by its name."""
    for verb in (["verify"], ["inspect"], ["export"]):
        runs(*verb, str(path), *([str(path.parent / uuid.uuid4().hex)] if verb == ["export"] else []))
    fits(path.parent / "other", resume=str(path), model=adapted() if is_adapted else None, save_strategy="no")
