from typing import Any

import pytest
import torch
from torch import nn, optim

from holdfast.errors import ConfigError, UnsupportedError
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.registry import parts_of
from holdfast.state.stateful import StatefulPart


def test_everything_gets_the_part_of_its_kind_in_the_order_given() -> None:
    model = nn.Linear(1, 1)
    sgd = optim.SGD(model.parameters(), 0.1)
    schedule = optim.lr_scheduler.StepLR(sgd, 1)
    parts = parts_of(
        {"optimizer": sgd, "scheduler": schedule, "model": model, "ema": optim.swa_utils.AveragedModel(model)}
    )
    assert [type(part) for part in parts] == [OptimizerPart, StatefulPart, ModelPart, ModelPart]
    assert [part.name for part in parts] == ["optimizer", "scheduler", "model", "ema"]


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ({"a/b": nn.Linear(1, 1)}, "'a/b': no name for a part"),
        ({"": nn.Linear(1, 1)}, "'': no name for a part"),
        ({".hidden": nn.Linear(1, 1)}, "'.hidden': no name for a part"),
        ({"model.aside": nn.Linear(1, 1)}, "'model.aside': no name for a part"),
        ({"random": nn.Linear(1, 1)}, "random: this name is taken by 'random'"),
        ({"Data": nn.Linear(1, 1)}, "Data: this name is taken by 'data'"),
        ({"training": nn.Linear(1, 1)}, "training: this name is taken by 'training'"),
        ({"manifest": nn.Linear(1, 1)}, "manifest: this name is taken by 'MANIFEST'"),
        ({"net": nn.Linear(1, 1), "Net": nn.Linear(1, 1)}, "Net: this name is taken by 'net'"),
        ({"thing": object()}, "thing: an object has no state_dict and load_state_dict to save it by"),
        ({"numbers": [1, 2]}, "numbers: a list has no state_dict"),
        ({"o": optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, "o: 2 of its parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_part_is_refused(named: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parts_of(named)
    assert len(refused.value.problems) == 1 and refused.value.problems[0].startswith(problem)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parts_of({"a": 1, "b": 2})
    assert len(refused.value.problems) == 2


def test_what_deepspeed_has_taken_apart_is_refused_by_name() -> None:
    """tests/field has its engine itself."""
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})()
    wrapper = type("Wrapper", (), {"optimizer": type("Zero", (), {"__module__": "deepspeed.runtime.zero"})()})()
    for name, registered, kind in (("model", engine, "DeepSpeedEngine"), ("optimizer", wrapper, "Zero")):
        with pytest.raises(UnsupportedError, match=f"{name}: a plain loop cannot save DeepSpeed's {kind}") as refused:
            parts_of({name: registered})
        assert "TrainingArguments(deepspeed=...)" in str(refused.value.hint)


def test_an_optimizer_of_accelerate_that_scales_comes_with_its_scaler() -> None:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    model = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = AcceleratedOptimizer(optim.SGD(model.parameters(), 0.1), scaler=scaler)
    with pytest.raises(ConfigError) as refused:
        parts_of({"model": model, "optimizer": optimizer})
    assert refused.value.problems == [
        "optimizer: it scales gradients, and the scaler is no part; give scaler=accelerator.scaler beside it"
    ]
    assert len(parts_of({"model": model, "optimizer": optimizer, "scaler": scaler})) == 3
    # Without mixed precision accelerate's scaler is there and does nothing, or is not there.
    idle = AcceleratedOptimizer(optim.SGD(model.parameters(), 0.1), scaler=torch.amp.GradScaler("cpu", enabled=False))
    assert len(parts_of({"model": model, "optimizer": idle})) == 2
