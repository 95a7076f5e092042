"""Arguments of a Trainer that keep their secrets, whoever writes them down.

A Trainer pickles its arguments beside every model that it writes (`training_args.bin`): in a checkpoint, on the way to
the hub, at the end. Nothing reads them from there, and its tokens have no business there.
"""

import copy
import re
from typing import Any

from transformers import TrainingArguments

_SECRET = re.compile(r"token|secret|password|(^|_)keys?(_|$)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an argument of this name is taken for a secret, going by its words."""
    return _SECRET.search(name) is not None


def keep(args: TrainingArguments) -> None:
    """From here on these arguments are pickled without their secrets. Training itself, and copies, have them still."""
    own = type(args)
    if not issubclass(own, _Discreet):
        args.__class__ = type(own.__name__, (_Discreet, own), {"__module__": own.__module__})


class _Discreet:
    def __reduce_ex__(self, protocol: Any) -> Any:
        own = type(self).__mro__[2]  # behind the class that `keep` made, and this one
        told: Any = object.__new__(own)
        told.__dict__.update({name: None if is_secret(name) else value for name, value in vars(self).items()})
        # The form of later protocols insists that what is made is of the class of what was pickled.
        return told.__reduce_ex__(1)

    # Copies go by `__reduce_ex__` unless told otherwise, and are no less in need of a token.
    def __copy__(self) -> Any:
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(vars(self), memo))
        return made
