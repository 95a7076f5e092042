import ctypes
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.capture import throttle as pace
from holdfast.capture.throttle import PRIORITIES, Throttle


def never() -> bool:
    return False


def training_waits(on: bool = False) -> threading.Event:
    event = threading.Event()
    if on:
        event.set()
    return event


def seconds_for(pace: Throttle, blocks: int, waits: threading.Event) -> float:
    """How long two writers take for so many blocks of 100 bytes."""
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as two:
        list(two.map(lambda _: pace.wait(100, waits, never), range(blocks)))
    return time.monotonic() - begun


def test_two_writers_together_keep_to_the_limit() -> None:
    assert seconds_for(Throttle(1000), 6, training_waits()) >= 0.6


def test_a_save_of_a_single_block_keeps_to_it_as_well() -> None:
    assert seconds_for(Throttle(1000), 1, training_waits()) >= 0.1


def test_without_a_limit_nobody_waits() -> None:
    assert seconds_for(Throttle(), 1000, training_waits()) < 5


@pytest.mark.parametrize("why", ["training waits", "a stop", "given up"])
def test_whoever_must_not_wait_does_not(why: str) -> None:
    slow = Throttle(1, pressing=why == "a stop")  # a hundred seconds a block
    begun = time.monotonic()
    for _ in range(3):
        slow.wait(100, training_waits(why == "training waits"), lambda: why == "given up")
    assert time.monotonic() - begun < 50


def test_what_was_written_beyond_the_limit_is_not_waited_for_later() -> None:
    limited = Throttle(1000)
    for _ in range(1000):
        limited.wait(100, training_waits(on=True), never)
    assert seconds_for(limited, 2, training_waits()) < 50


def priority_of_this_thread() -> int:
    get = {"x86_64": 252, "aarch64": 31}[platform.machine()]
    return int(ctypes.CDLL(None).syscall(get, 1, 0))


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="this processor's system calls are not known"
)
@pytest.mark.parametrize("name", ["low", "idle"])
def test_a_writer_gets_its_priority_and_its_process_keeps_its_own(name: str) -> None:
    before = priority_of_this_thread()
    found: list[int] = []

    def write() -> None:
        Throttle(priority=name).begin()
        found.append(priority_of_this_thread())

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert found == [PRIORITIES[name]] and priority_of_this_thread() == before


def test_a_processor_that_is_not_known_leaves_the_priority_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_IOPRIO_SET", {})
    Throttle(priority="idle").begin()
