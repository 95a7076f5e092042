from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError, HoldfastError, UnsupportedError
from holdfast.train import model
from holdfast.train.config.load import TrainConfig
from holdfast.train.precision import Machine, choose

Configure = Callable[..., TrainConfig]

PLAIN = Machine("this CPU", cuda=False, bf16=False, tf32=False)
WITH_BF16 = Machine("this CPU", cuda=False, bf16=True, tf32=False)
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}

# peft 0.21 asks transformers 5.23 by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def load(config: TrainConfig, machine: Machine = PLAIN) -> Any:
    return model.load(config, model.load_tokenizer(config), choose(config, machine))


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.fixture
def weights(configure: Configure, small_model: Path, tmp_path: Path) -> Path:
    """A folder with a model, weights included."""
    folder = tmp_path / "weights"
    config = configure()
    load(config).save_pretrained(folder)
    model.load_tokenizer(config).save_pretrained(folder)
    return folder


# The tokenizer


def test_the_tokenizer_keeps_its_own_tokens(configure: Configure) -> None:
    tokenizer = model.load_tokenizer(configure())
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


def test_special_tokens_replace_the_tokenizers_own(configure: Configure) -> None:
    before = len(model.load_tokenizer(configure()))
    tokenizer = model.load_tokenizer(configure(special_tokens={"eos_token": "<s>", "pad_token": "<fill>"}))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<fill>")
    assert len(tokenizer) == before + 1


def test_the_end_token_pads_where_there_is_no_other(configure: Configure, tmp_path: Path) -> None:
    tokenizer = model.load_tokenizer(configure())
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    assert model.load_tokenizer(configure(base_model=str(tmp_path / "bare"))).pad_token == "</s>"


def test_a_tokenizer_without_an_end_token_is_refused(configure: Configure, tmp_path: Path) -> None:
    tokenizer = model.load_tokenizer(configure())
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(ConfigError, match="no token that ends a text") as caught:
        model.load_tokenizer(configure(base_model=str(tmp_path / "endless")))
    assert "eos_token" in (caught.value.hint or "")


def test_the_saved_tokenizer_has_the_runs_template_without_our_markers(configure: Configure) -> None:
    template = model.load_tokenizer(configure(chat_template="chatml")).chat_template
    assert "<|im_start|>" in template
    assert "generation %}" not in template


def test_a_template_that_cannot_be_found(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"'none\.jinja' is not a template: No such file"):
        model.load_tokenizer(configure(chat_template="none.jinja"))


# All weights


def test_fresh_weights_come_from_the_seed_alone(configure: Configure) -> None:
    import torch

    first = load(configure())
    torch.rand(3)
    assert same(first, load(configure()))
    assert not same(first, load(configure(seed=7)))


def test_weights_that_are_trained_are_fp32_whatever_was_saved(configure: Configure, weights: Path) -> None:
    import torch

    load(configure(base_model=str(weights), reinit_weights=False)).bfloat16().save_pretrained(weights)
    read = load(configure(base_model=str(weights), reinit_weights=False), WITH_BF16)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}


def test_weights_are_read_from_the_folder(configure: Configure, weights: Path) -> None:
    assert same(load(configure(base_model=str(weights), reinit_weights=False, seed=7)), load(configure()))


def test_a_folder_without_weights_leads_to_reinit_weights(configure: Configure) -> None:
    with pytest.raises(HoldfastError, match="base_model: cannot load the model of") as caught:
        load(configure(reinit_weights=False))
    assert "reinit_weights: true" in (caught.value.hint or "")


def test_new_special_tokens_get_rows_in_the_embeddings(configure: Configure) -> None:
    config = configure(special_tokens={"pad_token": "<fill>"})
    tokenizer = model.load_tokenizer(config)
    made = model.load(config, tokenizer, choose(config, PLAIN))
    assert made.get_input_embeddings().num_embeddings == len(tokenizer) == 321
    assert same(made, load(config))


def test_attention_is_the_one_that_was_asked_for(configure: Configure) -> None:
    assert load(configure(attn_implementation="eager")).config._attn_implementation == "eager"


# LoRA


def test_lora_trains_the_adapter_alone(configure: Configure) -> None:
    made = load(configure(**LORA))
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def test_lora_takes_the_modules_that_are_named(configure: Configure) -> None:
    keys = {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj"], "lora_dropout": 0.1}
    lora = load(configure(**keys)).peft_config["default"]
    assert lora.target_modules == {"q_proj"}
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (4, 8, 0.1)


def test_what_lora_leaves_alone_is_in_the_chosen_format(configure: Configure) -> None:
    import torch

    made = load(configure(**LORA), WITH_BF16)
    formats = {parameter.requires_grad: parameter.dtype for parameter in made.parameters()}
    assert formats == {True: torch.float32, False: torch.bfloat16}


def test_a_fresh_adapter_comes_from_the_seed_alone(configure: Configure) -> None:
    assert same(load(configure(**LORA)), load(configure(**LORA)))


def test_an_adapter_is_trained_on(configure: Configure, tmp_path: Path) -> None:
    import torch

    first = load(configure(**LORA))
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    first.save_pretrained(tmp_path / "adapter")
    second = load(configure(adapter="lora", lora_model_dir=str(tmp_path / "adapter")))
    assert same(first, second)
    assert any(parameter.requires_grad for parameter in second.parameters())


def test_modules_that_there_are_not(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"adapter: Target modules .*nonsense"):
        load(configure(**{**LORA, "lora_target_linear": False, "lora_target_modules": ["nonsense"]}))


def test_new_special_tokens_must_be_trained_too(configure: Configure) -> None:
    keys = {**LORA, "special_tokens": {"pad_token": "<fill>"}}
    with pytest.raises(ConfigError, match="LoRA alone would never train them") as caught:
        load(configure(**keys))
    assert "lora_modules_to_save: [embed_tokens, lm_head]" in (caught.value.hint or "")
    made = load(configure(**keys, lora_modules_to_save=["embed_tokens", "lm_head"]))
    assert any("embed_tokens" in name for name, parameter in made.named_parameters() if parameter.requires_grad)


# What cannot be had


@pytest.mark.parametrize("reinit_weights", [True, False])
def test_a_name_on_a_hub_that_cannot_be_reached(configure: Configure, reinit_weights: bool) -> None:
    with pytest.raises(HoldfastError, match="base_model: cannot load the tokenizer of 'holdfast-tests/none'") as caught:
        load(configure(base_model="holdfast-tests/none", reinit_weights=reinit_weights))
    assert "Hugging Face hub" in (caught.value.hint or "")


def test_a_folder_that_is_not_there(configure: Configure) -> None:
    with pytest.raises(HoldfastError, match=r"base_model: there is no folder '\./none'") as caught:
        load(configure(base_model="./none"))
    assert str(Path.cwd()) in (caught.value.hint or "")


def test_a_folder_that_holds_no_model(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="base_model: cannot load the tokenizer of"):
        load(configure(base_model=str(tmp_path)))


def test_an_adapter_that_is_not_there(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"lora_model_dir: cannot load the adapter of .*adapter_config.json"):
        load(configure(adapter="lora", lora_model_dir=str(tmp_path)))


def test_few_bits_need_a_card(configure: Configure) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UnsupportedError, match="load_in_4bit: needs a CUDA device"):
        load(configure(**LORA, load_in_4bit=True, reinit_weights=False))
