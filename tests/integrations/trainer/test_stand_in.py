import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

import holdfast
from holdfast.integrations.trainer.record import Pending, TrainerRecord
from holdfast.integrations.trainer.stand_in import name_the_best, stand_in_for
from holdfast.state.rng import state as rng_state


def attached(root: Path) -> Trainer:
    args = TrainingArguments(str(root / "out"), use_cpu=True, report_to="none", save_total_limit=3, hub_token="canary")
    return holdfast.attach(Trainer(torch.nn.Linear(1, 1), args, callbacks=[EarlyStoppingCallback()]))


def record_of(trainer: Trainer, **settings: Any) -> TrainerRecord:
    unused: Any = None
    fields = {"logged": len(trainer.state.log_history), "flos": 0.0, "callbacks": (), **settings}
    return TrainerRecord(
        trainer.state,
        control=trainer.control,
        random=rng_state.record(),
        counters=unused,
        pending=Pending(),
        fetched=None,
        **fields,
    )


def test_a_stand_in_shows_what_was_recorded_and_the_trainer_keeps_its_own(tmp_path: Path) -> None:
    trainer = attached(tmp_path)
    trainer.state.log_history = [{"loss": 2.0}, {"loss": 1.0}]
    trainer.state.total_flos = 5.0
    exported = ("EarlyStoppingCallback", {"args": {}, "attributes": {"early_stopping_patience_counter": 1}})
    before, args = dict(vars(trainer)), dict(vars(trainer.args))
    stand_in = stand_in_for(
        trainer, record_of(trainer, logged=1, flos=2.0, callbacks=(exported,)), tmp_path, weights_only=False
    )
    assert stand_in.state.log_history == [{"loss": 2.0}] and stand_in.state.total_flos == 7.0
    assert stand_in.state.stateful_callbacks["EarlyStoppingCallback"] == exported[1]
    assert (stand_in.args.push_to_hub, stand_in.args.save_total_limit) == (False, None)
    assert stand_in.args.hub_token == "canary"
    assert stand_in._get_output_dir() == str(tmp_path) and stand_in.callback_handler.callbacks == []
    assert vars(trainer) == before and vars(trainer.args) == args
    assert len(trainer.state.log_history) == 2 and trainer.state.total_flos == 5.0


@dataclasses.dataclass(slots=True)
class InSlots(TrainingArguments):  # type: ignore[misc]
    api_key: str = "canary"
    size: int = 3


def test_a_stand_in_has_what_a_subclass_of_the_arguments_keeps_in_slots_and_pickles_no_secret_of_it(
    tmp_path: Path,
) -> None:
    args = InSlots(str(tmp_path / "out"), use_cpu=True, report_to="none")
    trainer = holdfast.attach(Trainer(torch.nn.Linear(1, 1), args))
    stand_in = stand_in_for(trainer, record_of(trainer), tmp_path, weights_only=False)
    assert (stand_in.args.api_key, stand_in.args.size, trainer.args.api_key) == ("canary", 3, "canary")
    stand_in.save_model(str(tmp_path / "model"))
    read = torch.load(tmp_path / "model" / "training_args.bin", weights_only=False)
    assert type(read) is InSlots and read.api_key is None and read.size == 3
    assert read.output_dir == args.output_dir


def test_arguments_of_a_stand_in_are_written_with_their_own_directory_and_can_be_given_another(tmp_path: Path) -> None:
    trainer, staging = attached(tmp_path), tmp_path / "staging"
    stand_in = stand_in_for(trainer, record_of(trainer), staging, weights_only=False)
    args, own = stand_in.args, trainer.args.output_dir
    for text in (args.to_json_string(), str(args), repr(args)):
        assert own in text and str(staging) not in text
    assert args.output_dir == str(staging) and args.to_dict()["output_dir"] == own
    args.output_dir = str(staging / "deeper")
    assert dataclasses.replace(args, save_steps=7).output_dir == args.output_dir == str(staging / "deeper")
    assert trainer.args.output_dir == own and pickle.loads(pickle.dumps(args)).output_dir == own


def test_a_stand_in_has_the_methods_of_the_trainers_class(tmp_path: Path) -> None:
    trainer = attached(tmp_path)
    stand_in = stand_in_for(trainer, record_of(trainer), tmp_path, weights_only=False)
    assert "train" in vars(trainer)
    for name in ("_save", "train", "_save_checkpoint"):
        assert getattr(stand_in, name).__func__ is getattr(Trainer, name)


def test_the_best_checkpoint_goes_by_its_final_name_where_it_is_there(tmp_path: Path) -> None:
    trainer = attached(tmp_path)
    trainer.state.global_step, trainer.state.best_global_step = 4, 2
    trainer.state.best_model_checkpoint = "elsewhere"
    stand_in = stand_in_for(trainer, record_of(trainer), tmp_path, weights_only=False)
    name_the_best(stand_in, tmp_path, tmp_path / "out")
    assert stand_in.state.best_model_checkpoint is None
    assert "elsewhere" not in (tmp_path / "trainer_state.json").read_text()
    best = tmp_path / "out" / "checkpoint-2"
    best.mkdir(parents=True)
    name_the_best(stand_in, tmp_path, tmp_path / "out")
    assert stand_in.state.best_model_checkpoint == str(best)
    assert str(best) in (tmp_path / "trainer_state.json").read_text()
