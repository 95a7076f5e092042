"""An SFT trainer of TRL: `python with_trl.py RUN STEPS`."""

import hashlib
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

import holdfast


class Slow(TrainerCallback):  # type: ignore[misc]
    """Leaves the time to ask for something."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Waits for a moment."""
        time.sleep(0.002)


torch.set_num_threads(1)
torch.manual_seed(3)
words = ["<pad>", "<s>", "</s>", "<unk>", *["to", "save", "is", "to", "go", "on", "where", "one", "was"]]
tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(dict.fromkeys(words))}, "<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=32, **shape))
rows = Dataset.from_dict({"text": [" ".join(words[4 + at % 7 :]) for at in range(64)]})
settings = {"per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
arguments = SFTConfig(
    sys.argv[1], max_steps=int(sys.argv[2]), lr_scheduler_type="constant", use_cpu=True, bf16=False, **settings
)
trainer = SFTTrainer(
    model,
    arguments,
    train_dataset=rows,
    processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials),
    callbacks=[Slow()],
)
holdfast.attach(trainer).train(resume_from_checkpoint="auto")
state = b"".join(tensor.numpy().tobytes() for tensor in trainer.model.state_dict().values())
print("digest", hashlib.sha256(state).hexdigest())
