"""A Trainer of transformers: `python with_hf.py RUN STEPS`."""

import hashlib
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import holdfast


class Slow(TrainerCallback):  # type: ignore[misc]
    """Leaves the time to ask for something."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Waits for a moment."""
        time.sleep(0.002)


torch.set_num_threads(1)
torch.manual_seed(3)
shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=32, **shape))
rows = [{"input_ids": (row := torch.randint(0, 64, (12,))), "labels": row} for _ in range(64)]
settings = {"per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
arguments = TrainingArguments(
    sys.argv[1], max_steps=int(sys.argv[2]), lr_scheduler_type="constant", use_cpu=True, **settings
)
trainer = holdfast.attach(Trainer(model, arguments, train_dataset=rows, callbacks=[Slow()]))
trainer.train(resume_from_checkpoint="auto")
state = b"".join(tensor.numpy().tobytes() for tensor in trainer.model.state_dict().values())
print("digest", hashlib.sha256(state).hexdigest())
