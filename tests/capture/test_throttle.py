import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from holdfast.capture.throttle import Throttle

NEVER = threading.Event()


def training_waits(on: bool = False) -> threading.Event:
    event = threading.Event()
    if on:
        event.set()
    return event


def seconds_for(throttle: Throttle, blocks: int, waits: threading.Event) -> float:
    """The time that two writers take for so many blocks of 100 bytes."""
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as two:
        list(two.map(lambda _: throttle.wait(100, waits, NEVER), range(blocks)))
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
        slow.wait(100, training_waits(why == "training waits"), training_waits(why == "given up"))
    assert time.monotonic() - begun < 50


def test_what_was_written_beyond_the_limit_is_not_waited_for_later() -> None:
    limited = Throttle(1000)
    for _ in range(1000):
        limited.wait(100, training_waits(on=True), NEVER)
    assert seconds_for(limited, 2, training_waits()) < 50


def priority_of_this_thread() -> Any:
    return psutil.Process(threading.get_native_id()).ionice()


@pytest.mark.parametrize(
    ("name", "priority"), [("low", (psutil.IOPRIO_CLASS_BE, 7)), ("idle", (psutil.IOPRIO_CLASS_IDLE, 0))]
)
def test_a_writer_gets_its_priority_and_no_other_thread_does(name: str, priority: tuple[int, int]) -> None:
    before = priority_of_this_thread()
    seen: dict[str, Any] = {}
    written = threading.Event()

    def write() -> None:
        Throttle(priority=name).begin()
        seen["writer"] = priority_of_this_thread()
        written.set()

    def train() -> None:
        seen["training before"] = priority_of_this_thread()
        written.wait(30)
        seen["training after"] = priority_of_this_thread()

    training, writer = threading.Thread(target=train), threading.Thread(target=write)
    for thread in (training, writer):
        thread.start()
    for thread in (training, writer):
        thread.join()
    assert seen == {"writer": priority, "training before": before, "training after": before}
    assert priority_of_this_thread() == before and priority != before


def no_such_function(process: psutil.Process) -> object:
    raise AttributeError("ionice")


def forbidden(process: psutil.Process) -> object:
    raise psutil.AccessDenied(process.pid)


def unknown_to_the_kernel(process: psutil.Process) -> object:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("refusal", [no_such_function, forbidden, unknown_to_the_kernel])
def test_a_system_that_gives_no_priority_leaves_it_as_it_is(
    monkeypatch: pytest.MonkeyPatch, refusal: Callable[[psutil.Process], object]
) -> None:
    monkeypatch.setattr(psutil.Process, "ionice", property(refusal))
    Throttle(priority="idle").begin()
