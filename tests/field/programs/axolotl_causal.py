"""Axolotl, from its configuration to the model that it leaves; LORA=1: an adapter."""

import os

os.environ["ACCELERATE_USE_CPU"] = "true"  # or two processes on a CPU would train two models, each alone

import yaml
from axolotl.cli.train import do_cli
from safetensors.torch import load_file

from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish
from helpers.axolotl_plugin import ForTests
from helpers.axolotl_runs import LORA, configuration, without_speed


def main() -> None:
    lora = bool(os.environ.get("LORA"))
    # Each rank makes its own: they are alike.
    inputs = OUT.with_name(f"inputs-{os.environ.get('RANK', '0')}")
    config = configuration(
        inputs,
        alone=PLAIN,
        output_dir=str(OUT),
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        dynamic_checkpoint={"enabled": True, "check_interval": 0},
        **(LORA if lora else {}),
    )
    if PLAIN:
        del config["dynamic_checkpoint"]
    (inputs / "config.yml").write_text(yaml.safe_dump(config))
    do_cli(str(inputs / "config.yml"))
    weights = load_file(OUT / ("adapter_model.safetensors" if lora else "model.safetensors"))
    finish(weights, without_speed(ForTests.trainer.state.log_history))


if __name__ == "__main__":  # datasets starts processes that import this
    main()
