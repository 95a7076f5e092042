"""Tensors of a device that this program does not know, as MPS is one: the host's, in a wrapping that says otherwise."""

from typing import Any

import torch
from torch.utils._pytree import tree_map


class Elsewhere(torch.Tensor):
    """A tensor with no address, whose values come to the host by `cpu()` alone."""

    on_host: torch.Tensor

    @staticmethod
    def __new__(cls: Any, inner: torch.Tensor) -> "Elsewhere":
        form: dict[str, Any] = {"strides": inner.stride(), "dtype": inner.dtype, "device": "mps:0"}
        wrapped: Elsewhere = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **form)
        wrapped.on_host = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Does what is asked on the host."""
        wanted = dict(kwargs or {})
        to_host = func is torch.ops.aten._to_copy.default and wanted.get("device") == torch.device("cpu")
        wanted.pop("device", None)
        outcome = func(*tree_map(_inner, args), **tree_map(_inner, wanted))
        return outcome if to_host else tree_map(_wrapped, outcome)


def _inner(value: Any) -> Any:
    return value.on_host if isinstance(value, Elsewhere) else value


def _wrapped(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, torch.Tensor) else value
