"""Builds TRL's `SFTTrainer` as a configuration means it: model, data and settings. Nothing is hand-made here.

`_settings` is the one place where TRL's defaults are overridden, and says why for each.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError
from holdfast.train import data, model, precision

if TYPE_CHECKING:
    from holdfast.train.config.load import TrainConfig

_log = logging.getLogger(__name__)

# Where examples share a row, attention that can keep them apart by their lengths alone.
_VARIABLE_LENGTH = ("flash_attention", "flex_attention", "kernels-community/")


def build(config: "TrainConfig", say: Callable[[str], None] = _log.warning) -> Any:
    """Builds the trainer of `config`. Writes nothing into `output_dir`.

    Args:
        config: The configuration of the run.
        say: Takes one line for each thing that a user should know: the precision that was chosen, what was cut.

    Returns:
        A `trl.SFTTrainer`, ready for callbacks and `train()`.

    Raises:
        HoldfastError: Something that the configuration names cannot be had, or cannot be had here.
    """
    from transformers import PrinterCallback
    from trl import SFTTrainer

    chosen = precision.choose(config)
    say(chosen.sentence)
    tokenizer = model.load_tokenizer(config)
    train, held_out = data.load(config, tokenizer, say)
    network = model.load(config, tokenizer, chosen)
    flat = _is_flattened(network)
    if config.sample_packing:
        shape = "one long row a batch, as TRL does it" if flat else "row by row"
        say(f"packing: {shape}, which suits the attention of this model ({_attention(network)})")
    try:
        trainer = SFTTrainer(
            model=network,
            args=_arguments(config, chosen, len(train), flat),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            data_collator=_rows_of_several(config, tokenizer) if config.sample_packing and not flat else None,
        )
    except ValueError as error:
        raise ConfigError([f"TRL refuses these settings: {error}"]) from error
    trainer.remove_callback(PrinterCallback)  # what is printed, and where, is decided by who runs the trainer
    return trainer


def _arguments(config: "TrainConfig", chosen: precision.Precision, rows: int, flat: bool) -> Any:
    from trl import SFTConfig

    settings = _settings(config, chosen, rows, flat)
    if "activation_checkpointing" not in {field.name for field in dataclasses.fields(SFTConfig)}:
        settings["gradient_checkpointing"] = settings.pop("activation_checkpointing")  # its name in older versions
    return SFTConfig(**settings)


def _settings(config: "TrainConfig", chosen: precision.Precision, rows: int, flat: bool) -> dict[str, Any]:
    saves, evaluations = config.save_schedule, config.eval_schedule
    settings: dict[str, Any] = {
        "output_dir": config.output_dir,
        # What the configuration says, under the names that transformers has for it.
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup,
        "optim": config.optimizer,
        "weight_decay": config.weight_decay,
        "max_grad_norm": 1.0 if config.max_grad_norm is None else config.max_grad_norm,
        "seed": config.random_seed,
        "max_length": config.sequence_len,
        "save_strategy": saves.strategy,
        "eval_strategy": evaluations.strategy,
        "logging_steps": config.logging_steps or _logging_steps(config, rows),
        # TRL turns bf16 on wherever it is not told otherwise, which a processor without it pays for with its speed.
        "bf16": chosen.bf16,
        "fp16": chosen.fp16,
        "tf32": chosen.tf32,
        # Without this transformers refuses bf16 on a processor, and asks for pinned memory that only CUDA has.
        "use_cpu": not chosen.cuda,
        # TRL computes activations twice unless told otherwise; an Axolotl configuration asks for it.
        "activation_checkpointing": bool(config.gradient_checkpointing),
        # Without CUDA they are in host memory to begin with.
        "activation_offloading": config.gradient_checkpointing == "offload" and chosen.cuda,
        # The rows come tokenized, labelled, cut and packed; TRL's own preparation would go over all of them again.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # Only tells TRL to take a batch of packed rows as one long row. See `_is_flattened`.
        "packing": bool(config.sample_packing) and flat,
        "packing_strategy": "bfd",
        "pad_to_multiple_of": config.sequence_len if config.pad_to_sequence_len else None,
        # Retention, resuming and reporting are Holdfast's; so is the progress bar.
        "save_total_limit": None,
        "report_to": "none",
        "disable_tqdm": True,
        # Loader processes would make the position in the data a matter of what they had fetched ahead.
        "dataloader_num_workers": 0,
        # A PEFT model hides what its labels are called; saying so spares a warning.
        "label_names": ["labels"],
    }
    if saves.strategy == "steps":
        settings["save_steps"] = saves.steps
    if evaluations.strategy == "steps":
        settings["eval_steps"] = evaluations.steps
    return settings


def _logging_steps(config: "TrainConfig", rows: int) -> int:
    """Returns how often Axolotl logs when nothing says so: 200 times in a run, and at least every ten steps."""
    per_epoch = math.ceil(math.ceil(rows / config.micro_batch_size) / config.gradient_accumulation_steps)
    steps = config.max_steps or math.ceil(per_epoch * config.num_epochs)
    return max(1, min(steps // 200, 10))


def _attention(network: Any) -> str:
    return str(getattr(network.config, "_attn_implementation", None))


def _is_flattened(network: Any) -> bool:
    """Tells whether a batch of packed rows is better handed over as one long row.

    TRL always does it, for attention that works on examples of varying length. Any other computes, and throws away,
    what each token of the batch has to say to each other: on a processor a step of 8 x 128 tokens took two and a half
    times as long as row by row. Models that carry a state along need TRL's way, which says where each example begins.
    """
    implementation = _attention(network)
    return implementation.startswith(_VARIABLE_LENGTH) or bool(getattr(network, "_is_stateful", False))


def _rows_of_several(config: "TrainConfig", tokenizer: Any) -> Any:
    """TRL's collator, for rows that hold several examples each and stay rows."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class RowsOfSeveral(DataCollatorForLanguageModeling):  # type: ignore[misc]
        """Tells examples apart by their positions, as TRL does for a flattened batch.

        TRL then counts the tokens of one row of each batch into the `num_tokens` that it logs.
        """

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            # Not by `return_position_ids`, which TRL has from 1.11 on.
            lengths = [example.get("seq_lengths", [len(example["input_ids"])]) for example in examples]
            batch["position_ids"] = positions = torch.zeros_like(batch["input_ids"])
            for row, own in zip(positions, self.get_position_ids_from_packed_seq_lengths(lengths), strict=True):
                row[: len(own)] = own
            # transformers looks at the positions only where there is no mask, and then makes the right one itself.
            del batch["attention_mask"]
            # Nothing before it belongs to the same example, so there is nothing to predict it from.
            batch["labels"][positions == 0] = -100
            return batch

    multiple = config.sequence_len if config.pad_to_sequence_len else None
    return RowsOfSeveral(pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=multiple)
