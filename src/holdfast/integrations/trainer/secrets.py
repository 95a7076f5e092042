"""A Trainer's arguments as they are written: without their secrets.

A Trainer pickles its arguments beside every model that it writes (`training_args.bin`): in a checkpoint, on the way to
the hub, at the end. Nothing reads them from there, and its tokens have no business there. The writer is given a copy
of the arguments to pickle; the user's own are never touched. Read against transformers 5.23, whose `_save` and
`_push_from_checkpoint` pickle them; TRL 1.16 leaves it to those.
"""

import copy
import re
from typing import Any

from transformers import Trainer, TrainingArguments

_SECRET = re.compile(r"token|secret|password|(^|_)keys?(_|$)", re.IGNORECASE)
_REDUCE = "__reduce_ex__"


def is_secret(name: str) -> bool:
    """Tells by its words whether an argument of this name is taken for a secret."""
    return _SECRET.search(name) is not None


def blanked(args: TrainingArguments) -> TrainingArguments:
    """Returns a copy whose secrets are None."""
    blank = _copy(args)
    vars(blank).update(dict.fromkeys(filter(is_secret, vars(blank))))
    return blank


def pickled_blank(args: TrainingArguments) -> TrainingArguments:
    """Returns a copy that has its secrets as long as it is not pickled, or copied once more.

    A push needs its token, and a name only looks like a secret's: `average_tokens_across_devices` is none. A writer of
    a subclass that asks for such an argument is to find it.
    """
    copied = _copy(args)
    # `pickle` and `copy` ask the object, not its class, how it is taken apart.
    vars(copied)[_REDUCE] = lambda protocol: blanked(copied).__reduce_ex__(protocol)
    return copied


def _copy(args: TrainingArguments) -> TrainingArguments:
    copied = object.__new__(type(args))
    vars(copied).update({name: value for name, value in vars(args).items() if name != _REDUCE})
    return copied


class SaveWithoutSecrets:
    """Replaces a trainer's `_save`: runs it on a copy of the trainer, whose arguments are pickled without secrets.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model, as `Trainer._save` does."""
        writer = copy.copy(self._trainer)
        writer.args = pickled_blank(writer.args)
        type(writer)._save(writer, *args, **kwargs)
