"""A Trainer's arguments as they are written: without their secrets.

A Trainer pickles its arguments beside every model that it writes (`training_args.bin`): in a checkpoint, on the way to
the hub, at the end. Nothing reads them from there, and its tokens have no business there. So the trainer gets an alias
of the user's arguments, with the same values, that is pickled as a copy whose secrets are None; the user's own object,
and its class, stay as they are.
"""

import copy
from typing import Any

from transformers import TrainingArguments

from holdfast.state.recorded_settings import is_secret


def pickled_blank(args: TrainingArguments) -> TrainingArguments:
    """Returns an alias of arguments: they have the same values, now and later, and are pickled without their secrets.

    Training itself, and copies of the alias, have the secrets still: a push needs its token, and a name only looks like
    a secret's (`average_tokens_across_devices` is none).
    """
    if isinstance(args, _PickledBlank):
        return args
    alias: TrainingArguments = object.__new__(_pickled_blank_class(type(args)))
    alias.__dict__ = args.__dict__
    return alias


class _PickledBlank:
    def __reduce_ex__(self, protocol: Any) -> Any:
        own = type(self).__mro__[2]  # behind the class that was made for it, and this one
        blank: Any = object.__new__(own)
        blank.__dict__.update({name: None if is_secret(name) else value for name, value in vars(self).items()})
        # The form of later protocols insists that what is made is of the class of what was pickled.
        return blank.__reduce_ex__(1)

    # Copies go by `__reduce_ex__` unless told otherwise, and are no less in need of a token.
    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied


def _pickled_blank_class(own: type) -> type:
    return type(own.__name__, (_PickledBlank, own), {"__module__": own.__module__})
