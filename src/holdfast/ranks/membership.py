"""What the coordinator knows of the other ranks: where each stands, how long ago it was heard of, what it asks."""

import threading
import time
from collections.abc import Callable
from typing import Any

from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel
from holdfast.ranks.heartbeat import LEFT
from holdfast.ranks.keys import beat_key
from holdfast.run.request import Request

_LOOK_SECONDS = 0.1


class Membership:
    """Reads the ranks' beats in a thread of its own.

    Args:
        channel: To the ranks.
        accept: Takes a request in that a rank passes on.
        update: Shows the ranks in the status.
        on_left: Called when a rank has left without waiting for the others.
    """

    def __init__(
        self,
        channel: Channel,
        accept: Callable[[Request], object],
        update: Callable[[list[dict[str, Any]]], object],
        on_left: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._accept = accept
        self._update = update
        self._on_left = on_left
        self._left = False
        # A rank that nothing was heard of yet is as long silent as this one looks.
        self._heard: dict[int, tuple[Any, float]] = {rank: (None, time.monotonic()) for rank in channel.others}
        self._all_are_there = False
        self._taken: set[str] = set()
        self._looked_at = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="holdfast-roll", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def silent(self) -> list[str]:
        """The ranks that have not been heard of for too long. While the coordinator itself did not look, it is none."""
        limit = self._channel.seconds
        heard = self._heard.items()
        return [str(rank) for rank, (_, at) in sorted(heard) if self._looked_at - at > limit]

    def _keep_looking(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                self._look()
            except RanksError:
                return  # the store ends with the training; whoever waits for something is told so there

    def _look(self) -> None:
        beats = self._beats()
        now = time.monotonic()
        if now - self._looked_at > self._channel.seconds / 2:
            # This process stood still itself: what it did not hear meanwhile says nothing of the others.
            self._heard = {rank: (content, now) for rank, (content, _) in self._heard.items()}
        self._looked_at = now
        for rank, content in beats.items():
            if self._heard[rank][0] != content:
                self._heard[rank] = (content, now)
                self._take(content.get("asked", []))
        self._update([_shown(rank, now - self._heard[rank][1], content) for rank, content in sorted(beats.items())])
        if not self._left and any(content["phase"] == LEFT for content in beats.values()):
            self._left = True
            self._on_left()

    def _beats(self) -> dict[int, Any]:
        """What each rank has told last. One that ends before it has told anything keeps nobody from the others'."""
        keys = {beat_key(rank): rank for rank in self._channel.others}
        there = list(keys) if self._all_are_there else self._channel.there(list(keys))
        self._all_are_there = len(there) == len(keys)
        return {keys[key]: content for key, content in zip(there, self._channel.all(there), strict=True)}

    def _take(self, asked: list[Any]) -> None:
        for content in asked:
            request = Request(**content)
            if request.id not in self._taken:
                self._taken.add(request.id)
                self._accept(request)


def _shown(rank: int, age: float, content: dict[str, Any]) -> dict[str, Any]:
    return {"rank": rank, "age": round(age, 1), **{k: v for k, v in content.items() if k not in ("asked", "beat")}}
