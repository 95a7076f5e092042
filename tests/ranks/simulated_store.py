"""A store in virtual time, and machines' ways to it, which can be cut."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from holdfast.ranks.agreement import Claim, Get, Operation, Present, Put
from ranks.virtual_time import Pause, Signal, World


@dataclass(frozen=True)
class Wait:
    """A `Get` is two messages, as over torch's store: this waits."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """And this reads."""

    keys: tuple[str, ...]


Message = Put | Present | Claim | Wait | Read


class Server:
    """The store: it serves one message after the other, and each takes its time."""

    def __init__(self, world: World, cost: Callable[[Message], float] = lambda message: 0.0) -> None:
        self.values: dict[str, str] = {}
        self.served = 0
        self._world = world
        self._cost = cost
        self._free_at = 0.0
        self._missing: dict[str, list[Callable[[], None]]] = {}

    def serve(self, message: Message, reply: Callable[[Any], None]) -> None:
        self.served += 1
        self._free_at = max(self._free_at, self._world.now) + self._cost(message)
        self._world.at(self._free_at, lambda: self._do(message, reply))

    def _do(self, message: Message, reply: Callable[[Any], None]) -> None:
        match message:
            case Put(key, value):
                self._set(key, value)
                reply(None)
            case Claim(key, value):
                if key not in self.values:
                    self._set(key, value)
                reply(self.values[key])
            case Present(keys):
                reply([key for key in keys if key in self.values])
            case Read(keys):
                reply([self.values[key] for key in keys])
            case Wait(keys):
                self._wait(keys, reply)

    def _set(self, key: str, value: str) -> None:
        self.values[key] = value
        for one_less in self._missing.pop(key, ()):
            one_less()

    def _wait(self, keys: tuple[str, ...], reply: Callable[[Any], None]) -> None:
        missing = [key for key in keys if key not in self.values]
        left = len(missing)

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                reply(None)

        for key in missing:
            self._missing.setdefault(key, []).append(one_less)
        if not missing:
            reply(None)


class LostError(Exception):
    """An operation's time is up, and nobody knows whether the store has done it."""


class Line:
    """A machine's way to the store.

    What is sent while it is cut arrives when it is mended, like TCP's: perhaps long after the sender has given up.
    """

    def __init__(self, world: World, server: Server, delay: Callable[[], float], pace: float, limit: float) -> None:
        self._world = world
        self._server = server
        self._delay = delay
        self._pace = pace
        self._limit = limit
        self.cut_until = 0.0

    def do(self, operation: Operation) -> Generator[Pause, None, Any]:
        if not isinstance(operation, Get):
            return (yield from self._ask(operation, self._limit))
        try:
            yield from self._ask(Wait(operation.keys), operation.seconds)
        except LostError:
            return None
        return (yield from self._ask(Read(operation.keys), self._limit))

    def _ask(self, message: Message, seconds: float) -> Generator[Pause, None, Any]:
        answers: list[Any] = []
        answered = Signal(self._world)

        def arrive(answer: Any) -> None:
            answers.append(answer)
            answered.fire()

        def send_back(answer: Any) -> None:
            self._world.at(self._arrival(), lambda: arrive(answer))

        self._world.at(self._arrival(), lambda: self._server.serve(message, send_back))
        yield Pause(seconds * self._pace, answered)
        if not answers:
            raise LostError
        return answers[0]

    def _arrival(self) -> float:
        return max(self._world.now, self.cut_until) + self._delay()
