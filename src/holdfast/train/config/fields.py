"""Every key of `holdfast train config.yml`, with its type, its default and its meaning.

`docs/configuration.md` lists the same keys for users; a test compares the two.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from holdfast.settings import DynamicCheckpoint, Settings
from holdfast.train.config.schedule import ScheduleFields
from holdfast.train.config.types import (
    AutoOrBool,
    Count,
    Fields,
    OffloadOrBool,
    OneOrMoreTexts,
    Optimizer,
    PathText,
    Positive,
    PositiveOrZero,
    Scheduler,
    Share,
    Text,
    TextOrTexts,
    Texts,
    as_number,
    as_tuple,
)

_DEFAULT_SEED = 42


class DatasetConfig(Fields):
    """One of the `datasets`."""

    path: PathText
    """A local file or directory, a name on the hub, or a file format of `datasets` such as `json` with `data_files`."""

    type: Literal["completion", "chat_template", "alpaca", "pretrain"]
    """The way in which a row becomes text to train on."""

    split: Text | None = None
    """The split to take. Unset takes `train`."""

    data_files: OneOrMoreTexts | None = None
    """The files to take out of `path`."""

    name: Text | None = None
    """The name of the configuration to take, where a hub dataset has several."""

    field_messages: Text | None = None
    """With `chat_template`: the column that holds the messages. Unset takes `messages`."""

    chat_template: Text | None = None
    """With `chat_template`: the template for this dataset, where it is not the run's."""


class SpecialTokens(Fields):
    """Tokens that replace the tokenizer's own."""

    bos_token: Text | None = None
    """Begins a sequence."""

    eos_token: Text | None = None
    """Ends a sequence."""

    pad_token: Text | None = None
    """Fills a sequence up."""

    unk_token: Text | None = None
    """Stands for what the tokenizer does not know."""


class TrainConfig(Settings, ScheduleFields):
    """The configuration of a training run.

    The settings of its saves are declared in `Settings`, what is counted in steps or epochs in `ScheduleFields`.
    """

    # What is trained, on what, and where the result goes.

    base_model: PathText
    """The model to start from: a local directory or a name on the hub."""

    reinit_weights: bool = False
    """Builds the model from its configuration with fresh weights, instead of loading the weights."""

    datasets: Annotated[tuple[DatasetConfig, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """The data sets that are trained on."""

    output_dir: PathText = "./model-out"
    """The run directory, into which checkpoints and the final model go."""

    dataset_prepared_path: PathText | None = None
    """The directory in which prepared data is kept between runs."""

    # On-demand saving.

    dynamic_checkpoint: DynamicCheckpoint = DynamicCheckpoint()
    """Saving on demand through a trigger file: off where the file does not turn it on."""

    @field_validator("save_minutes", "stop_grace_seconds", "rank_timeout_seconds", mode="before")
    @classmethod
    def _number_of_yaml(cls, value: object) -> object:
        return as_number(value)

    # How rows become batches.

    sequence_len: Count = 512
    """The longest sequence, in tokens."""

    sample_packing: bool | None = None
    """Puts several short examples into one sequence."""

    pad_to_sequence_len: bool | None = None
    """Fills every batch up to `sequence_len`."""

    train_on_inputs: bool = False
    """Trains on the prompt as well as on the answer."""

    chat_template: Text | None = None
    """The chat template. Unset takes the tokenizer's own."""

    special_tokens: SpecialTokens = SpecialTokens()
    """Tokens that replace the tokenizer's own."""

    micro_batch_size: Count = 1
    """Sequences in one forward pass on one device."""

    gradient_accumulation_steps: Count = 1
    """Forward passes for one optimizer step."""

    # How the weights move.

    learning_rate: Positive
    """The learning rate after warm-up."""

    optimizer: Optimizer = "adamw_torch_fused"
    """The optimizer, by the name that transformers has for it."""

    lr_scheduler: Scheduler = "cosine"
    """The schedule of the learning rate, by the name that transformers has for it."""

    weight_decay: PositiveOrZero = 0.0
    """The weight decay."""

    max_grad_norm: PositiveOrZero | None = None
    """Clips gradients to this norm; 0 does not clip. Unset takes transformers' default, 1.0."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """The start of the random numbers. Unset acts as 42."""

    # LoRA.

    adapter: Literal["lora", "qlora"] | None = None
    """Trains an adapter and leaves the model's own weights as they are. Unset trains all weights."""

    lora_r: Count | None = None
    """The rank of the adapter."""

    lora_alpha: Count | None = None
    """The adapter's scale is `lora_alpha / lora_r`."""

    lora_dropout: Share = 0.0
    """Dropout in the adapter."""

    lora_target_modules: TextOrTexts | None = None
    """The modules that get an adapter: a list of names, or one text that PEFT takes as a pattern."""

    lora_target_linear: bool | None = None
    """Gives every linear layer an adapter."""

    lora_modules_to_save: Texts | None = None
    """Modules that are trained in full and saved with the adapter."""

    lora_model_dir: PathText | None = None
    """An adapter to go on training. It brings its own rank, scale and modules."""

    # How it is computed.

    load_in_4bit: bool = False
    """Loads the model's own weights in 4 bits."""

    load_in_8bit: bool = False
    """Loads the model's own weights in 8 bits."""

    bf16: AutoOrBool = "auto"
    """Computes in bfloat16. `auto` does so where the hardware has it, and chooses float16 on older NVIDIA cards."""

    fp16: bool | None = None
    """Computes in float16 with a gradient scaler."""

    tf32: AutoOrBool = "auto"
    """Lets matrix products use TF32. `auto` does so where the device has it."""

    gradient_checkpointing: OffloadOrBool = False
    """Computes activations again in the backward pass to save memory; `offload` also keeps the rest in host memory."""

    attn_implementation: Text | None = None
    """The implementation of attention, by the name that transformers has for it."""

    # Read and not acted on.

    plugins: Texts = ()
    """Axolotl's plugins. They are not run."""

    @property
    def random_seed(self) -> int:
        """The start of the random numbers: 42 where no seed is set."""
        return _DEFAULT_SEED if self.seed is None else self.seed
