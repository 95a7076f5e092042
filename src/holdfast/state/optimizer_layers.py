"""The layers of an optimizer: those that were put around others, and what each says of its own state.

Optimizers keep state in three places: in `.state`, as torch's own do; in what their own `state_dict` gives; in an
optimizer inside of them. Nothing is loaded to find out: `state_dict` is asked once, and who was asked in turn is seen.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from torch import optim

Form = Literal["groups", "stated", "extras", "attributes"]


class Layer(NamedTuple):
    """One layer of an optimizer, or one of the places of its state."""

    path: str
    """Its place in the registered one, as attributes and keys; empty for that itself."""
    form: Form
    """`groups`: `.state` and groups, as torch has them; `stated`: all that its own `state_dict` gives; `extras`: what
    that gives beside torch's own; `attributes`: what it keeps anywhere else."""
    optimizer: Any


class LocalShare:
    """An optimizer of which this process has a share, as if it were one: the groups are its, the state is the share's.

    `ZeroRedundancyOptimizer` gives no `state_dict` without a collective of all processes. Before each step it copies
    the settings of its groups to the optimizer of its own share.

    Args:
        whole: The one that all processes have, with all parameters.
        share: The one inside, with the parameters that this process updates.
    """

    def __init__(self, whole: Any, share: Any) -> None:
        self.whole = whole
        self._share = share

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, with the parameters of all processes."""
        return self.whole.param_groups  # type: ignore[no-any-return]

    @property
    def state(self) -> dict[Any, Any]:
        """The state of the share."""
        return self._share.state  # type: ignore[no-any-return]

    @property
    def class_name(self) -> str:
        """The names of both classes."""
        return f"{type(self.whole).__qualname__} of {type(self._share).__qualname__}"

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds a group to the whole, which gives this process its share of it."""
        self.whole.add_param_group(group)

    def updates(self, parameter: Any) -> bool:
        """Tells if a parameter is in the share of this process."""
        return any(parameter is member for group in self._share.param_groups for member in group["params"])


def is_optimizer(value: object) -> bool:
    """Tells if something updates parameters; a schedule only knows one that does."""
    return isinstance(value, optim.Optimizer) or isinstance(getattr(value, "param_groups", None), list | tuple)


def layers_of(registered: object) -> list[Layer]:
    """Returns the layers of an optimizer from the outermost in; none where nothing gives its state."""
    return list(_layers("", registered, set()))


def unwrapped(optimizer: object) -> Any:
    """Returns what accelerate has put its wrapper around: that has no state of its own."""
    module = sys.modules.get("accelerate.optimizer")
    while module is not None and type(optimizer) is module.AcceleratedOptimizer:
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def inner_optimizers(optimizer: object) -> Iterator[tuple[str, Any]]:
    """Yields the optimizers that one has as attributes, or in lists and dictionaries of its own, with their places."""
    for name, value in _attributes(optimizer).items():
        entries: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            entries = value.items()
        elif isinstance(value, list | tuple):
            entries = enumerate(value)
        for path, candidate in [(name, value), *((f"{name}/{key}", entry) for key, entry in entries)]:
            if candidate is not optimizer and not isinstance(candidate, type) and is_optimizer(candidate):
                yield path, candidate


def with_inner(optimizer: object) -> list[object]:
    """Returns an optimizer and all inside of it."""
    known: dict[int, object] = {}
    waiting = [optimizer]
    while waiting:
        current = waiting.pop()
        if id(current) not in known:
            known[id(current)] = current
            waiting += [inner for _, inner in inner_optimizers(current)]
    return list(known.values())


def _layers(path: str, optimizer: object, seen: set[int]) -> Iterator[Layer]:
    optimizer = unwrapped(optimizer)
    if id(optimizer) in seen:
        return
    seen.add(id(optimizer))
    inside = dict(inner_optimizers(optimizer))
    is_torch = isinstance(optimizer, optim.Optimizer)
    if _states_itself(optimizer):
        said, asked = _ask(optimizer, inside)
        if said is not None:
            adds = is_torch and id(optimizer) in asked and _is_torchs_form(said) and not _has_hooks(optimizer)
            forms: tuple[Form, ...] = ("groups", "extras") if adds else ("stated",)
            yield from (Layer(path, form, optimizer) for form in forms)
            seen.update(asked)
        elif len(inside) == 1 and _is_share(optimizer, share := unwrapped(*inside.values())):
            yield Layer(path, "groups", LocalShare(optimizer, share))
            return
    elif isinstance(optimizer, optim.Optimizer):
        if not any(optimizer.state is unwrapped(inner).state for inner in inside.values() if hasattr(inner, "state")):
            yield Layer(path, "groups", optimizer)
        if not type(optimizer).__module__.startswith("torch.optim"):
            yield Layer(path, "attributes", optimizer)
    elif inside:
        yield Layer(path, "attributes", optimizer)
    for place, inner in inside.items():
        yield from _layers(f"{path}/{place}" if path else place, inner, seen)


def _states_itself(optimizer: Any) -> bool:
    """Tells if an optimizer gives and takes a state in a way of its own, and not as torch's do."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("state_dict", "load_state_dict")):
        return False
    return type(optimizer).state_dict is not optim.Optimizer.state_dict or _has_hooks(optimizer)


def _has_hooks(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "_optimizer_state_dict_post_hooks", None))


def _ask(optimizer: Any, inside: Mapping[str, Any]) -> tuple[Any, set[int]]:
    """Asks an optimizer for its state.

    Returns:
        The state, None where it gives none; the optimizers that were asked for theirs in turn, itself among them where
        it has torch's own way asked.
    """
    asked: set[int] = set()
    with ExitStack() as spies:
        for inner in inside.values():
            spies.enter_context(_spied(inner, asked))
        if hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):
            hook = optimizer.register_state_dict_pre_hook(lambda _: asked.add(id(optimizer)))
            spies.callback(hook.remove)
        try:
            return optimizer.state_dict(), asked
        except Exception:  # noqa: BLE001 - whatever it is, the state has to be found elsewhere
            return None, set()


@contextmanager
def _spied(optimizer: Any, asked: set[int]) -> Iterator[None]:
    """Notes whether an optimizer is asked for its state."""
    own = getattr(optimizer, "state_dict", None)
    if own is None or "state_dict" in _attributes(optimizer):
        yield
        return

    def state_dict(*args: Any, **kwargs: Any) -> Any:
        asked.update((id(optimizer), id(unwrapped(optimizer))))
        return own(*args, **kwargs)

    optimizer.state_dict = state_dict
    try:
        yield
    finally:
        del optimizer.state_dict


def _is_torchs_form(said: Any) -> bool:
    return isinstance(said, dict) and said.keys() >= {"state", "param_groups"}


def _is_share(whole: Any, share: Any) -> bool:
    """Tells if one optimizer updates some of the parameters of another, and gives its state as torch's do."""
    members = {id(member) for group in getattr(whole, "param_groups", ()) for member in group["params"]}
    updated = {id(member) for group in getattr(share, "param_groups", ()) for member in group["params"]}
    return isinstance(share, optim.Optimizer) and not _states_itself(share) and updated <= members


def _attributes(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})
