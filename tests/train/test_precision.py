from collections.abc import Callable
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.train.config.load import TrainConfig
from holdfast.train.precision import Machine, choose, detect

OLD_CPU = Machine("this CPU", cuda=False, bf16=False, tf32=False)
NEW_CPU = Machine("this CPU", cuda=False, bf16=True, tf32=False)
OLD_CARD = Machine("Tesla V100", cuda=True, bf16=False, tf32=False)
NEW_CARD = Machine("NVIDIA A100", cuda=True, bf16=True, tf32=True)

Keys = Callable[..., TrainConfig]


@pytest.fixture
def keys() -> Keys:
    def make(**given: Any) -> TrainConfig:
        needed = {"base_model": "m", "learning_rate": 1.0, "datasets": [{"path": "d", "type": "completion"}]}
        return TrainConfig.model_validate({**needed, **given})

    return make


@pytest.mark.parametrize(
    ("machine", "bf16", "fp16", "tf32"),
    [
        (OLD_CPU, False, False, None),
        (NEW_CPU, True, False, None),
        (OLD_CARD, False, True, False),
        (NEW_CARD, True, False, True),
    ],
)
def test_auto_is_what_is_fast_on_the_machine(
    keys: Keys, machine: Machine, bf16: bool, fp16: bool, tf32: bool | None
) -> None:
    chosen = choose(keys(), machine)
    assert (chosen.bf16, chosen.fp16, chosen.tf32, chosen.cuda) == (bf16, fp16, tf32, machine.cuda)


@pytest.mark.parametrize(
    ("given", "machine", "words"),
    [
        ({}, OLD_CPU, "fp32: this CPU has no native bf16"),
        ({}, NEW_CARD, "bf16: NVIDIA A100 has it natively; tf32 for what stays in fp32"),
        ({}, OLD_CARD, "fp16: Tesla V100 has no bf16"),
        ({"fp16": False}, OLD_CARD, "fp32: Tesla V100 has no native bf16"),
        ({"fp16": True}, NEW_CARD, "fp16: fp16 is set"),
        ({"bf16": False}, NEW_CPU, "fp32: bf16 is turned off"),
        ({"bf16": True}, OLD_CPU, "bf16: bf16 is set, which this CPU can only emulate"),
        ({"tf32": True}, OLD_CPU, "has no tf32, so that key changes nothing"),
    ],
)
def test_the_choice_is_told_with_its_reason(keys: Keys, given: dict[str, Any], machine: Machine, words: str) -> None:
    sentence = choose(keys(**given), machine).sentence
    assert words in sentence
    assert "\n" not in sentence


def test_tf32_can_be_turned_off(keys: Keys) -> None:
    assert choose(keys(tf32=False), NEW_CARD).tf32 is False


@pytest.mark.parametrize(
    ("given", "machine", "words"),
    [
        ({"fp16": True}, OLD_CPU, "fp16: true needs a CUDA device"),
        ({"bf16": True}, OLD_CARD, "Tesla V100 has no bf16"),
        ({"bf16": True, "fp16": True}, NEW_CARD, "only one of the two"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(
    keys: Keys, given: dict[str, Any], machine: Machine, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(keys(**given), machine)


def test_weights_that_are_not_trained_take_the_chosen_format(keys: Keys) -> None:
    import torch

    machines = {OLD_CPU: torch.float32, NEW_CPU: torch.bfloat16, OLD_CARD: torch.float16, NEW_CARD: torch.bfloat16}
    assert {machine: choose(keys(), machine).frozen_dtype() for machine in machines} == machines


def test_this_machine_is_looked_at_as_torch_looks_at_it() -> None:
    import torch

    found = detect()
    assert found.cuda == torch.cuda.is_available()
    if not found.cuda:
        able = torch.cpu.get_capabilities()
        assert found.bf16 == bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
