"""Gates, boundaries, and trainings that are held at them, in threads of their own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from helpers.waiting import wait_until
from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate


def boundary(number: int) -> Boundary:
    return Boundary(number, "update", number=number)


def gate_at(number: int | None) -> Gate:
    """A gate whose training stands between a boundary and the next update, or before its first."""
    gate = Gate(threading.Event())
    if number is not None:
        gate.reach(boundary(number), shut=False)
    return gate


def never() -> bool:
    return False


def begun(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(30)
    return not thread.is_alive()


class Taker:
    """The thread that takes snapshots, on its way to shut the gate."""

    def __init__(self, gate: Gate, after: int = -1) -> None:
        self.taken: list[Boundary | None] = []
        self._gate = gate
        self._thread = begun(lambda: self.taken.append(gate.shut(after)))

    def waits(self) -> bool:
        wait_until(lambda: self._gate._wanted)
        return True

    def result(self) -> Boundary | None:
        assert ended(self._thread)
        return self.taken[0]


@contextmanager
def held(gate: Gate, work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Training in a thread of its own, up to the gate that holds it."""
    thread = begun(work)
    wait_until(lambda: gate.blocked_since is not None)
    yield thread
    assert ended(thread)
