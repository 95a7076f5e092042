"""The tensors outside of all parts that change while a training goes on: its checkpoints carry them.

A reference model that is moved, an average that a callback keeps, a loss's own weights: nobody registered them. All
that can be reached is watched; what never changes, such as a frozen base model, costs no byte. What is seen to change
is carried from then on, and put back at a resume into the place of the same name.

Training glances at each boundary. A save looks closer, walks anew, and reads what has moved under the shut gate, as it
reads the parts. What moves between two updates cannot be read so: it is copied at every boundary, as small ones are.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from holdfast.state.card_copies import CardCopies
from holdfast.state.glance import Glance, Look, Watched, is_plain
from holdfast.state.part import CARRIED, Stored
from holdfast.state.reachable import Place, Walk, resolve

# The first part of a name is what was registered, or a container of a trainer's; the next is what a user made there.
_SEGMENT = re.compile(r"(?:[^.\[]|\[[^\]]*\])+")
_ENCLOSING = ("callbacks[", "model", "optimizer")
# Of those that are seen to change, the smallest are copied at every boundary, up to so many bytes in all.
_COPIED_BYTES = {"cpu": 1 << 20, "cuda": 16 << 20}


class OutsideRecord(NamedTuple):
    """The state outside of all parts, as it was at one boundary."""

    still: Glance
    seen: Look
    """The look at those that stand still so far."""
    live: Glance
    moving: Look
    """The look at those that change and were not copied."""
    copies: Mapping[str, torch.Tensor]
    versions: Mapping[str, tuple[int, int]] = {}
    """Of those copies that are on a card, the tensor that was copied, and its version."""


@dataclass(frozen=True)
class Carried:
    """The tensors outside of all parts that a checkpoint carries.

    Args:
        tensors: The tensors, by the names of their places.
        left_out: A text for each that it should carry and does not: its name, and why.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    left_out: Sequence[str] = ()


def carried_rest(state: Any = None) -> dict[str, Any]:
    """Returns the JSON beside the carried tensors.

    Args:
        state: What else is carried, as JSON, by name; None where nothing else can be.
    """
    return {"kind": CARRIED} if state is None else {"kind": CARRIED, "state": state}


class Outside:
    """The tensors that can be reached from a training's objects and are in none of its parts.

    Args:
        roots: Gives the objects, by the names that the places in them begin with.
        known: Gives what is in parts, as `Walk` wants it.
        passed_over: The names of places that are not followed.
    """

    def __init__(
        self,
        roots: Callable[[], Mapping[str, object]],
        known: Callable[[], Mapping[Any, str]],
        passed_over: Collection[str] = (),
    ) -> None:
        self._roots = roots
        self._known = known
        self._passed_over = passed_over
        self._watched: dict[str, Watched] = {}
        # Those that change, and whether they are copied at every boundary.
        self._moving: dict[str, bool] = {}
        self._is_first = True
        self._card_copies = CardCopies()
        self.complete = True
        """False where there was too much to be looked through."""
        self._arrange()

    @property
    def bytes(self) -> int:
        """The size of those that a checkpoint would carry now."""
        return sum(self._watched[name].bytes for name in self._moving if name in self._watched)

    @property
    def copied(self) -> dict[str, int]:
        """Those that are copied at every boundary though they are large, and the bytes that each takes."""
        return dict(self._copied_large)

    @property
    def has_moving(self) -> bool:
        """True once something was seen to change."""
        return bool(self._moving)

    def begin(self) -> None:
        """Looks at all that is there when training begins."""
        self._take(self._walk())

    def places_of(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns those of some tensors that can be reached, by the names of their places."""
        wanted = {id(tensor) for tensor in tensors}
        places = (watched.place for watched in self._watched.values())
        return {place.name: place.tensor for place in places if id(place.tensor) in wanted}

    def carry(self, names: Collection[str]) -> None:
        """Takes some for ones that change, whether or not they were seen to: an optimizer updates them."""
        self._moving.update({name: False for name in names if name not in self._moving})
        self._arrange()

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Puts back in place what a checkpoint carried.

        Args:
            tensors: The tensors of the checkpoint, by the names of their places.

        Returns:
            The names of those that have no place here, or do not fit it.
        """
        misfits = []
        for name, tensor in tensors.items():
            live = self._watched[name].place.tensor if name in self._watched else None
            if live is None or live.shape != tensor.shape or live.dtype != tensor.dtype:
                misfits.append(name)
                continue
            with torch.no_grad():
                live.detach().copy_(tensor)
            # Carried on, whether it changes again or not: a script makes it as it was in the beginning.
            self._moving.setdefault(name, False)
        self._arrange()
        return misfits

    def record(self) -> OutsideRecord:
        """Records what changes, as of now. Called by training at every boundary."""
        if self._is_first:
            self._is_first = False
            # Caches that the first forward makes are as little a change as what was there before it.
            self._take({**self._walk(), **{name: watched.place for name, watched in self._watched.items()}})
        if not self._watched:
            return self._nothing
        seen = self._still.look()
        if changed := self._still.changed(self._seen, seen):
            self._moving.update(dict.fromkeys(changed, False))
            self._arrange()
            seen = self._still.look()
        copies, on_cards, versions = {}, {}, {}
        for name, tensor in self._now_copied().items():
            if tensor.device.type == "cpu":
                copies[name] = tensor.detach().clone()
            else:
                on_cards[name], versions[name] = tensor, _version_of(tensor)
        if on_cards:
            copies |= self._card_copies.take(on_cards)
        return OutsideRecord(self._still, seen, self._live, self._live.look(), copies, versions)

    def changed_since(self, recorded: OutsideRecord) -> list[str]:
        """Names those that change, and have done so since a boundary."""
        changed = recorded.live.changed(recorded.moving, recorded.live.look())
        for name, tensor in self._now_copied().items():
            if (then := recorded.copies.get(name)) is None:
                continue
            # To compare what is on a card, training would have to wait for it.
            on_card = name in recorded.versions
            if recorded.versions[name] != _version_of(tensor) if on_card else not torch.equal(tensor.detach(), then):
                changed.append(name)
        return changed

    def at_save(self, recorded: OutsideRecord) -> Carried:
        """Returns what a checkpoint of a boundary carries. The gate is shut; called by the thread that saves."""
        walked = self._walk()
        self._moving.update({name: False for name in self._changed(walked, recorded) if name not in self._moving})
        restless = {
            *_since(recorded.live, recorded.moving),
            *_since(recorded.still, recorded.seen),
        }
        recorded_live = dict(zip(recorded.live.names, recorded.moving.tensors, strict=True))
        tensors, left_out = {}, {}
        for name in sorted(self._moving):
            tensor = recorded.copies.get(name)
            if tensor is None and name in walked:
                tensor = walked[name].tensor
                if name in restless or recorded_live.get(name, tensor) is not tensor:
                    self._moving[name] = True
                    left_out[name] = "it changed after the boundary, and is copied at every one from now on"
                    continue
            if tensor is None:
                continue  # it is gone
            if is_plain(tensor.detach()):
                tensors[name] = tensor.detach()
            else:
                left_out[name] = f"it is a {type(tensor).__name__} of layout {tensor.layout}"
        self._take(walked)
        return Carried(tensors, tuple(in_short(left_out)))

    def _now_copied(self) -> dict[str, torch.Tensor]:
        """Returns those that are copied at every boundary, as far as they are there."""
        roots = self._roots() if self._copied else {}
        there = ((name, resolve(roots, hops)) for name, hops in self._copied)
        return {name: tensor for name, tensor in there if tensor is not None}

    def _changed(self, walked: Mapping[str, Place], recorded: OutsideRecord) -> list[str]:
        """Names those that are new, in the place of others, or seen to differ as closely as a save looks."""
        changed = recorded.still.changed_on_device(recorded.seen)
        for name, place in walked.items():
            watched = self._watched.get(name)
            if watched is None or watched.place.tensor is not place.tensor or watched.has_moved():
                changed.append(name)
        return changed

    def _walk(self) -> dict[str, Place]:
        walk = Walk(self._roots(), self._known(), self._passed_over)
        self.complete = walk.complete
        return walk.places

    def _take(self, places: Mapping[str, Place]) -> None:
        before = self._watched
        self._watched = {}
        for name, place in places.items():
            watched = before.get(name)
            same = watched is not None and watched.place.tensor is place.tensor
            self._watched[name] = Watched(place) if watched is None or not same else watched.at(place)
        self._arrange()

    def _arrange(self) -> None:
        """Decides which of those that change are copied at every boundary, and watches the others."""
        left = dict(_COPIED_BYTES)
        moving = [watched for name, watched in self._watched.items() if name in self._moving]
        small = set()
        for watched in sorted(moving, key=lambda watched: watched.bytes):
            device = watched.alias.device.type
            left[device] = left.get(device, 0) - watched.bytes
            if left[device] >= 0:
                small.add(watched.place.name)
        copied = [w for w in moving if w.place.name in small or self._moving[w.place.name]]
        self._copied = [(watched.place.name, watched.place.hops) for watched in copied]
        self._copied_large = {w.place.name: w.bytes for w in copied if w.place.name not in small}
        names = {name for name, _ in self._copied}
        self._live = Glance({w.place.name: w for w in moving if w.place.name not in names})
        self._still = Glance({name: w for name, w in self._watched.items() if name not in self._moving})
        self._seen = self._still.look()
        self._nothing = OutsideRecord(self._still, self._seen, self._live, self._live.look(), {})


def put_back(outside: Outside, beside: Mapping[str, Stored]) -> list[str]:
    """Puts back what a checkpoint carries; returns a line for each thing that finds no place here.

    Args:
        outside: What is in no part here.
        beside: The content of the checkpoint that is in no part.
    """
    if CARRIED not in beside:
        return []
    reason = "the checkpoint carries it, and here is nothing in that place that it fits; it begins anew"
    return in_short(dict.fromkeys(outside.restore(beside[CARRIED].tensors), reason))


def in_short(reasons: Mapping[str, str]) -> list[str]:
    """Returns a text for each thing that is named, and the tensors that are parts of it, with its reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault((owner_of(name), reason), []).append(name)
    return [
        f"{names[0] if len(names) == 1 else f'{owner} ({len(names)} tensors)'}: {reason}"
        for (owner, reason), names in grouped.items()
    ]


def owner_of(name: str) -> str:
    """Returns the beginning of a place's name by which a user knows it: `ref_model`, `callbacks[Ema].shadow`."""
    first, *others = _SEGMENT.findall(name)
    return f"{first}.{others[0].partition('[')[0]}" if others and first.startswith(_ENCLOSING) else first


def _version_of(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _since(glance: Glance, then: Look) -> list[str]:
    """Names those that have changed since a look."""
    now = glance.look()
    return [*glance.changed(then, now), *glance.changed_on_device(now, then)]
