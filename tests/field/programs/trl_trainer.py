"""One of TRL's trainers: `trl_trainer.py OUT KIND`."""

import sys
from typing import Any

from transformers import TrainerCallback

import holdfast
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold
from helpers.trl_trainers import make

_GENERATED = {"steps_per_generation": 4, "num_iterations": 2, "beta": 0.1, "base": OUT.with_name("base")}
_MOVED = {"sync_ref_model": True, "ref_model_sync_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"lora": True},
    "dpo": _MOVED,
    "rloo": {**_GENERATED, **_MOVED},
    "grpo": {**_GENERATED, **_MOVED},
}


class Holding(TrainerCallback):  # type: ignore[misc]
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hold(state.global_step)


kind = sys.argv[2]
trainer = make(
    kind,
    OUT,
    max_steps=STEPS,
    gradient_accumulation_steps=2,
    save_steps=SAVE_STEPS,
    save_total_limit=1,
    **SETTINGS.get(kind, {}),
)
trainer.add_callback(Holding())
if PLAIN:
    trainer.train()
else:
    holdfast.attach(trainer)
    trainer.train(resume_from_checkpoint="auto")
finish(trainer.model, trainer.state.log_history)
