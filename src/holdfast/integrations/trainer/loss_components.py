"""The sums of a loss's components since the last line of the log, as the trainers of sentence-transformers keep them.

A loss that returns a dict has each of its values logged, as its mean. Read against sentence-transformers 6.2.
"""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from holdfast.state import values

NAME = "accum_loss_components"
"""The trainer's attribute that has them."""
_TRAIN = "train"


def record(trainer: Trainer) -> dict[str, Any]:
    """Records them as of now, by the name of their attribute; nothing where a trainer has none.

    They are numbers, each a tensor of its own; that of the steps is added to in place.
    """
    of_trainer = vars(trainer).get(NAME)
    sums = of_trainer.get(_TRAIN) if isinstance(of_trainer, dict) else None
    return {NAME: values.snapshot(sums, values.cloned)} if sums else {}


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Puts back what `record` gave, right before the first step."""
    if isinstance(vars(trainer).get(NAME), dict) and isinstance(state.get(NAME), dict):
        device = trainer.args.device
        getattr(trainer, NAME)[_TRAIN] = {name: number.to(device) for name, number in state[NAME].items()}
