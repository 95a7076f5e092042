"""A Trainer's place in its data, where the number of steps alone does not tell it. Real Trainers, in this process."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

import holdfast
from helpers import small_trainer as small
from helpers.full import in_full
from holdfast.errors import UnsupportedError

SAMPLES = 20


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(index)])}


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rows = Rows()
        yield from (rows[index] for index in range(SAMPLES))


class Model(torch.nn.Module):
    """One that keeps which samples it was trained on, with dropout, which draws from the process's generator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(x[:, 0].int().tolist())
        return {"loss": torch.nn.functional.dropout(self.weight(x / SAMPLES), 0.5).pow(2).mean()}


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Asks for a save, and a stop, at a step; and ends an epoch before its end, where that is wanted."""

    def __init__(self, run: Path, step: int | None, cut_at: int | None = None) -> None:
        self.run, self.step, self.cut_at = run, step, cut_at
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.rates.append(others["lr_scheduler"].get_last_lr()[0])
        control.should_epoch_stop = state.global_step == self.cut_at
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Run:
    """One start of a training, to its end or to a stop."""

    def __init__(
        self,
        out: Path,
        stop: int | None = None,
        *,
        resume: bool = False,
        data: Any = None,
        cut_at: int | None = None,
        kind: type[Trainer] = Trainer,
        **options: Any,
    ) -> None:
        arguments = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 3,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "save_strategy": "no",
            "learning_rate": 0.1,
            **options,
        }
        args = TrainingArguments(output_dir=str(out), **arguments)
        self.model = Model()
        self.callback = StopAt(out, stop, cut_at)
        self.trainer = kind(model=self.model, args=args, train_dataset=data or Rows(), callbacks=[self.callback])
        self.lines: list[str] = []
        holdfast.attach(self.trainer)
        self.trainer.train(resume_from_checkpoint="auto" if resume else None)
        self.weights = [parameter.tolist() for parameter in self.model.parameters()]
        loader = self.trainer.callback_handler.train_dataloader
        workers = getattr(loader, "base_dataloader", loader)._iterator
        if hasattr(workers, "_shutdown_workers"):
            workers._shutdown_workers()  # those that are collected with the trainer take five seconds to end

    @property
    def samples(self) -> list[int]:
        return [sample for batch in self.model.seen for sample in batch]

    @property
    def steps(self) -> int:
        return int(self.trainer.state.global_step)


def in_epochs(*runs: Run) -> list[Counter[int]]:
    """Counts how often each sample was seen in each epoch."""
    samples = [sample for run in runs for sample in run.samples]
    return [Counter(samples[begin : begin + SAMPLES]) for begin in range(0, len(samples), SAMPLES)]


EACH_ONCE = Counter(range(SAMPLES))


ALONE = in_full("both together, and another seed, stay")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        pytest.param({"per_device_train_batch_size": 2}, 3 + 4 + 20, id="smaller", marks=ALONE),
        pytest.param({"per_device_train_batch_size": 8}, 3 + 1 + 6, id="larger", marks=ALONE),
        pytest.param({"per_device_train_batch_size": 3}, 3 + 3 + 14, id="which does not divide", marks=ALONE),
        pytest.param({"gradient_accumulation_steps": 2}, 3 + 1 + 6, id="accumulated", marks=ALONE),
        pytest.param({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, 3 + 2 + 8, id="both"),
        pytest.param({"seed": 7}, 15, id="another seed"),
    ],
)
def test_an_epoch_goes_on_in_its_order_with_what_it_has_not_seen(
    tmp_path: Path, changes: dict[str, Any], steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run(tmp_path, stop=3)
    second = Run(tmp_path, resume=True, **changes)
    whole = Run(tmp_path / "whole", num_train_epochs=1)
    assert first.samples + second.samples[: SAMPLES - 12] == whole.samples
    assert in_epochs(first, second) == [EACH_ONCE] * 3
    assert second.steps == steps
    assert second.callback.rates[-1] == 0.0, "the schedule ends with the training"
    assert second.trainer.state.epoch == 3.0
    said = [line for line in caplog.messages if line.startswith("data: ")]
    assert len(said) == 1
    assert "the 8 of 20 samples that are left of epoch 0 go on in their order" in said[0]


@in_full("one change, and resumes after it, stay")
def test_batches_may_change_again_and_again(tmp_path: Path) -> None:
    runs = [Run(tmp_path, stop=2)]
    for stop, size in ((4, 3), (5, 3), (7, 5), (9, 5), (12, 2)):
        runs.append(Run(tmp_path, stop=stop, resume=True, per_device_train_batch_size=size))
        assert runs[-1].steps == stop
    runs.append(Run(tmp_path, resume=True, per_device_train_batch_size=2))
    assert in_epochs(*runs) == [EACH_ONCE] * 3
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("checkpoint-*/MANIFEST.json"))]
    assert {manifest["step"]: manifest.get("requires") for manifest in manifests if manifest["step"] in (2, 4)} == {
        2: None,
        4: ["trainer_data"],
    }


def test_what_was_resumed_with_other_batches_is_resumed_exactly(tmp_path: Path) -> None:
    for name in ("cut", "whole"):
        Run(tmp_path / name, stop=3)
    whole = Run(tmp_path / "whole", resume=True, per_device_train_batch_size=3)
    for stop in (4, 6, 13, None):  # in the rest of the epoch, at its end, in the next
        cut = Run(tmp_path / "cut", stop=stop, resume=True, per_device_train_batch_size=3)
    assert cut.weights == whole.weights
    assert cut.steps == whole.steps


def test_max_steps_is_kept(tmp_path: Path) -> None:
    first = Run(tmp_path, stop=3, max_steps=12)
    second = Run(tmp_path, resume=True, max_steps=12, per_device_train_batch_size=8)
    assert second.steps == 12
    assert in_epochs(first, second)[:3] == [EACH_ONCE] * 3


def test_what_drop_last_cuts_off_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Run(tmp_path, stop=3, num_train_epochs=1)
    second = Run(tmp_path, resume=True, num_train_epochs=1, per_device_train_batch_size=5, dataloader_drop_last=True)
    assert "in batches of 5; 3 are cut off, too few for a batch" in caplog.text
    assert len(set(first.samples + second.samples)) == SAMPLES - 3


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from reversed(range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES


class OwnOrder(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Backwards()


def test_an_order_of_the_users_own_goes_on_or_is_refused_by_name(tmp_path: Path) -> None:
    first = Run(tmp_path, stop=3, kind=OwnOrder)
    with pytest.raises(UnsupportedError, match="the order of a Backwards cannot be computed again"):
        Run(tmp_path, resume=True, kind=OwnOrder, per_device_train_batch_size=2)
    assert first.samples + Run(tmp_path, resume=True, kind=OwnOrder).samples == [*reversed(range(SAMPLES))] * 3


class OwnLoader(Trainer):  # type: ignore[misc]
    """One with a loader that no accelerate has prepared, which draws its order from a generator of its own."""

    def get_train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(self.train_dataset, 4, shuffle=True, generator=generator, collate_fn=self.data_collator)


@pytest.mark.parametrize("stop", [5, 7])
def test_the_generator_of_a_loader_of_the_users_own_goes_on(tmp_path: Path, stop: int) -> None:
    whole = Run(tmp_path / "whole", kind=OwnLoader)
    first = Run(tmp_path / "run", stop, kind=OwnLoader)
    second = Run(tmp_path / "run", resume=True, kind=OwnLoader)
    assert first.samples + second.samples == whole.samples and second.weights == whole.weights


def test_other_data_begins_the_epoch_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path, stop=7)
    second = Run(tmp_path, resume=True, data=Rows(24))
    assert "data: the data set has 24 samples and had 20: epoch 1 begins anew" in caplog.text
    assert Counter(second.samples) == Counter([*range(24)] * 2)
    assert second.steps == 7 + 2 * 6
    assert second.callback.rates[-1] == 0.0


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_stream_goes_on_in_its_later_passes(tmp_path: Path, stop: int) -> None:
    whole = Run(tmp_path / "whole", data=Stream(), max_steps=12)
    first = Run(tmp_path / "cut", stop=stop, data=Stream(), max_steps=12)
    second = Run(tmp_path / "cut", resume=True, data=Stream(), max_steps=12)
    assert first.samples + second.samples == whole.samples
    assert second.weights == whole.weights


def test_a_stream_goes_on_in_batches_of_another_size_where_they_fit(tmp_path: Path) -> None:
    first = Run(tmp_path, stop=7, data=Stream(), max_steps=12)
    second = Run(tmp_path, resume=True, data=Stream(), max_steps=12, per_device_train_batch_size=2)
    assert second.samples == [*range(8, 18)]
    with pytest.raises(UnsupportedError, match="the order of a Stream cannot be computed again"):
        Run(tmp_path, resume=True, data=Stream(), max_steps=14, per_device_train_batch_size=3)
    assert first.samples[-8:] == [*range(8)]


def test_an_epoch_that_a_callback_cut_short_is_not_gone_on_with(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", cut_at=3)
    first = Run(tmp_path / "cut", stop=5, cut_at=3)
    second = Run(tmp_path / "cut", resume=True)
    assert first.samples + second.samples == whole.samples
    assert second.weights == whole.weights


@pytest.mark.parametrize("stop", [3, 5])
def test_workers_that_outlive_an_epoch_draw_no_seed_for_the_next(tmp_path: Path, stop: int) -> None:
    workers: dict[str, Any] = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    whole = Run(tmp_path / "whole", **workers)
    Run(tmp_path / "cut", stop=stop, **workers)
    assert Run(tmp_path / "cut", resume=True, **workers).weights == whole.weights


class PreparedKnowing(Trainer):  # type: ignore[misc]
    """A trainer with whose loader accelerate prepares one that knows its own position."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        self.accelerator.dataloader_config.use_stateful_dataloader = True
        return super().get_train_dataloader()  # type: ignore[no-any-return]


class Knowing(Trainer):  # type: ignore[misc]
    """A trainer whose loader knows its own position."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        from torchdata.stateful_dataloader import StatefulDataLoader

        sampler = self._get_train_sampler()
        return StatefulDataLoader(  # type: ignore[no-any-return]
            self.train_dataset, batch_size=4, sampler=sampler, collate_fn=self.data_collator
        )


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("stop", [3, 7])
@pytest.mark.parametrize("kind", [PreparedKnowing, Knowing])
def test_a_loader_that_knows_its_position_goes_on(tmp_path: Path, stop: int, kind: type[Trainer]) -> None:
    whole = Run(tmp_path / "whole", kind=kind)
    first = Run(tmp_path / "cut", stop=stop, kind=kind)
    second = Run(tmp_path / "cut", resume=True, kind=kind)
    assert first.samples + second.samples == whole.samples
    assert second.weights == whole.weights


class Noisy(Rows):
    """Samples with noise from a generator of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = random.Random(1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([index + self.generator.random() / 2])}


class Shuffled(Backwards):
    def __init__(self) -> None:
        self.mine = np.random.default_rng(3)

    def __iter__(self) -> Iterator[int]:
        yield from self.mine.permutation(SAMPLES).tolist()


class OwnShuffle(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Shuffled()


@pytest.mark.parametrize("stop", [3, 5, 7])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_generators_inside_the_data_go_on(tmp_path: Path, stop: int, accumulate: int) -> None:
    options: dict[str, Any] = {"kind": OwnShuffle, "gradient_accumulation_steps": accumulate, "num_train_epochs": 4}
    whole = Run(tmp_path / "whole", data=Noisy(), **options)
    first = Run(tmp_path / "cut", stop=stop, data=Noisy(), **options)
    second = Run(tmp_path / "cut", resume=True, data=Noisy(), **options)
    assert first.samples + second.samples == whole.samples
    assert second.weights == whole.weights


class Repeated(Backwards):
    """One as TRL's, which accelerate prepares and does not seed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(SAMPLES, generator=self.generator).tolist()


class OwnGenerator(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Repeated()


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_the_generator_of_a_sampler_of_the_users_own_goes_on(tmp_path: Path, stop: int) -> None:
    whole = Run(tmp_path / "whole", kind=OwnGenerator)
    first = Run(tmp_path / "cut", stop, kind=OwnGenerator)
    second = Run(tmp_path / "cut", resume=True, kind=OwnGenerator)
    assert first.samples + second.samples == whole.samples and second.weights == whole.weights


def test_a_save_in_the_epoch_after_one_whose_end_a_resume_made_up_for_is_of_that_epoch(tmp_path: Path) -> None:
    whole = small.train(tmp_path / "whole")
    cut = tmp_path / "cut"
    small.train(cut, [small.Stop(small.STEPS_PER_EPOCH)])
    small.train(cut, [small.Stop(small.STEPS_PER_EPOCH + 2)])
    resumed = small.train(cut)
    assert small.weights(resumed) == small.weights(whole)
    epochs = [[entry["epoch"] for entry in trainer.state.log_history] for trainer in (resumed, whole)]
    assert epochs[0] == epochs[1]
