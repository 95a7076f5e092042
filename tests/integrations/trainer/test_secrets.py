import copy
import dataclasses
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import holdfast
from holdfast.integrations.trainer.secrets import pickled_blank
from holdfast.state.recorded_settings import is_secret

SECRET = "canary"


@dataclasses.dataclass
class Arguments(TrainingArguments):  # type: ignore[misc]
    tracker_api_key: str = SECRET


class SavesModelItself(Trainer):  # type: ignore[misc]
    """Has an override that asks for an argument and remembers something, as subclasses do."""

    saves = 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.args.tracker_api_key == SECRET
        super()._save(output_dir, state_dict)
        self.saves += 1


def arguments(root: Path, **settings: Any) -> Arguments:
    return Arguments(str(root / "out"), hub_token=SECRET, use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_alias_has_its_secrets_and_is_pickled_without_as_are_its_copies(tmp_path: Path, protocol: int) -> None:
    args = arguments(tmp_path)
    alias = pickled_blank(args)
    args.push_to_hub = True  # after the alias was made
    assert isinstance(alias, Arguments) and pickled_blank(alias) is alias
    for writer in (alias, copy.copy(alias), copy.deepcopy(alias)):
        assert writer.hub_token == writer.tracker_api_key == SECRET
        text = pickle.dumps(writer, protocol)
        assert SECRET.encode() not in text
        read = pickle.loads(text)
        assert type(read) is Arguments and read.push_to_hub
        assert read.hub_token is None and read.tracker_api_key is None
        assert {**args.to_dict(), **{name: None for name in args.to_dict() if is_secret(name)}} == {
            name: None if is_secret(name) else value for name, value in read.to_dict().items()
        }


def test_the_users_arguments_stay_as_they_are_and_what_is_set_on_them_holds(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    trainer = holdfast.attach(Trainer(torch.nn.Linear(1, 1), args))
    assert type(args) is Arguments and vars(args) == before
    assert pickle.loads(pickle.dumps(args)).hub_token == SECRET
    args.learning_rate = 7.0
    trainer.args.max_steps = 5
    assert trainer.args.learning_rate == 7.0 and args.max_steps == 5


def saved_by_itself(trainer: Trainer, folder: Path) -> None:
    trainer.save_model(str(folder))


def saved_by_a_copy(trainer: Trainer, folder: Path) -> None:
    copy.copy(trainer).save_model(str(folder))


def saved_through_a_writer_of_the_users(trainer: Trainer, folder: Path) -> None:
    trainer._save = types.MethodType(type(trainer)._save, trainer)
    trainer.save_model(str(folder))


def pickled_as_it_is(trainer: Trainer, folder: Path) -> None:
    folder.mkdir()
    torch.save(trainer.args, folder / "training_args.bin")


@pytest.mark.parametrize(
    "saved", [saved_by_itself, saved_by_a_copy, saved_through_a_writer_of_the_users, pickled_as_it_is]
)
def test_whatever_writes_the_arguments_writes_them_without_secrets_and_finds_them(
    tmp_path: Path, saved: Callable[[Trainer, Path], None]
) -> None:
    trainer = holdfast.attach(SavesModelItself(torch.nn.Linear(1, 1), arguments(tmp_path)))
    saved(trainer, tmp_path / "model")
    written = tmp_path / "model" / "training_args.bin"
    assert SECRET.encode() not in written.read_bytes()
    read = torch.load(written, weights_only=False)
    assert type(read) is Arguments and read.output_dir == trainer.args.output_dir and read.hub_token is None


def test_a_copy_of_a_trainer_saves_its_own_model_and_a_writer_keeps_what_it_has_set(tmp_path: Path) -> None:
    trainer = holdfast.attach(SavesModelItself(torch.nn.Linear(1, 1), arguments(tmp_path)))
    other = copy.copy(trainer)
    other.model = torch.nn.Linear(2, 2)
    other.save_model(str(tmp_path / "model"))
    assert load_file(tmp_path / "model" / "model.safetensors")["weight"].shape == (2, 2)
    assert other.saves == 1 and trainer.saves == 0
