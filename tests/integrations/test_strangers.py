import subprocess
import sys
from typing import Any

import pytest
from accelerate import Accelerator
from transformers import Trainer

import holdfast
from holdfast.errors import UnsupportedError


def of(module: str, name: str) -> Any:
    """An object of a package that need not be there."""
    return type(name, (), {"__module__": module})()


# What stands in docs/trainers.md is in tests/field/test_trainers.py.
@pytest.mark.parametrize(
    ("stranger", "named", "instead"),
    [
        (Trainer, "the class Trainer", "Trainer(...)"),
        (Accelerator(cpu=True), "accelerate's Accelerator", "give it what prepare() returned"),
        (of("lightning_fabric.fabric", "Fabric"), "lightning_fabric's Fabric", "with what setup() returned"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_trainer_is_refused_by_name_with_what_to_use(stranger: Any, named: str, instead: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        holdfast.attach(stranger)
    assert str(caught.value).endswith(f", and this is {named}")
    assert str(caught.value).startswith("attach takes a trainer of transformers")
    assert instead in str(caught.value.hint)


def test_a_refusal_loads_no_trainer_of_anybodys() -> None:
    script = """
import sys, holdfast
try:
    holdfast.attach(3)
except holdfast.HoldfastError as error:
    print(error, {"torch", "transformers", "lightning"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("and this is builtins's int set()\n")
