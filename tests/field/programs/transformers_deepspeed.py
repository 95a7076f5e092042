"""A transformers Trainer whose arguments have `deepspeed=`: ZeRO of the stage that `STAGE` names, on a CPU."""

import os

import deepspeed
import torch
from transformers import TrainingArguments

import holdfast
from field.language import Held, small_llama, token_rows
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish

STAGE = int(os.environ["STAGE"])


zero = {
    "zero_optimization": {"stage": STAGE},
    "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: DeepSpeed's own for a CPU would have to be compiled
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
arguments = TrainingArguments(
    str(OUT),
    deepspeed=zero,
    max_steps=STEPS,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=SAVE_STEPS,
    save_total_limit=1,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    ddp_backend="gloo",
)
torch.manual_seed(3)
model, rows = small_llama(layers=2), token_rows()
trainer = Held(model, arguments, train_dataset=rows)
if PLAIN:
    trainer.train()
else:
    holdfast.attach(trainer)
    trainer.train(resume_from_checkpoint="auto")
weights = dict(trainer.model.named_parameters())
with deepspeed.zero.GatheredParameters(list(weights.values()), enabled=STAGE == 3):
    finish(weights, trainer.state.log_history)
