import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import holdfast
from holdfast.integrations.trainer.secrets import blanked, is_secret, pickled_blank

SECRET = "canary"


@dataclasses.dataclass
class Arguments(TrainingArguments):  # type: ignore[misc]
    tracker_api_key: str = SECRET


class SavesModelItself(Trainer):  # type: ignore[misc]
    """Has an override that asks for an argument, as subclasses do."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.args.tracker_api_key == SECRET
        super()._save(output_dir, state_dict)


def arguments(root: Path, **settings: Any) -> Arguments:
    return Arguments(str(root / "out"), hub_token=SECRET, use_cpu=True, report_to="none", **settings)


def test_a_blanked_copy_has_everything_but_the_secrets(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    blank = blanked(args)
    assert vars(args) == before
    assert type(blank) is Arguments
    assert vars(blank) == {name: None if is_secret(name) else value for name, value in before.items()}
    assert before["hub_token"] == before["tracker_api_key"] == SECRET


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_copy_for_the_writer_has_its_secrets_and_is_pickled_without(tmp_path: Path, protocol: int) -> None:
    copied = pickled_blank(arguments(tmp_path))
    copied.push_to_hub = True  # after the copy was made
    assert copied.hub_token == copied.tracker_api_key == SECRET
    for args in (copied, copy.deepcopy(copied), pickled_blank(copied)):
        text = pickle.dumps(args, protocol)
        assert SECRET.encode() not in text
        read = pickle.loads(text)
        assert read.to_dict() == blanked(copied).to_dict()
        assert read.push_to_hub and read.hub_token is None and read.tracker_api_key is None


def test_the_users_arguments_are_pickled_as_ever_while_a_trainer_is_attached(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    trainer = holdfast.attach(Trainer(torch.nn.Linear(1, 1), args))
    assert trainer.args is args and type(args) is Arguments and vars(args) == before
    assert pickle.loads(pickle.dumps(args)).hub_token == SECRET


def test_a_model_that_the_user_saves_is_written_without_secrets_by_a_writer_that_finds_them(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    trainer = holdfast.attach(SavesModelItself(torch.nn.Linear(1, 1), args))
    trainer.save_model(str(tmp_path / "model"))
    assert vars(args) == before and trainer.args is args
    written = tmp_path / "model" / "training_args.bin"
    assert SECRET.encode() not in written.read_bytes()
    read = torch.load(written, weights_only=False)
    assert type(read) is Arguments and read.output_dir == args.output_dir and read.hub_token is None
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_writer_that_the_user_has_put_in_place_stays_there(tmp_path: Path) -> None:
    trainer = Trainer(torch.nn.Linear(1, 1), arguments(tmp_path))
    called = []
    trainer._save = lambda output_dir: called.append(output_dir)
    holdfast.attach(trainer).save_model("there")
    assert called == ["there"]
