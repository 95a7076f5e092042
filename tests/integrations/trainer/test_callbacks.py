import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback

from helpers.small_trainer import Stop, small_trainer, train
from holdfast.integrations.trainer.callbacks import UncarriedNumbers, by_name


def said(caplog: pytest.LogCaptureFixture) -> str:
    text = caplog.text
    caplog.clear()
    return text


class Counts(TrainerCallback):  # type: ignore[misc]
    """Counts steps, and tells nobody."""

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


class Told(Counts, ExportableState):  # type: ignore[misc]
    def state(self) -> dict[str, Any]:
        return {"args": {"every": self.every}, "attributes": {"steps": self.steps}}


def test_attributes_come_back_to_the_users_own_objects_which_keep_their_arguments(tmp_path: Path) -> None:
    train(tmp_path / "out", [Told(1), Told(2), Stop(4)])
    first, second = Told(1), Told(7)
    trainer = train(tmp_path / "out", [first, second])
    assert first in trainer.callback_handler.callbacks
    assert (first.steps, second.steps, second.every) == (15, 15, 7)


class Brief(Told):
    def state(self) -> dict[str, Any]:
        return {"attributes": {"steps": self.steps}}


def test_a_callback_that_exports_no_arguments_gets_its_attributes_back(tmp_path: Path) -> None:
    train(tmp_path / "out", [Brief(), Stop(4)])
    train(tmp_path / "out", [again := Brief()])
    assert again.steps == 15


class Tracks(Told):
    def __init__(self, api_key: str) -> None:
        super().__init__()
        self.api_key, self.session = api_key, {"cookie": api_key, "sent": 0}

    def state(self) -> dict[str, Any]:
        self.session["sent"] = self.steps
        attributes = {"steps": self.steps, "api_key": self.api_key, "session": self.session}
        return {"args": {"api_key": self.api_key}, "attributes": attributes}


def test_a_secret_that_a_callback_exports_is_not_written_and_is_the_users_at_a_resume(tmp_path: Path) -> None:
    train(tmp_path / "out", [Tracks("canary"), Stop(4)])
    assert not [path for path in (tmp_path / "out").rglob("*.json") if "canary" in path.read_text()]
    (state,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("trainer_state.json"))
    kept = {"steps": 4, "session": {"cookie": None, "sent": 4}}
    assert state["stateful_callbacks"]["Tracks"] == {"args": {"api_key": None}, "attributes": kept}
    train(tmp_path / "out", [again := Tracks("another")])
    assert (again.steps, again.api_key, again.session["cookie"]) == (15, "another", "another")


def test_a_callback_that_comes_or_goes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "with", [Told(), Stop(4)])
    train(tmp_path / "with", max_steps=6)
    assert "Told: the checkpoint has its state, and no callback here is of that class" in said(caplog)
    train(tmp_path / "without", [Stop(4)])
    train(tmp_path / "without", [Told()], max_steps=6)
    assert "Told: the checkpoint has no state of it; it begins anew" in said(caplog)


def test_numbers_of_a_callback_that_exports_none_are_named_once_and_at_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "out", [Counts(), Stop(7)], save_steps=2)
    assert said(caplog).count("no checkpoint has Counts.steps") == 1
    train(tmp_path / "out", [Counts()], save_steps=2)
    assert "begins anew, for no checkpoint has it: Counts.steps" in said(caplog)
    train(tmp_path / "out", num_train_epochs=4, save_steps=2)
    assert "Counts" not in said(caplog)


class Wider(ProgressCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(max_str_len=9)
        self.seen = 0


def test_stock_callbacks_and_what_they_give_to_those_that_extend_them_are_no_alarm(tmp_path: Path) -> None:
    wider = Wider()
    trainer = small_trainer(tmp_path / "out", [ProgressCallback(), PrinterCallback(), wider])
    numbers = UncarriedNumbers(trainer)
    for callback in trainer.callback_handler.callbacks:
        callback.current_step = 9
    assert numbers.changed() == []
    wider.seen = 1
    assert numbers.changed() == ["Wider.seen"]


def test_several_of_one_class_are_a_list() -> None:
    assert by_name((("A", {"n": 1}), ("B", {"n": 2}), ("A", {"n": 3}))) == {"A": [{"n": 1}, {"n": 3}], "B": {"n": 2}}
