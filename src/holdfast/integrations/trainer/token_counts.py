"""The tokens that Axolotl's trainers have counted, which are logged: `tokens`, beside the fields of a Trainer's state.

transformers writes the fields alone. Axolotl writes `tokens_state.json` of its own into a checkpoint, and reads it
where its configuration has `resume_from_checkpoint` from the beginning. Read against axolotl 0.19.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerState

from holdfast.state import inline_tensors

_NAME = "tokens"


def record(state: TrainerState) -> dict[str, torch.Tensor]:
    """Returns the counts as of now, by name; none where nobody counts. A count is replaced, and never written to."""
    counts = getattr(state, _NAME, None)
    return dict(counts) if isinstance(counts, dict) else {}


def detached(copied: TrainerState) -> TrainerState:
    """Returns a copy of a state, with counts of its own: those that it has been given are the state's, and go on."""
    if counts := record(copied):
        setattr(copied, _NAME, counts)
    return copied


def encode(counts: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the counts as JSON."""
    return inline_tensors.encode(counts)


def restore(state: TrainerState, entry: Mapping[str, Any]) -> None:
    """Puts the counts back, right before the first step, in their own dtypes: they are added up in those."""
    if counts := inline_tensors.decode(entry):
        setattr(state, _NAME, counts)
