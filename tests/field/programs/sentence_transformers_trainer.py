"""A trainer of sentence-transformers, with a loss for each of two data sets, one of which has weights of its own."""

from typing import Any

import torch
from transformers import TrainerCallback

import holdfast
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold
from helpers.sentence_trainers import make


class Holding(TrainerCallback):  # type: ignore[misc]
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hold(state.global_step)


settings = {"max_steps": STEPS, "gradient_accumulation_steps": 2, "save_steps": SAVE_STEPS, "save_total_limit": 1}
trainer = make("dict", OUT, OUT.with_name("base"), **settings)
trainer.add_callback(Holding())
if PLAIN:
    trainer.train()
else:
    holdfast.attach(trainer)
    trainer.train(resume_from_checkpoint="auto")
finish(torch.nn.ModuleDict(trainer.loss), trainer.state.log_history)
