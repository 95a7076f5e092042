"""The refusals of `attach`: what is no trainer that it takes, by name, with what to use in its place."""

import sys
from typing import Any

from holdfast.errors import UnsupportedError

_TAKEN = "attach takes a trainer of transformers (TRL's and sentence-transformers' are such) or of Lightning"
_LOOP = "for a loop of your own use holdfast.Checkpointer(output_dir, model=..., optimizer=...)"
# By the package whose own object somebody brings: what to use in its place.
_INSTEAD = {
    "accelerate": f"{_LOOP}, and give it what prepare() returned",
    "ignite": f"{_LOOP}, and call its step() in a handler of the engine's ITERATION_COMPLETED",
    "deepspeed": "attach the transformers Trainer whose arguments have deepspeed=...: DeepSpeed's writer saves it",
    "setfit": "train its body with sentence_transformers.SentenceTransformerTrainer, which attach takes",
    "lightning": f"attach the lightning.Trainer that trains it; of Fabric: {_LOOP}, with what setup() returned",
    "axolotl": "in an Axolotl configuration: plugins: [holdfast.integrations.axolotl.HoldfastPlugin]",
}
_SAME = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning"}


def refusal_of(stranger: Any) -> UnsupportedError:
    """Returns the error for something that `attach` does not take.

    Args:
        stranger: Anything.
    """
    named, instead = _in_words(stranger)
    return UnsupportedError(f"{_TAKEN}, and this is {named}", hint=instead)


def _in_words(stranger: Any) -> tuple[str, str]:
    if stranger is None:
        return "None", "make the trainer first: trainer = Trainer(...), then attach(trainer)"
    if isinstance(stranger, type):
        return f"the class {stranger.__name__}", f"where it is a trainer's, make one first: {stranger.__name__}(...)"
    package = type(stranger).__module__.partition(".")[0]
    name = type(stranger).__name__
    instead = _INSTEAD.get(_SAME.get(package, package))
    if instead is None and _is_model(stranger):
        return f"a model, {name}", f"attach the trainer that trains it; {_LOOP}"
    return f"{package}'s {name}", instead or _LOOP


def _is_model(stranger: Any) -> bool:
    torch = sys.modules.get("torch")  # nobody has a module without it
    return torch is not None and isinstance(stranger, torch.nn.Module)
