"""A Trainer's arguments as they are written: without their secrets.

A Trainer pickles its arguments beside every model that it writes (`training_args.bin`): in a checkpoint, on the way to
the hub, at the end. Nothing reads them from there, and its tokens have no business there. So the trainer gets an alias
of the user's arguments, with the same values, that is pickled as a copy whose secrets are None, however deep they are;
the user's own object, its class, and whatever it holds stay as they are.
"""

import copy
import copyreg
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from transformers import TrainingArguments

from holdfast.state.secrets import is_blank_where_secret, is_secret

_NO_SECRETS = (int, float, complex, type(None), Enum)
# Pickled by name, or without a name for what is inside.
_OPAQUE = (
    *(type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, PurePath, set, frozenset),
    *(torch.Tensor, torch.dtype, torch.device, torch.Size, torch.nn.Module),
)


def pickled_blank(args: TrainingArguments) -> TrainingArguments:
    """Returns an alias of arguments: they have the same values, now and later, and are pickled without their secrets.

    Training itself, and copies of the alias, have the secrets still: a push needs its token, and a name only looks like
    a secret's (`average_tokens_across_devices` is none). What a subclass keeps in slots is as it is now.
    """
    if isinstance(args, _PickledBlank):
        return args
    return with_values_of(args, _pickled_blank_class(type(args)), vars(args))


class _PickledBlank:
    def __reduce_ex__(self, protocol: Any) -> Any:
        own = type(self).__mro__[2]  # behind the class that was made for it, and this one
        reduced = with_values_of(self, own, vars(self)).__reduce_ex__(max(2, protocol))
        if isinstance(reduced, str):
            return reduced
        made, arguments, *rest = _Blanks(protocol).of_reduced(reduced)
        if getattr(made, "__name__", "") == "__newobj__" and len(arguments) == 1:
            # The form of later protocols insists that what is made is of the class of what was pickled.
            made, arguments = copyreg._reconstructor, (own, object, None)  # type: ignore[attr-defined]
        return (made, arguments, *rest)

    # Copies go by `__reduce_ex__` unless told otherwise, and are no less in need of a token.
    def __copy__(self) -> Any:
        return with_values_of(self, type(self), dict(vars(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = with_values_of(self, type(self), {})
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied


def _pickled_blank_class(own: type) -> type:
    return type(own.__name__, (_PickledBlank, own), {"__module__": own.__module__})


def with_values_of(args: Any, kind: type, attributes: dict[str, Any]) -> Any:
    """Returns arguments of another class that have the values of others.

    Args:
        args: The others, which the values of slots are taken from.
        kind: The class.
        attributes: The values of all other attributes.
    """
    made: Any = object.__new__(kind)
    made.__dict__ = attributes
    for member in kind.__mro__:
        for slot in vars(member).values():
            # Not by name: a property may stand before it.
            if isinstance(slot, MemberDescriptorType) and isinstance(args, member):
                with suppress(AttributeError):  # nothing is in it
                    slot.__set__(made, slot.__get__(args))
    return made


class _Blanks:
    """Makes what is pickled in the place of values: the same without their secrets.

    Nothing is copied, and no value is changed: an object is asked for what it would be pickled as, and that goes
    through here. An object that a secret's name names is None, for nothing tells what is inside of it; so is one that
    cannot be pickled.

    Args:
        protocol: The protocol of the pickle.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = max(2, protocol)
        # By number, and whether a secret's name led there; with what it stands for, which has the number meanwhile.
        self._known: dict[tuple[int, bool], tuple[Any, Any]] = {}

    def of(self, value: Any, *, secret: bool = False) -> Any:
        """Returns what is pickled for a value; `secret` where a secret's name names it."""
        if is_blank_where_secret(value):
            return None if secret else value
        if isinstance(value, _NO_SECRETS):
            return value
        if (id(value), secret) in self._known:
            return self._known[id(value), secret][1]
        kind = type(value)
        if kind is dict:
            return self._remembered(value, {}, secret=secret)
        if kind is list:
            return self._remembered(value, [], secret=secret)
        if kind is tuple:
            return tuple(self.of(inner, secret=secret) for inner in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            named = zip(value._fields, value, strict=True)
            return kind(*(self.of(inner, secret=secret or is_secret(name)) for name, inner in named))
        if secret or isinstance(value, _OPAQUE):
            return None if secret else value
        return self._of_object(value)

    def of_reduced(self, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns what `__reduce_ex__` gave, without the secrets in it."""
        made, arguments, *rest = reduced
        state, items, pairs, *setter = (*rest, None, None, None)[: max(3, len(rest))]
        return (
            made,
            tuple(self.of(argument) for argument in arguments),
            self.of(state),
            None if items is None else iter([self.of(item) for item in items]),
            None if pairs is None else iter([(key, self._under(key, value)) for key, value in pairs]),
            *setter,
        )

    def _remembered(self, value: Any, blank: Any, *, secret: bool) -> Any:
        self._known[id(value), secret] = (value, blank)  # before what is inside, which may lead back here
        if isinstance(blank, dict):
            blank.update({key: self._under(key, inner, secret=secret) for key, inner in value.items()})
        else:
            blank.extend(self.of(inner, secret=secret) for inner in value)
        return blank

    def _under(self, key: Any, value: Any, *, secret: bool = False) -> Any:
        return self.of(value, secret=secret or (isinstance(key, str) and is_secret(key)))

    def _of_object(self, value: Any) -> Any:
        reduce: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
        try:
            reduced = value.__reduce_ex__(self._protocol) if reduce is None else reduce(value)
        except Exception:  # noqa: BLE001 - it is somebody's object, and a save must not fail by what nobody reads
            return None
        stand_in = value if isinstance(reduced, str) else _Blank(value, self._by_names(value, reduced), self)
        self._known[id(value), False] = (value, stand_in)
        return stand_in

    def _by_names(self, value: Any, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns what a dataclass is pickled as without what its secret fields hold, where that is a list of values.

        One that is frozen and has slots is pickled so, and the list has no names.
        """
        state = reduced[2] if len(reduced) > 2 else None
        if not (dataclasses.is_dataclass(value) and isinstance(state, list)):
            return reduced
        if len(fields := dataclasses.fields(value)) != len(state):
            return reduced
        named = zip(fields, state, strict=True)
        blank = [self.of(inner, secret=True) if is_secret(field.name) else inner for field, inner in named]
        return (*reduced[:2], blank, *reduced[3:])


class _Blank:
    """The stand-in of an object: it is pickled as the object is, without the secrets."""

    def __init__(self, value: Any, reduced: tuple[Any, ...], blanks: _Blanks) -> None:
        self._class = type(value)
        self._reduced = reduced
        self._blanks = blanks

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # Pickle compares it with the class that it is told to make an object of.
        return object.__getattribute__(self, "_class")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._blanks.of_reduced(self._reduced)
