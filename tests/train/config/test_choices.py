"""The names that are written out are those that transformers takes, and those that are offered need nothing further."""

from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.train.config import choices

pytest.importorskip("accelerate")
transformers: Any = pytest.importorskip("transformers")


def test_every_optimizer_of_transformers_is_in_one_list() -> None:
    from transformers.training_args import OptimizerNames

    ours = [*choices.OPTIMIZERS, *choices.BITSANDBYTES_OPTIMIZERS, *choices.REFUSED_OPTIMIZERS]
    assert sorted(ours) == sorted(name.value for name in OptimizerNames)


def test_every_scheduler_of_transformers_is_in_one_list() -> None:
    from transformers import SchedulerType

    ours = [*choices.SCHEDULERS, *choices.REFUSED_SCHEDULERS]
    assert sorted(ours) == sorted(name.value for name in SchedulerType)


@pytest.mark.parametrize("name", choices.OPTIMIZERS)
def test_an_optimizer_that_is_offered_can_be_made(name: str, tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(output_dir=tmp_path, optim=name, learning_rate=1e-3, use_cpu=True)
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], **options)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(2))


@pytest.mark.skipif(choices.has_bitsandbytes(), reason="bitsandbytes is installed")
@pytest.mark.parametrize("name", choices.BITSANDBYTES_OPTIMIZERS)
def test_an_optimizer_of_bitsandbytes_cannot_be_made_without_it(name: str, tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(output_dir=tmp_path, optim=name, use_cpu=True)
    with pytest.raises(ImportError, match="bitsandbytes"):
        transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)


def _scheduler(name: str) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return transformers.get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=10)


@pytest.mark.parametrize("name", choices.SCHEDULERS)
def test_a_scheduler_that_is_offered_needs_no_arguments(name: str) -> None:
    scheduler = _scheduler(name)
    warms_up = scheduler.optimizer.param_groups[0]["lr"] < 0.1
    assert warms_up == (name not in choices.SCHEDULERS_WITHOUT_WARMUP)


@pytest.mark.parametrize("name", choices.REFUSED_SCHEDULERS)
def test_a_scheduler_that_is_refused_needs_arguments(name: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        _scheduler(name)


@pytest.mark.parametrize("name", choices.SCHEDULERS_THAT_WATCH_THE_LOSS)
def test_a_scheduler_that_watches_the_loss_is_refused_by_transformers_without_evaluation(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="requires an eval strategy"):
        transformers.TrainingArguments(output_dir=tmp_path, lr_scheduler_type=name, use_cpu=True)
