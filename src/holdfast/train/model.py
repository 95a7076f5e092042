"""The tokenizer and the model of a run: from a local folder or the hub, with weights or without, with LoRA or whole.

transformers and peft do the work; what is here says which of their calls a configuration means, and turns their
failures into messages that name the key to change.
"""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError, HoldfastError, UnsupportedError
from holdfast.train.precision import Precision

if TYPE_CHECKING:
    from holdfast.train.config.load import TrainConfig

# ChatML, with the markers that say which part of it is the assistant's: what it writes, and the token it stops with.
_CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same for the tokenizer that is saved: not every program that reads it knows the markers.
CHATML = _CHATML_MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def load_tokenizer(config: "TrainConfig") -> Any:
    """Loads the tokenizer of `base_model`, with the special tokens and the chat template that the configuration gives.

    Returns:
        A `PreTrainedTokenizerBase` that has an end-of-sequence and a padding token.

    Raises:
        HoldfastError: There is no tokenizer to load, or it lacks what training needs.
    """
    from transformers import AutoTokenizer

    with _loading("the tokenizer", config.base_model):
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    tokenizer.add_special_tokens(config.special_tokens.model_dump(exclude_none=True))
    if tokenizer.eos_token is None:
        raise ConfigError(
            [f"base_model: the tokenizer of {config.base_model} has no token that ends a text"],
            hint="Name one under `special_tokens: {eos_token: ...}`.",
        )
    if tokenizer.pad_token is None:
        # Padding is told apart by position, never by its id, so the end token can serve for both.
        tokenizer.pad_token = tokenizer.eos_token
    if config.chat_template is not None:
        tokenizer.chat_template = chat_template(config.chat_template, tokenizer)
    return tokenizer


def load(config: "TrainConfig", tokenizer: Any, precision: Precision) -> Any:
    """Loads or builds the model that is to be trained; with an adapter, a `PeftModel` around it.

    Raises:
        HoldfastError: There is nothing to load, or the adapter does not fit it.
    """
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # What no file decides (fresh weights, new rows of the embeddings) is drawn here, so that the seed decides it.
    set_seed(config.random_seed)
    options: dict[str, Any] = {"dtype": precision.frozen_dtype() if config.adapter else torch.float32}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    model = _build(config, options) if config.reinit_weights else _read(config, options, precision)
    grown = len(tokenizer) > model.get_input_embeddings().num_embeddings
    if grown:
        model.resize_token_embeddings(len(tokenizer))
    if config.adapter is None:
        return model
    if grown:
        _check_that_new_tokens_are_trained(config, model)
    return _with_adapter(config, model)


def chat_template(named: str | None, tokenizer: Any) -> str:
    """Returns the text of a chat template.

    Args:
        named: `tokenizer_default` or None for the tokenizer's own, `chatml`, the path of a Jinja file, or Jinja itself.
        tokenizer: The tokenizer whose own it may be.
    """
    if named is None or named == "tokenizer_default":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if not own:
            raise ConfigError(
                ["chat_template: the tokenizer has none of its own"], hint="`chat_template: chatml` works everywhere."
            )
        return str(own)
    if named == "chatml":
        return CHATML
    if "{%" in named or "{{" in named:
        return named
    try:
        return Path(named).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            [f"chat_template: {named!r} is not a template: {error.strerror or error}"],
            hint="Give tokenizer_default, chatml, the path of a Jinja file, or the Jinja text.",
        ) from error


def marked_template(template: str, tokenizer: Any) -> str:
    """Returns `template` with markers around what the assistant says: its own, or TRL's for many models."""
    if template == CHATML:
        return _CHATML_MARKED
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(template):
        return template
    probe = copy.deepcopy(tokenizer)
    probe.chat_template = template
    try:
        return get_training_chat_template(probe) or template
    except ValueError as error:
        raise ConfigError(
            ["chat_template: the template does not say which part of it is the assistant's"],
            hint="Put {% generation %} and {% endgeneration %} around that part, or set `train_on_inputs: true`.",
        ) from error


def _build(config: "TrainConfig", options: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading("the model's config", config.base_model):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.base_model), **options)


def _read(config: "TrainConfig", options: dict[str, Any], precision: Precision) -> Any:
    from transformers import AutoModelForCausalLM

    if config.load_in_4bit or config.load_in_8bit:
        options |= _quantized(config, precision)
    without = "If the folder is meant to have no weights, `reinit_weights: true` starts from fresh ones."
    with _loading("the model", config.base_model, hint=without if Path(config.base_model).is_dir() else None):
        return AutoModelForCausalLM.from_pretrained(config.base_model, **options)


def _quantized(config: "TrainConfig", precision: Precision) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    key = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise UnsupportedError(f"{key}: needs a CUDA device and the package bitsandbytes, and one of them is missing")
    if config.load_in_8bit:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.frozen_dtype(),
        )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}


def _with_adapter(config: "TrainConfig", model: Any) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import set_seed

    if config.lora_model_dir is not None:
        with _loading("the adapter", config.lora_model_dir, key="lora_model_dir"):
            return PeftModel.from_pretrained(model, config.lora_model_dir, is_trainable=True)
    targets = config.lora_target_modules
    options = {
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(targets) if isinstance(targets, tuple) else targets,
        "modules_to_save": list(config.lora_modules_to_save or ()),
    }
    if config.lora_target_linear:
        options["target_modules"] = "all-linear"  # peft's word for every linear layer but the last
    set_seed(config.random_seed)
    try:
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            lora_dropout=config.lora_dropout,
            **{name: value for name, value in options.items() if value},
        )
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError([f"adapter: {_first_line(error)}"], hint="See the keys that begin with lora_.") from error


def _check_that_new_tokens_are_trained(config: "TrainConfig", model: Any) -> None:
    ends = {id(model.get_input_embeddings().weight): model.get_input_embeddings()}
    ends.setdefault(id(model.get_output_embeddings().weight), model.get_output_embeddings())
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in ends.values()]
    absent = [name for name in names if name not in (config.lora_modules_to_save or ())]
    if absent:
        raise ConfigError(
            ["special_tokens: they are new to the model, and LoRA alone would never train them"],
            hint=f"Set `lora_modules_to_save: [{', '.join(names)}]`.",
        )


@contextmanager
def _loading(what: str, name: str, *, key: str = "base_model", hint: str | None = None) -> Iterator[None]:
    """Turns the libraries' failures to find `name` into an error that says where it was looked for."""
    local = name.startswith((".", "/", "~"))
    if local and not Path(name).is_dir():
        raise HoldfastError(
            f"{key}: there is no folder {name!r}", hint=f"Relative paths start at the working directory, {Path.cwd()}."
        )
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise HoldfastError(
            f"{key}: cannot load {what} of {name!r}: {_first_line(error)}", hint=hint or _where(name)
        ) from error


def _where(name: str) -> str | None:
    if Path(name).is_dir():
        return None
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return f"It was looked for on the Hugging Face hub{offline}. Where the hub cannot be reached, give a local folder."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
