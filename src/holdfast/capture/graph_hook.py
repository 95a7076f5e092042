"""The hook that sends replays of captured graphs through the gate.

An optimizer whose step is in a graph is called while the graph is captured, when nothing is done, and never again: its
updates are the graph's replays.
"""

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from holdfast.capture.gate import Gate
from holdfast.devices.device import Device

# The hooks of the runs that are open. More than one training in a process is rare, and none is the rule.
_open: "set[GraphHook]" = set()


class GraphHook:
    """Has updates on cards wait at the gate, those in graphs at each replay, and knows the lanes they are put into.

    A graph that was captured before the hook was there may hold one: nobody has seen what went into it.

    Args:
        gate: The gate.
        device: The accelerator that the parameters are on.
        lanes: By card, the lanes into which updates are put: kept here.
    """

    def __init__(self, gate: Gate, device: Device, lanes: Mapping[int, set[Hashable]]) -> None:
        self._gate = gate
        self._device = device
        self._lanes = lanes
        self._under_capture: weakref.WeakSet[Any] = weakref.WeakSet()
        self._without_update: weakref.WeakSet[Any] = weakref.WeakSet()
        _watch(device.graph_class())
        _open.add(self)

    def remove(self) -> None:
        """Takes the hook away."""
        _open.discard(self)

    def enter_update(self, cards: Iterable[int]) -> None:
        """Waits at the gate, for an update that the calling thread is about to enqueue in its lanes of cards.

        One that is captured waits at each replay, and not now. Whichever graphs are under capture get it: that several
        are at once is rare, and too many of them gated is safe.
        """
        if self._device.is_capturing():
            self._without_update.difference_update(tuple(self._under_capture))
            return
        self._gate.enter_update()
        for card in cards:
            self._lanes[card].add(self._device.lane(card))

    def begin_capture(self, graph: Any) -> None:
        """Takes in that a graph is captured from now on."""
        self._under_capture.add(graph)
        self._without_update.add(graph)

    def end_capture(self, graph: Any) -> None:
        """Takes in that a graph is captured."""
        self._under_capture.discard(graph)

    def begin_replay(self, graph: Any) -> None:
        """Waits at the gate if there may be an update in a graph, on whichever cards."""
        if graph not in self._without_update:
            self.enter_update(self._lanes)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Encloses reads of the state in the lanes of the calling thread, at a boundary.

        All updates are done before them, in whichever lane they are, and what comes into those lanes later comes behind
        them. So what is put into a lane of the calling thread afterwards is behind all updates as well.
        """
        device = self._device
        here = {card: device.lane(card) for card in self._lanes}
        others = [(lane, here[card]) for card, lanes in self._lanes.items() for lane in lanes if lane != here[card]]
        for lane, reader in others:
            device.join(reader, device.mark(lane))
        yield
        for lane, reader in others:
            device.join(lane, device.mark(reader))
        for card, lanes in self._lanes.items():
            lanes.clear()
            lanes.add(here[card])


def _watch(kind: type) -> None:
    """Has a class of graphs look for hooks. In the class, and once: whoever makes a graph makes it of that."""
    for name, watched in (("capture_begin", _begins), ("capture_end", _ends), ("replay", _replays)):
        method = getattr(kind, name)
        if not getattr(method, "passes_gate", False):
            replacement = watched(method)
            replacement.passes_gate = True  # type: ignore[attr-defined]
            setattr(kind, name, replacement)


def _begins(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        for hook in tuple(_open):
            hook.begin_capture(self)
        return result

    return capture_begin


def _ends(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        for hook in tuple(_open):
            hook.end_capture(self)
        return method(self, *args, **kwargs)

    return capture_end


def _replays(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def replay(self: Any, *args: Any, **kwargs: Any) -> Any:
        for hook in tuple(_open):
            hook.begin_replay(self)
        return method(self, *args, **kwargs)

    return replay
