"""The membership as rank 0 knows it: where each other rank stands, how long ago it was heard of, what it asks."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from holdfast.ranks.channel import Channel
from holdfast.ranks.heartbeat import LEFT
from holdfast.ranks.keys import beat_key
from holdfast.run.request import Request


class News(NamedTuple):
    """The state of the other ranks at one look.

    Args:
        requests: Those that ranks pass on for the first time.
        calls: Of those that training itself has made at a boundary, its number, by the request's id.
        ranks: Each rank that was heard of, as the status shows it.
        has_left: True where a rank has left its training without waiting for the others.
    """

    requests: Sequence[Request]
    calls: Mapping[str, int]
    ranks: Sequence[dict[str, Any]]
    has_left: bool


class Membership:
    """Reads the heartbeats of the other ranks.

    Args:
        channel: The channel to the ranks.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # A rank that nothing was heard of yet is as long silent as this one looks.
        self._heard: dict[int, tuple[Any, float]] = {rank: (None, time.monotonic()) for rank in channel.others}
        self._all_are_there = False
        self._taken: set[str] = set()
        self._looked_at = time.monotonic()

    def silent(self) -> list[str]:
        """Returns the ranks not heard of for too long. While the coordinator itself did not look, it is none."""
        limit = self._channel.seconds
        heard = self._heard.items()
        return [str(rank) for rank, (_, at) in sorted(heard) if self._looked_at - at > limit]

    def look(self) -> News:
        """Reads the latest heartbeats.

        Raises:
            RanksError: The store is gone.
        """
        beats = self._beats()
        now = time.monotonic()
        if now - self._looked_at > self._channel.seconds / 2:
            # This process stood still itself: what it did not hear meanwhile says nothing of the others.
            self._heard = {rank: (content, now) for rank, (content, _) in self._heard.items()}
        self._looked_at = now
        requests: list[Request] = []
        calls: dict[str, int] = {}
        for rank, content in beats.items():
            if self._heard[rank][0] != content:
                self._heard[rank] = (content, now)
                requests += self._new(content.get("asked", []))
                calls.update(content.get("calls", {}))
        ranks = [_shown(rank, now - self._heard[rank][1], content) for rank, content in sorted(beats.items())]
        return News(requests, calls, ranks, any(content["phase"] == LEFT for content in beats.values()))

    def _beats(self) -> dict[int, Any]:
        """Returns each rank's latest. One that ends before it has told anything keeps nobody from the others'."""
        keys = {beat_key(rank): rank for rank in self._channel.others}
        there = list(keys) if self._all_are_there else self._channel.there(list(keys))
        self._all_are_there = len(there) == len(keys)
        return {keys[key]: content for key, content in zip(there, self._channel.all(there), strict=True)}

    def _new(self, asked: Sequence[Any]) -> list[Request]:
        requests = [request for content in asked if (request := Request(**content)).id not in self._taken]
        self._taken |= {request.id for request in requests}
        return requests


def _shown(rank: int, age: float, content: dict[str, Any]) -> dict[str, Any]:
    shown = {k: v for k, v in content.items() if k not in ("asked", "beat", "calls")}
    return {"rank": rank, "age": round(age, 1), **shown}
