"""A checkpoint of sentence-transformers, which has a folder for each module: its own, and compared before it is loaded.

`make test` has no sentence-transformers; `make test-trainers` has.
"""

from pathlib import Path
from typing import Any

import pytest

import holdfast
from helpers.every_boundary import compare
from holdfast.errors import CheckpointError

pytest.importorskip("sentence_transformers", reason="SKIPPED, NOT PASSED: make test-trainers has it")

from helpers.sentence_trainers import KINDS, make

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


def attached(root: Path, *, strict: bool = True, **settings: Any) -> Any:
    trainer = make("softmax", root / "run", root / "base", save_steps=2, **settings)
    return holdfast.attach(trainer, strict=strict)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exact_at_every_boundary_with_the_weights_of_its_losses(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    usual: dict[str, Any] = {"max_steps": 5, "gradient_accumulation_steps": 2}
    usual |= {"logging_steps": 3, "save_strategy": "no"}
    compare("late", lambda out: make(kind, out, tmp_path / "base", **usual), "late")
    compare("log", lambda out: make(kind, out, tmp_path / "base", **usual), "log")
    output = capfd.readouterr().out
    assert "late late same from [1, 2, 3, 4]" in output and "log log same from [3, 5]" in output, output


def test_plain_sentence_transformers_loads_a_checkpoint(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    trainer = attached(tmp_path, dense=8, max_steps=2)
    trainer.train()
    loaded = SentenceTransformer(str(tmp_path / "run" / "checkpoint-2"), device="cpu")
    assert (loaded.encode(["w1 w2"]) == trainer.model.eval().encode(["w1 w2"])).all()


def test_what_does_not_fit_is_named_by_its_place_before_anything_is_loaded(tmp_path: Path) -> None:
    attached(tmp_path, dense=8, max_steps=2).train()
    with pytest.raises(CheckpointError) as refused:
        attached(tmp_path, dense=9, labels=4, max_steps=4).train(resume_from_checkpoint="auto")
    assert "model: '2.linear.weight' is [8, 16] in the checkpoint and [9, 16] in the model" in str(refused.value)
    assert "loss: 'loss.classifier.bias' is [3] in the checkpoint and [4] in the loss" in str(refused.value)
    assert "optimizer: the state of 'loss.classifier.bias' is for [3]" in str(refused.value)


def test_a_module_more_begins_anew_where_that_is_wanted(tmp_path: Path) -> None:
    attached(tmp_path, max_steps=2).train()
    with pytest.raises(CheckpointError, match=r"'2\.linear\.weight' is in the model and not in the checkpoint"):
        attached(tmp_path, dense=16, max_steps=4).train(resume_from_checkpoint="auto")
    trainer = attached(tmp_path, strict=False, dense=16, max_steps=4)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 4
