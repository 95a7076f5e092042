"""The tensors that can be reached from a training's objects: reference models, teachers, averages, a loss.

Attributes, containers, dataclasses and modules are followed. What has samples, text or connections is not, nor is code:
no tensor in there is a training's own. A place is named as a user would write it: `ref_model.fc.weight`,
`callbacks[Ema].shadow[0]`.
"""

import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from torch import nn, optim
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from holdfast.state.module_tensors import identity, modules_of, slots_of
from holdfast.state.values import tensors_in

MOST_OBJECTS = 200_000
"""A walk ends after so many. Nothing that trains has them; a table of samples may."""

_LEAVES = (
    type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type, Enum, PurePath,
    torch.dtype, torch.device, torch.Size, torch.Generator,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.FrameType,
    types.GeneratorType, types.CodeType, types.TracebackType, weakref.ref, weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary, weakref.WeakSet, BaseException,
    Dataset, DataLoader, Sampler,
)  # fmt: skip
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
# By the package of an object's class: data and tokenizers, accelerate (which holds gradients, and the training's own
# objects once more), trackers, arrays, and what has threads, files and connections.
_FOREIGN = frozenset((
    "accelerate", "datasets", "tokenizers", "sentencepiece", "pyarrow", "pandas", "numpy", "scipy", "PIL", "logging",
    "threading", "_thread", "multiprocessing", "concurrent", "asyncio", "queue", "socket", "http", "urllib3",
    "requests", "httpx", "io", "_io", "os", "re", "ctypes", "inspect", "importlib", "functools", "wandb", "tensorboard",
    "tensorboardX", "mlflow", "comet_ml", "neptune", "clearml", "trackio", "swanlab", "aim", "tqdm", "rich", "vllm",
    "deepspeed", "huggingface_hub", "holdfast",
))  # fmt: skip
_FOREIGN_PREFIXES = ("torch.distributed", "torch._C", "torch.cuda", "torch.utils.data", "torch.utils.tensorboard")
# By name, since transformers need not be there.
_FOREIGN_CLASSES = frozenset(("PreTrainedTokenizerBase", "ProcessorMixin", "BaseImageProcessor", "TrainingArguments"))
_OF_A_MODULE = ("_parameters", "_buffers", "_modules")
# The first two are its state, which is saved; the others what it is made with.
_OF_AN_OPTIMIZER = ("state", "param_groups", "defaults", "_zero_grad_profile_name")
# What torchmetrics' metrics keep of their last calls: it follows from their states, and there is none before a call.
_OF_A_METRIC = (*_OF_A_MODULE, "_forward_cache", "_computed", "_cache")
_leaf_kinds: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
# A table of numbers or text is told by its first item.
_SHORT = 1000
_CONTAINERS = frozenset((dict, OrderedDict, list, tuple, set))


Hop = tuple[bool, Any]
"""A step on the way to a place: an attribute's name, with True, or a key or index."""


@dataclass(frozen=True)
class Place:
    """A place that holds a tensor.

    Args:
        name: Its name, for people and for a checkpoint.
        hops: The way to it from the roots.
        tensor: The tensor that was there.
        holder: What it was found in, and the key there. An object's attributes are its dictionary.
    """

    name: str
    hops: tuple[Hop, ...]
    tensor: torch.Tensor
    holder: tuple[Any, Any]


class Walk:
    """One walk over everything that can be reached from some roots.

    Args:
        roots: Objects by the names that their places begin with. The attributes of one without a name go by their own.
        known: What need not be looked for, each with its name: tensors of parts by `identity`, and objects whose own
            state is saved by `id`.
        left_out: The names of places that are not followed.

    Attributes:
        places: The tensors that are in no part, by name, each once.
        complete: False where there was too much to be looked through.
    """

    def __init__(self, roots: Mapping[str, object], known: Mapping[Any, str], left_out: Collection[str] = ()) -> None:
        self.places: dict[str, Place] = {}
        self.complete = True
        self._known = known
        self._left_out = left_out
        # Objects are kept while the walk lasts: the ids of those that are gone would be others'.
        self._seen: dict[int, object] = {}
        # Broad before deep: a tensor goes by its shortest name.
        self._waiting: deque[tuple[str, tuple[Hop, ...], Any, Any]] = deque(
            (name, ((False, name),), root, (roots, name)) for name, root in roots.items()
        )
        while self._waiting:
            if len(self._seen) > MOST_OBJECTS:
                self.complete = False
                return
            self._visit(*self._waiting.popleft())

    @property
    def objects(self) -> int:
        """The number of objects that were looked at."""
        return len(self._seen)

    def _visit(self, name: str, hops: tuple[Hop, ...], value: Any, holder: tuple[Any, Any]) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            # What has a history is an intermediate result of the last forward, and no state.
            if value.grad_fn is None and not value.is_meta and identity(value) not in self._known:
                self.places.setdefault(name, Place(name, hops, value, holder))
        elif id(value) not in self._known and not _is_leaf(type(value)):
            for label, way, item, inside in self._children(name, value):
                kind = type(item)
                # Most of what there is: values, and the dictionaries that a module has for hooks.
                if kind not in _PLAIN and (kind not in _CONTAINERS or item) and label not in self._left_out:
                    self._waiting.append((label, (*hops, *way), item, (inside, way[-1][1])))

    def _children(self, name: str, value: Any) -> Iterator[tuple[str, tuple[Hop, ...], Any, Any]]:
        """Yields what an object holds: name, way, itself, and what it is a key of.

        Containers are copied first, in one go: training may change them meanwhile.
        """
        dot = f"{name}." if name else ""
        if isinstance(value, dict):
            for key, item in list(value.items()):
                if (label := self._label(key)) is not None:
                    yield f"{name}[{label}]", ((False, key),), item, value
        elif isinstance(value, list | tuple | deque):
            items = list(value)
            if len(items) < _SHORT or type(items[0]) not in _PLAIN:
                yield from ((f"{name}[{index}]", ((False, index),), item, value) for index, item in enumerate(items))
        if isinstance(value, nn.Module):
            for kind in _OF_A_MODULE:
                for key, item in list(value.__dict__[kind].items()):
                    # Wrappers come and go from run to run, and names must not.
                    label = name if key in ("_orig_mod", "module") and _is_wrapper(value) else f"{dot}{key}"
                    yield label, ((True, kind), (False, key)), item, value.__dict__[kind]
        passed_over = _passed_over(value)
        for key, item in list(getattr(value, "__dict__", {}).items()):
            if key not in passed_over:
                yield f"{dot}{key}", ((True, key),), item, value.__dict__
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for key in (slots,) if isinstance(slots, str) else slots:
                if key not in ("__dict__", "__weakref__") and hasattr(value, key):
                    yield f"{dot}{key}", ((True, key),), getattr(value, key), _Slots(value)

    def _label(self, key: Any) -> str | None:
        """Returns what a key is called; None where it has no name that a later process would give it too."""
        if isinstance(key, torch.Tensor):
            return self._known.get(identity(key))
        return str(key) if type(key) in (str, int) else None


def _passed_over(value: Any) -> tuple[str, ...]:
    """Returns the attributes of an object that are looked through otherwise, or follow from the others."""
    if isinstance(value, optim.Optimizer):
        return _OF_AN_OPTIMIZER
    is_metric = isinstance(value, nn.Module) and any(
        kind.__name__ == "Metric" and kind.__module__.startswith("torchmetrics.") for kind in type(value).__mro__
    )
    return _OF_A_METRIC if is_metric else _OF_A_MODULE


class _Slots:
    """The attributes of an object that has no dictionary, as one."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self._owner, key)
        except AttributeError as error:
            raise KeyError(key) from error


def resolve(roots: Mapping[str, object], hops: Sequence[Hop]) -> torch.Tensor | None:
    """Returns the tensor that is at a place now; None where none is."""
    value: Any = roots
    try:
        for is_attribute, key in hops:
            value = getattr(value, key) if is_attribute else value[key]
    except (LookupError, AttributeError, TypeError):
        return None
    return value if isinstance(value, torch.Tensor) else None


def known_of(named: Mapping[str, object]) -> dict[Any, str]:
    """Returns what the parts of some objects save, for `Walk`: their tensors, or they themselves.

    Args:
        named: Modules, optimizers, and what says itself what its state is, by name.
    """
    known: dict[Any, str] = {}
    # Models first: a parameter goes by its name there.
    for name, value in sorted(named.items(), key=lambda pair: not isinstance(pair[1], nn.Module)):
        if isinstance(value, nn.Module):
            for slot in slots_of(value):
                known.setdefault(identity(slot.tensor), f"{name}.{slot.name}")
            for prefix, inner in modules_of(value):
                if type(inner).get_extra_state is not nn.Module.get_extra_state:
                    known.update((identity(t), path) for path, t in tensors_in(inner.get_extra_state(), prefix))
        elif isinstance(value, optim.Optimizer) and type(value).__module__.startswith("torch.optim"):
            for path, tensor in _tensors_of_optimizer(value, name):
                known.setdefault(identity(tensor), path)
        else:
            known[id(value)] = name
    return known


def _tensors_of_optimizer(optimizer: optim.Optimizer, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    for content in list(optimizer.state.values()):
        yield from tensors_in(content, name)
    for group in optimizer.param_groups:
        # Its members are in no part by that alone: a loss may have them.
        yield from tensors_in({key: value for key, value in group.items() if key != "params"}, name)


def _is_leaf(kind: type) -> bool:
    """Tells whether objects of a class are not followed."""
    if (known := _leaf_kinds.get(kind)) is not None:
        return known
    module = str(kind.__module__)
    is_leaf = not issubclass(kind, nn.Module) and (
        issubclass(kind, _LEAVES)
        or module.partition(".")[0] in _FOREIGN
        or module.startswith(_FOREIGN_PREFIXES)
        or any(base.__name__ in _FOREIGN_CLASSES for base in kind.__mro__)
    )
    _leaf_kinds[kind] = is_leaf
    return is_leaf


def _is_wrapper(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or isinstance(module, DataParallel | DistributedDataParallel)
