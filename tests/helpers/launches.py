"""What a thread asks a card to do, and what it would wait for: with tensors of the CPU that are taken for a card's."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAIT = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
}
# What only looks at a tensor otherwise, or makes one without a value.
_NO_LAUNCH = (
    "view",
    "reshape",
    "detach",
    "alias",
    "slice",
    "select",
    "as_strided",
    "t",
    "transpose",
    "expand",
    "empty",
)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of torch that a card would get, by name, and fails at one that would wait for it.

    Args:
        is_on_card: Tells whether a tensor is taken for one of a card.
    """

    def __init__(self, is_on_card: Callable[[torch.Tensor], bool] = lambda _: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_on_card = is_on_card
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if any(map(self._is_on_card, _tensors(args))):
            assert name not in _WAIT, f"{name} waits for a card"
            if name.removeprefix("aten::").removeprefix("_").split("_")[0] not in _NO_LAUNCH:
                self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _tensors(args: Any) -> list[torch.Tensor]:
    tensors = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            tensors.append(arg)
        elif isinstance(arg, list | tuple):
            tensors += _tensors(arg)
    return tensors
