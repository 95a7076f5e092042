from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import holdfast
from helpers.small_trainer import train
from helpers.trainings import events
from holdfast.errors import CheckpointError

# peft asks a model of transformers for a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

MakeModel = Callable[[], Any]


def llama(vocabulary: int = 16, tie: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


def lora(rank: int = 2, name: str = "default") -> Any:
    return get_peft_model(llama(), LoraConfig(r=rank, target_modules=["q_proj"]), adapter_name=name)


def frozen() -> Any:
    model = llama()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    return model


def trained(
    out: Path, model: Any, steps: int, *, strict: bool = True, resume: str | None = "auto", **settings: Any
) -> Any:
    rows = [{"input_ids": torch.tensor([1, 2, n % 7]), "labels": torch.tensor([1, 2, n % 7])} for n in range(40)]
    usual = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "save_steps": 100}
    args = TrainingArguments(str(out), max_steps=steps, **{**usual, **settings})
    trainer = holdfast.attach(Trainer(model, args, train_dataset=rows), strict=strict)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


CASES: dict[str, tuple[MakeModel, MakeModel, dict[str, Any], str]] = {
    "another optimizer": (
        llama,
        llama,
        {"optim": "sgd"},
        "optimizer: is of class AdamW in the checkpoint and of class SGD here",
    ),
    "another rank": (
        lora,
        lambda: lora(4),
        {},
        "lora_A.weight' is [2, 8] in the checkpoint and [4, 8] in the model",
    ),
    "another vocabulary": (
        llama,
        lambda: llama(20),
        {},
        "model: 'model.embed_tokens.weight' is [16, 8] in the checkpoint and [20, 8] in the model",
    ),
    "frozen parameters": (
        llama,
        frozen,
        {},
        "optimizer: it updates 8 + 3 parameters in the checkpoint and 7 + 3 parameters here",
    ),
    "new parameters": (llama, lambda: llama(tie=False), {}, "model: 'lm_head.weight' is in the model and not in the"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_loaded_and_begins_anew_where_that_is_wanted(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, after, settings, words = CASES[case]
    out = tmp_path / "out"
    trained(out, before(), 2)
    model = after()
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        trained(out, model, 4, **settings)
    assert words in str(caught.value) and "strict=False" in str(caught.value.hint)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())
    assert [event["step"] for event in events(out, "saved")] == [2]
    caplog.clear()
    loose = trained(out, after(), 4, strict=False, **settings)
    assert loose.state.global_step == 4
    (line,) = [line for line in caplog.text.splitlines() if words in line]
    assert line.endswith(": begins anew")


def test_what_fits_is_taken_without_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, make in (("tied", llama), ("adapters", lora)):
        out = tmp_path / name
        trained(out, make(), 2)
        trained(out, make(), 4, strict=False)
    assert "begins anew" not in caplog.text and "missing keys" not in caplog.text


def test_an_adapter_of_another_name_than_peft_gives_goes_on_exactly(tmp_path: Path) -> None:
    through = trained(tmp_path / "through", lora(name="mine"), 4, save_steps=2)
    checkpoint = tmp_path / "through" / "checkpoint-2"
    assert (checkpoint / "mine" / "adapter_model.safetensors").is_file()
    resumed = trained(tmp_path / "resumed", lora(name="mine"), 4, resume=str(checkpoint))
    expected = through.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert any(".mine." in name for name in expected)


def test_a_checkpoint_of_plain_transformers_is_compared_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}] * 8
    args = TrainingArguments(str(out), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_steps=1)
    Trainer(llama(), args, train_dataset=rows).train()
    with pytest.raises(CheckpointError, match="of class AdamW in the checkpoint and of class SGD here"):
        trained(out, llama(), 2, resume=str(out / "checkpoint-1"), optim="sgd")


def test_a_model_that_is_none_of_transformers_is_compared_too(tmp_path: Path) -> None:
    train(tmp_path / "out", max_steps=2, save_steps=2)
    assert train(tmp_path / "out", max_steps=4).state.global_step == 4
