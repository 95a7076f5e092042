"""A transformers Trainer of a small language model."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import holdfast
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold


class Held(Trainer):  # type: ignore[misc]
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        hold(self.state.global_step)
        return super().training_step(*args, **kwargs)


torch.manual_seed(3)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
)
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 64, (40, 8)).tolist()]
arguments = TrainingArguments(
    str(OUT),
    max_steps=STEPS,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=SAVE_STEPS,
    save_total_limit=1,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Held(model, arguments, train_dataset=rows)
if PLAIN:
    trainer.train()
else:
    holdfast.attach(trainer)
    trainer.train(resume_from_checkpoint="auto")
finish(model, trainer.state.log_history)
