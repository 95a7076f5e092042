from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="Lightning is not installed")

import lightning.pytorch.strategies as strategies

import holdfast
from helpers.small_lightning import Fit, fit, trainer
from holdfast.errors import CheckpointError, ConfigError, UnsupportedError
from holdfast.integrations.lightning import contract
from holdfast.integrations.lightning.supported import is_ours
from holdfast.store import names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_a_trainer_that_is_attached_already_is_refused(tmp_path: Path) -> None:
    training = holdfast.attach(trainer(tmp_path))
    with pytest.raises(UnsupportedError, match="this Trainer is attached already") as caught:
        holdfast.attach(training)
    assert "every fit()" in str(caught.value.hint)


def test_the_words_of_a_resume_are_ours_and_the_others_are_lightnings(tmp_path: Path) -> None:
    assert [is_ours(path) for path in ("auto", "local")] == [True, True]
    assert not any(is_ours(path) for path in (None, "last", "best", "hpc", tmp_path, "./local"))


def test_a_strategy_that_keeps_its_state_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    class FSDPStrategy(strategies.SingleDeviceStrategy):  # type: ignore[misc]
        """The real one needs an accelerator."""

    with pytest.raises(UnsupportedError, match="the strategy FSDPStrategy keeps the state in a form of its own"):
        holdfast.attach(trainer(tmp_path, strategy=FSDPStrategy("cpu")))


def test_processes_that_start_inside_of_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="starts its processes inside of fit"):
        holdfast.attach(trainer(tmp_path, strategy="ddp_spawn", devices=2))


def test_an_address_is_no_run_directory() -> None:
    with pytest.raises(UnsupportedError, match=r"default_root_dir='memory://run' is an address") as caught:
        holdfast.attach(trainer(Path(), default_root_dir="memory://run"))
    assert "a local default_root_dir" in str(caught.value.hint)


def test_a_run_directory_in_place_of_a_checkpoint_is_refused_with_what_to_give(tmp_path: Path) -> None:
    fit(tmp_path, Fit(), ours={"save_steps": 21})
    (tmp_path / "checkpoint-21" / names.MANIFEST).unlink()
    for wrong in (tmp_path, tmp_path / "checkpoint-21"):
        with pytest.raises(CheckpointError, match=f"{wrong} cannot be resumed from") as caught:
            fit(tmp_path, Fit(), resume=str(wrong))
        assert "'auto'" in str(caught.value.hint)
    with pytest.raises(FileNotFoundError):  # any other is Lightning's
        fit(tmp_path, Fit(), resume=str(tmp_path / "last.ckpt"))


def test_a_lightning_that_is_made_otherwise_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "NAMES", (*contract.NAMES, contract.Name("fit_loop.of_tomorrow", "anything")))
    with pytest.raises(UnsupportedError, match=r"Lightning .* has no fit_loop\.of_tomorrow") as caught:
        holdfast.attach(trainer(tmp_path))
    assert contract.SEEN in str(caught.value.hint)


def test_each_name_is_there(tmp_path: Path) -> None:
    assert contract.missing(trainer(tmp_path)) == []


@pytest.mark.parametrize("wrong", [{"save_steps": 0}, {"save_total_limit": "2"}, {"stop_grace_seconds": -1}])
def test_a_setting_that_is_wrong_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        holdfast.attach(trainer(tmp_path), **wrong)
