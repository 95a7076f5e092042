"""State that TRL's trainers keep in attributes: the batches that were generated and are not yet trained on.

GRPO, RLOO and their kind generate for several steps at once; without these a resume would generate anew, and in other
steps. Read against TRL 1.16.
"""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from holdfast.state import values

ATTRIBUTES = ("_step", "_buffered_inputs")
"""The forward passes so far, and what was generated for this one and the next."""


def record(trainer: Trainer) -> dict[str, Any]:
    """Records that state, as of now; nothing where the next step generates in any case.

    No tensor is copied: what was generated is replaced as a whole, and never written to.
    """
    attributes = vars(trainer)
    if any(name not in attributes for name in ATTRIBUTES) or attributes["_buffered_inputs"] is None:
        return {}
    if attributes["_step"] % _generation_steps(trainer) == 0:
        return {}
    return {name: values.snapshot(attributes[name], values.live) for name in ATTRIBUTES}


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Puts back what `record` gave, right before the first step."""
    for name in ATTRIBUTES:
        if name in state:
            setattr(trainer, name, state[name])


def _generation_steps(trainer: Trainer) -> int:
    """Returns for how many forward passes is generated at once."""
    steps = getattr(trainer.args, "steps_per_generation", None) or trainer.args.gradient_accumulation_steps
    return int(steps * getattr(trainer, "num_iterations", 1))
