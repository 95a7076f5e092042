import threading
from collections.abc import Callable

import pytest

from helpers.gates import Taker, begun, boundary, ended, gate_at, held, never


def where(found: list[int]) -> Callable[[], None]:
    """An errand that notes in which thread it is run."""
    return lambda: found.append(threading.get_ident())


def test_an_errand_is_run_by_training_while_it_is_held_in_its_step() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    taker = Taker(gate)
    assert taker.waits()
    found: list[int] = []
    with held(gate, lambda: gate.reach(boundary(2), shut=False)) as training:
        assert taker.result() is not None
        gate.run_on_training_thread(where(found))
        gate.run_on_training_thread(where(found))
        assert found == [training.ident, training.ident] and training.is_alive(), "an errand does not let it go"
        gate.open(2)


def test_an_errand_is_run_by_training_that_stands_and_asks_the_gate_meanwhile() -> None:
    gate = gate_at(1)
    ready: list[bool] = []
    found: list[int] = []
    told: list[bool] = []
    training = begun(lambda: told.append(gate.block_until(lambda: bool(ready))))
    assert gate.shut(1) is not None
    asked = threading.Event()

    def ask() -> None:
        gate.notice()
        asked.set()

    def errand() -> None:
        found.append(threading.get_ident())
        begun(ask)
        assert asked.wait(30), "nobody may ask the gate while an errand is run"

    gate.run_on_training_thread(errand)
    assert found == [training.ident] and training.is_alive()
    ready.append(True)
    gate.open(1)
    assert ended(training) and told == [True] and not gate.is_blocked


def test_what_an_errand_raises_is_raised_where_it_was_sent_from() -> None:
    gate = gate_at(1)
    gate.shut(-1)

    def errand() -> None:
        raise OSError("the disk is full")

    with held(gate, gate.enter_update):
        with pytest.raises(OSError, match="the disk is full"):
            gate.run_on_training_thread(errand)
        gate.open(1)
    assert gate.updating, "training did not go on"


def test_an_errand_waits_for_training_to_stand_at_the_shut_gate() -> None:
    gate = gate_at(1)
    gate.shut(-1)
    found: list[int] = []
    sender = begun(lambda: gate.run_on_training_thread(where(found)))
    assert not gate.block_until(never, 0.0) and not found, "its time was up before it began"
    with held(gate, gate.enter_update) as training:
        assert ended(sender) and found == [training.ident]
        gate.open(1)
