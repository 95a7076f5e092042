"""Names that transformers takes for optimizers and schedulers, written out: to ask transformers takes seconds.

`tests/train/config/test_choices.py` compares them with transformers' own.
"""

import importlib.util

from holdfast import wording

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Those that need no package beside torch and transformers."""

BITSANDBYTES_OPTIMIZERS = (
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)

REFUSED_OPTIMIZERS = (
    *("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit"),
    *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
    *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo", "grokadamw"),
    *("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
    *("apollo_adamw", "apollo_adamw_layerwise", "stable_adamw"),
)
"""Those that need other packages, other machines, or keys that there are none of here."""

SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"),
    *("inverse_sqrt", "reduce_lr_on_plateau", "greedy"),
)

REFUSED_SCHEDULERS = ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
"""Those that need arguments, for which there are no keys here."""

SCHEDULERS_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Those that transformers gives no warm-up."""

SCHEDULERS_THAT_WATCH_THE_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Those that need the loss of evaluations."""


def optimizer(name: str) -> str:
    """Returns the name of an optimizer that can be had here; raises ValueError, worded for the user, at any other."""
    if name in BITSANDBYTES_OPTIMIZERS and not has_bitsandbytes():
        raise ValueError(f"{name!r} needs the package bitsandbytes, which is not installed")
    if name in REFUSED_OPTIMIZERS:
        raise ValueError(f"{name!r} is not offered in this version; there are {', '.join(OPTIMIZERS)}")
    if name not in OPTIMIZERS + BITSANDBYTES_OPTIMIZERS:
        raise ValueError(wording.one_of(OPTIMIZERS, name))
    return name


def scheduler(name: str) -> str:
    """Returns the name of a scheduler that can be had here; raises ValueError, worded for the user, at any other."""
    if name in REFUSED_SCHEDULERS:
        raise ValueError(f"{name!r} needs arguments, for which this version has no key")
    if name not in SCHEDULERS:
        raise ValueError(wording.one_of(SCHEDULERS, name))
    return name


def has_bitsandbytes() -> bool:
    """Tells whether the package bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None
