"""The configuration of a model's adapters, as it is recorded and compared."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from holdfast import Checkpointer
from holdfast.state import adapters


def adapted(alpha: int, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    config = LoraConfig(r=2, lora_alpha=alpha, lora_dropout=dropout, target_modules=["1", "0"])
    model: torch.nn.Module = get_peft_model(base, config)
    return model


def test_what_training_depends_on_is_recorded() -> None:
    (configuration,) = adapters.configurations(adapted(4)).values()
    assert configuration.items() >= {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "peft_type": "LORA"}.items()
    assert configuration["target_modules"] == ["0", "1"]
    assert adapters.configurations(torch.nn.Linear(1, 1)) == {}


def test_another_scale_holds_and_is_named(tmp_path: Path) -> None:
    def resume(alpha: int, dropout: float) -> list[str]:
        model = adapted(alpha, dropout)
        said: list[str] = []
        with Checkpointer(tmp_path, model=model, say=said.append) as ckpt:
            ckpt.resume()
            with ckpt.update():
                ckpt.step()
            ckpt.save(wait=True)
        return [line for line in said if "configuration" in line]

    assert resume(4, 0.0) == []
    assert resume(8, 0.5) == [
        "model.default.lora_alpha: 4 -> 8, from your configuration",
        "model.default.lora_dropout: 0 -> 0.5, from your configuration",
    ]
