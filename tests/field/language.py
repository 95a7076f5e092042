"""What the programs of transformers train: a small language model, its rows, and a Trainer that can be held."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from field.program import hold


class Held(Trainer):  # type: ignore[misc]
    """A Trainer that waits at each step for the story."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        hold(self.state.global_step)
        return super().training_step(*args, **kwargs)


def small_llama(layers: int) -> LlamaForCausalLM:
    """Returns a model of so many layers, with dropout."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def token_rows() -> list[dict[str, list[int]]]:
    """Returns forty rows of eight tokens, at random."""
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 64, (40, 8)).tolist()]
