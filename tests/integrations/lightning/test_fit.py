"""A Lightning fit that is stopped and resumed, beside the same one without Holdfast that never was."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="Lightning is not installed")

import holdfast
from helpers.full import in_full
from helpers.small_lightning import (
    Ask,
    Fit,
    OfAnEpoch,
    Points,
    Stream,
    TwoOptimizers,
    callbacks,
    fit,
    lightning,
    loader,
    trainer,
    weights,
)
from helpers.trainings import events
from holdfast.store import catalog

# Lightning warns of loaders without workers, of few processors, of what it has not been given.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def _several(workers: int) -> Any:
    return {"a": loader(workers), "b": loader(count=10, seed=7)}


def _averaging() -> list[Any]:
    return [callbacks.StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=2)]


def _stopping(least: float = 0.5) -> list[Any]:
    return [callbacks.EarlyStopping("train_epoch", patience=1, min_delta=least)]


def _stream(workers: int) -> Any:
    return DataLoader(Stream(), batch_size=4)


def _made_anew(workers: int) -> Any:
    return OfAnEpoch()


CASES: dict[str, tuple[Ask, dict[str, Any]]] = {
    "in mid-epoch": (Ask(9), {}),
    "in the first epoch": (Ask(5), {}),
    "in a validation of its own in mid-epoch": (Ask(9, "validation"), {"val_check_interval": 0.5}),
    "in a validation at an epoch's end": (Ask(7, "validation"), {}),
    "with gradients that add up": (Ask(5), {"accumulate_grad_batches": 2}),
    "with max_steps": (Ask(9), {"max_steps": 17, "max_epochs": -1}),
    "with epochs that are cut short": (Ask(5), {"limit_train_batches": 4}),
    "with two optimizers by hand": (Ask(18), {"module": TwoOptimizers}),
    "with a stop that goes by an epoch's mean": (Ask(9), {"callbacks": _stopping, "max_epochs": 6}),
    "with a stop that may not be yet": (
        Ask(15),
        {"callbacks": lambda: _stopping(50), "min_epochs": 3, "max_epochs": 6},
    ),
    "with gradients that add up otherwise in each epoch": (
        Ask(9),
        {"callbacks": lambda: [callbacks.GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})]},
    ),
    "with loaders that are made anew": (Ask(9), {"data": _made_anew, "reload_dataloaders_every_n_epochs": 2}),
    "with loaders that are made anew, at an epoch's end": (
        Ask(14),
        {"data": _made_anew, "reload_dataloaders_every_n_epochs": 1},
    ),
    "with an average of the weights": (Ask(9), {"callbacks": lambda: [callbacks.EMAWeightAveraging(decay=0.9)]}),
    "with SWA": (Ask(24), {"callbacks": _averaging, "norm": True, "max_epochs": 5}),
    "with SWA, in a validation": (Ask(14, "validation"), {"callbacks": _averaging, "max_epochs": 4}),
    "with several loaders": (Ask(9), {"data": _several}),
    "with data without a length": (Ask(9), {"data": _stream}),
    "with data without a length, in a validation at an epoch's end": (Ask(7, "validation"), {"data": _stream}),
    "with workers": (Ask(10), {"workers": 2}),
    "with workers, in the first epoch": (Ask(3), {"workers": 2}),
    "with bf16": (Ask(9), {"precision": "bf16-mixed"}),
}


IN_FULL = {
    "in a validation at an epoch's end": "one of its own in mid-epoch",
    "with max_steps": "max_epochs",
    "with epochs that are cut short": "whole ones",
    "with SWA, in a validation": "SWA in mid-epoch",
    "with workers, in the first epoch": "workers in a later one",
    "with bf16": "full precision",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=in_full(IN_FULL[case]) if case in IN_FULL else ()) for case in CASES]
)
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask, given = CASES[case]
    settings = dict(given)
    kind, norm = settings.pop("module", Fit), settings.pop("norm", False)
    make_callbacks: Callable[[], list[Any]] = settings.pop("callbacks", list)
    workers, data = settings.pop("workers", 0), settings.pop("data", loader)

    def run(out: str, module: Fit, **how: Any) -> Any:
        return fit(tmp_path / out, module, data(workers), callbacks=make_callbacks(), **settings, **how)

    whole = kind(norm=norm)
    alone = run("alone", whole, plain=True)
    first = kind(norm=norm, ask=Ask(ask.step, ask.within))
    assert run("out", first).interrupted
    second = kind(norm=norm)
    resumed = run("out", second, resume="auto")
    assert first.noted == whole.noted[: len(first.noted)]
    assert second.noted == whole.noted[-len(second.noted) :]
    assert len(first.noted) + len(second.noted) >= len(whole.noted) > len(second.noted)
    assert weights(second) == weights(whole)
    assert (resumed.global_step, resumed.current_epoch) == (alone.global_step, alone.current_epoch)
    assert "after the resume differs" not in caplog.text


def test_a_shorter_loader_that_was_begun_anew_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, Fit(ask=Ask(5)), _several(0))
    fit(tmp_path, Fit(), _several(0), resume="auto")
    assert "a shorter one of several loaders was begun anew within the epoch" in caplog.text


def test_a_stop_ends_with_the_code_for_come_back_later(tmp_path: Path) -> None:
    with pytest.raises(holdfast.Stopped) as caught:
        fit(tmp_path, Fit(ask=Ask(2, number=signal.SIGINT)), ours={"on_stop": "exit"})
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("data", [loader, _stream])
def test_a_save_before_the_first_update_has_the_first_batch_to_come(
    data: Callable[[int], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Fit):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        fit(tmp_path / "out", Breaks(ask=Ask(0, number=signal.SIGUSR1)), data(0))
    assert [entry.step for entry in catalog.entries(tmp_path / "out")] == [0]
    fit(tmp_path / "alone", whole := Fit(), data(0), plain=True)
    fit(tmp_path / "out", second := Fit(), data(0), resume="auto")
    assert weights(second) == weights(whole) and second.noted == whole.noted
    assert "after the resume differs" not in caplog.text


def test_an_exception_is_preceded_by_a_save_and_comes_to_whoever_waits_for_it(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Hears(callbacks.Callback):  # type: ignore[misc]
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            heard.append((type(exception), [entry.path.name for entry in catalog.entries(tmp_path)]))

    class Breaks(Fit):
        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            if self.trainer.global_step == 9:
                raise RuntimeError("it broke")
            return super().training_step(batch, number)

    with pytest.raises(RuntimeError, match="it broke"):
        fit(tmp_path, Breaks(), callbacks=[Hears()])
    assert heard == [(RuntimeError, ["checkpoint-9"])]
    whole, second = Fit(), Fit()
    fit(tmp_path / "alone", whole, plain=True)
    fit(tmp_path, second, resume="auto")
    assert weights(second) == weights(whole)


def test_scheduled_saves_are_kept_as_many_as_wanted_and_a_path_names_one(tmp_path: Path) -> None:
    whole, first, second = Fit(), Fit(), Fit()
    fit(tmp_path / "alone", whole, plain=True)
    fit(tmp_path / "out", first, ours={"save_steps": 5, "save_total_limit": 2})
    assert sorted(entry.path.name for entry in catalog.entries(tmp_path / "out")) == ["checkpoint-20", "checkpoint-21"]
    assert weights(first) == weights(whole)
    fit(tmp_path / "out", second, resume=str(tmp_path / "out" / "checkpoint-20"))
    assert weights(second) == weights(whole)


def test_two_steps_of_one_batch_miss_no_scheduled_save(tmp_path: Path) -> None:
    fit(tmp_path, TwoOptimizers(), ours={"save_steps": 7}, max_epochs=1)
    assert sorted(entry.path.name for entry in catalog.entries(tmp_path)) == ["checkpoint-14", "checkpoint-8"]


@pytest.mark.parametrize(
    ("ours", "names"), [({"save_steps": 8}, ["checkpoint-16", "checkpoint-21", "checkpoint-8"]), ({}, [])]
)
def test_a_fit_that_ends_by_itself_leaves_its_last_step_where_steps_are_saved(
    tmp_path: Path, ours: dict[str, int], names: list[str]
) -> None:
    fit(tmp_path / "out", first := Fit(), ours=ours)
    assert sorted(entry.path.name for entry in catalog.entries(tmp_path / "out")) == names
    if names:
        fit(tmp_path / "out", second := Fit(), resume="auto")
        assert weights(second) == weights(first) and second.noted == []


def test_a_training_that_has_ended_says_that_nothing_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Fit(), max_epochs=1, ours={"save_steps": 7})
    module = Fit()
    again = fit(tmp_path, module, resume="auto", max_epochs=1)
    # What was pending at the last step's save is done: its validation, and the end of its epoch.
    assert again.current_epoch == 1 and [kind for kind, *_ in module.noted] == ["mean"]
    assert events(tmp_path, "end")[-1]["outcome"] == "finished"
    fit(tmp_path, more := Fit(), resume="auto", max_epochs=2)
    fit(tmp_path / "alone", whole := Fit(), plain=True, max_epochs=2)
    assert weights(more) == weights(whole)


def test_what_stopped_early_goes_on_where_its_user_gives_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moment, save = {"microseconds": 1}, {"save_steps": 50}
    fit(tmp_path, Fit(), ours=save, max_time=moment)
    again = fit(tmp_path, Fit(), resume="auto", ours=save, max_time=moment)
    assert again.global_step == 1
    assert "this training stopped early, at step 1; to go on, set max_time to more" in caplog.text
    assert fit(tmp_path, Fit(), resume="auto", ours=save, max_time={"hours": 1}).global_step == 15
    assert "after the resume differs" not in caplog.text
    out = tmp_path / "by a mean"
    settings: dict[str, Any] = {"ours": save, "callbacks": _stopping(50), "max_epochs": 6}
    fit(out, Fit(), **settings)
    assert fit(out, Fit(), resume="auto", **settings).global_step == 14
    assert "this training stopped early, at step 14; to go on, set min_epochs or min_steps to more" in caplog.text
    assert fit(out, Fit(), resume="auto", min_epochs=3, **settings).global_step == 21


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path / "alone", whole := Fit(), plain=True)
    fit(tmp_path / "out", Fit(), ours={"save_steps": 5}, max_steps=11, max_epochs=-1)
    path = tmp_path / "out" / "checkpoint-11" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fit(tmp_path / "out", second := Fit(), resume="auto")
    assert "differs" not in caplog.text
    assert second.noted == whole.noted[-len(second.noted) :]
    assert weights(second) == weights(whole)
    assert "skipped checkpoint-11" in caplog.text


def test_what_a_resume_finds_changed_holds_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, Fit(ask=Ask(9)))
    resumed = fit(tmp_path, Fit(rate=2e-2), resume="auto")
    assert "optimizer.lr: 0.01 -> 0.02, from your configuration" in caplog.text
    assert resumed.optimizers == [] or resumed.optimizers[0].param_groups[0]["initial_lr"] == 2e-2


def test_hooks_add_to_a_checkpoint_and_get_it_back(tmp_path: Path) -> None:
    class Counts(callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = 0

        def on_train_batch_end(self, *arguments: Any) -> None:
            self.batches += 1

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["batches"] = self.batches

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            self.batches = checkpoint["batches"]

    class Data(lightning.LightningDataModule):  # type: ignore[misc]
        used = 0

        def train_dataloader(self) -> Any:
            return loader()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.used += 1
            return batch

        def state_dict(self) -> dict[str, Any]:
            return {"used": self.used}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.used = state["used"]

    def run(module: Fit, resume: str | None) -> tuple[Counts, Data]:
        counts, data = Counts(), Data()
        torch.manual_seed(3)
        training = holdfast.attach(trainer(tmp_path, callbacks=[counts]), on_stop="return")
        training.fit(module, datamodule=data, ckpt_path=resume)
        return counts, data

    run(Fit(ask=Ask(9)), None)
    counts, data = run(Fit(), "auto")
    assert (counts.batches, data.used) == (21, 21)


def test_lightnings_own_checkpoints_are_written_and_resumed_from_beside_ours(tmp_path: Path) -> None:
    def saver() -> list[Any]:
        own = callbacks.ModelCheckpoint(tmp_path / "own", monitor="val", save_top_k=2, save_last=True)
        return [own, callbacks.OnExceptionCheckpoint(tmp_path / "own")]

    settings: dict[str, Any] = {"callbacks": saver(), "enable_checkpointing": True}
    fit(tmp_path / "alone", whole := Fit(), plain=True)
    fit(tmp_path / "out", Fit(ask=Ask(9)), **settings)
    assert (tmp_path / "own" / "on_exception.ckpt").is_file()  # it is there for any end that is none
    # It would be loaded over ours by Lightning, which takes it wherever no path is named.
    resumed = fit(tmp_path / "out", second := Fit(), resume="auto", **{**settings, "callbacks": (again := saver())})
    assert weights(second) == weights(whole)
    assert len(again[0].best_k_models) == 2 and resumed.global_step == 21
    last = str(tmp_path / "own" / "last.ckpt")
    fit(tmp_path / "more", third := Fit(), resume=last, max_epochs=4)
    fit(tmp_path / "plain", fourth := Fit(), resume=last, max_epochs=4, plain=True)
    assert weights(third) == weights(fourth)


def test_a_best_one_of_lightnings_own_that_is_gone_is_named_for_it_comes_with_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resumed(**changes: Any) -> int:
        """How many lines a fit with a ModelCheckpoint says of a best one that is gone."""
        caplog.clear()
        own = callbacks.ModelCheckpoint(tmp_path / "own", monitor="val")
        fit(tmp_path / "out", Fit(**changes), resume="auto", enable_checkpointing=True, callbacks=[own])
        lines = [f"{path}, the best that a ModelCheckpoint had written, is not here" for path in written]
        return sum(line.startswith(tuple(lines)) for line in caplog.messages)

    written: list[Path] = []
    resumed(ask=Ask(9))
    written += (tmp_path / "own").iterdir()
    assert resumed(ask=Ask(10)) == 0
    for path in written:
        path.unlink()
    assert len(written) == 1 and resumed() == 1


def test_what_is_no_training_is_left_alone(tmp_path: Path) -> None:
    training = holdfast.attach(trainer(tmp_path))
    module = Fit()
    training.validate(module, DataLoader(Points(10, 2), batch_size=4), verbose=False)
    assert not (tmp_path / ".holdfast").exists()
    fit(tmp_path, Fit(), fast_dev_run=2)
    assert not (tmp_path / ".holdfast").exists()
    assert len(training.callbacks) == len(trainer(tmp_path).callbacks)


def test_a_trainer_fits_again_and_is_as_it_was_between(tmp_path: Path) -> None:
    before = trainer(tmp_path)
    training = holdfast.attach(trainer(tmp_path), on_stop="return", save_steps=10)
    torch.manual_seed(3)
    training.fit(module := Fit(), data := loader())
    assert [type(each) for each in training.callbacks] == [type(each) for each in before.callbacks]
    assert training.num_sanity_val_steps == before.num_sanity_val_steps and training.train_dataloader is data
    assert not vars(training.fit_loop).keys() ^ vars(before.fit_loop).keys()
    training.fit_loop.max_epochs = 4
    training.fit(module, data)
    assert training.global_step == 28
    assert sorted(entry.step for entry in catalog.entries(tmp_path)) == [10, 20, 21, 28]
