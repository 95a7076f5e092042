"""`attach` before it knows what to do: what it is given beside the trainer."""

from pathlib import Path
from typing import Any

import pytest

import holdfast
from helpers.small_trainer import small_trainer
from holdfast.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"save_steps": 3}, "save_steps: that is the Trainer's own: TrainingArguments(save_steps=3)"),
        ({"save_total_limit": 2}, "save_total_limit: that is the Trainer's own: TrainingArguments(save_total_limit=2)"),
        ({"output_dir": "out"}, "output_dir: that is the Trainer's own: TrainingArguments(output_dir='out')"),
        ({"resume": "auto"}, "resume: attach takes none; train(resume_from_checkpoint=...) does"),
        ({"save_minuts": 5}, "save_minuts: unknown key, did you mean 'save_minutes'?"),
        ({"on_save": print}, "on_save: unknown key, did you mean 'on_saved'?"),
        ({"keep_evry": 3}, "keep_evry: unknown key, did you mean 'keep_every'?"),
        ({"keep_every": "x"}, "keep_every: 'x' is no number of steps"),
        ({"on_stop": "retrun"}, "on_stop: 'retrun' is neither exit nor return"),
        ({"dynamic_checkpoint": {"keep": "2"}}, "dynamic_checkpoint.keep: expected a whole number, found '2'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_that_is_wrong_is_named_with_whose_it_is(wrong: dict[str, Any], line: str, tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path / "out")
    with pytest.raises(ConfigError) as refused:
        holdfast.attach(trainer, **wrong)
    assert refused.value.problems == [line]


def test_what_names_no_place_and_no_checkpoint_is_refused_before_a_run_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = small_trainer(tmp_path / "out")
    with pytest.raises(ConfigError, match="resume_from_checkpoint: 3 is no checkpoint; give"):
        holdfast.attach(trainer).train(resume_from_checkpoint=3)
    assert not (tmp_path / "out" / ".holdfast").exists()
    trainer = small_trainer(tmp_path / "out")
    trainer.args.output_dir = ""
    with pytest.raises(ConfigError, match="output_dir: is empty; name a directory"):
        holdfast.attach(trainer)
