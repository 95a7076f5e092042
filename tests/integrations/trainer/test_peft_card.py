from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast.integrations.trainer.interception import interceptors
from holdfast.integrations.trainer.peft_card import BlankCard


def test_a_card_is_the_one_that_the_template_gives_however_often_it_is_asked_for() -> None:
    expected = str(ModelCard.from_template(ModelCardData()))
    assert [str(BlankCard.from_template(ModelCardData())) for _ in range(3)] == [expected] * 3


def test_a_card_of_which_something_is_known_is_rendered_from_that() -> None:
    known = ModelCardData(license="mit")
    assert str(BlankCard.from_template(known)) == str(ModelCard.from_template(known))
    assert "plain" in str(BlankCard.from_template(ModelCardData(), template_str="plain"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_writes_the_same_card_as_ever_and_renders_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, bos_token_id=1, eos_token_id=1))
    adapters = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapters.save_pretrained(tmp_path / "own")
    rendered, real = [], ModelCard.from_template

    def from_template(data: ModelCardData) -> Any:
        rendered.append(data)
        return real(data)

    monkeypatch.setattr(ModelCard, "from_template", from_template)
    monkeypatch.setattr(BlankCard, "_text", None)
    with interceptors():
        for name in ("first", "second"):
            adapters.save_pretrained(tmp_path / name)
    cards = {(tmp_path / name / "README.md").read_bytes() for name in ("own", "first", "second")}
    assert len(cards) == 1 and len(rendered) == 1
