"""A transformers Trainer of a small language model."""

import torch
from transformers import TrainingArguments

import holdfast
from field.language import Held, small_llama, token_rows
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish

torch.manual_seed(3)
model, rows = small_llama(layers=1), token_rows()
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
