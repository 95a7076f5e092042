"""Each test starts a process of its own and sends it real signals."""

import os
import signal
import subprocess
from contextlib import AbstractContextManager

import pytest

from helpers.support import line_of, process
from helpers.waiting import wait_until

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]

# What every script begins with: each signal that is heard becomes a line of output.
BEGIN = """
import os, signal, sys, threading, time
from holdfast.doors.signals import Signals

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

signals = Signals()

def listen():
    for number in signals.received():
        say("heard", signal.Signals(number).name)
        if number in releasing:
            signals.release()

releasing = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]

def start():
    listening = threading.Thread(target=listen, daemon=True)
    if signals.start():
        listening.start()
        return listening

def wait():
    say("ready")
    while True:
        time.sleep(1)
"""


def running(script: str, **options: object) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return process(BEGIN + script, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ALL)
def test_fault_34_each_signal_is_heard_and_does_nothing_else(number: signal.Signals) -> None:
    """Each signal three times to a process that listens: its handler is the interpreter's, which writes one byte."""
    with running("assert start()\nwait()") as started:
        assert line_of(started) == "ready"
        for _ in range(3):
            started.send_signal(number)
            assert line_of(started) == f"heard {number.name}"
        assert started.poll() is None


def test_fault_31_it_is_heard_while_the_main_thread_is_inside_one_long_call() -> None:
    """SIGTERM while the main thread is inside one C call that takes minutes."""
    script = "import hashlib; start(); say('ready'); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    with running(script) as started:
        assert line_of(started) == "ready"
        started.send_signal(signal.SIGTERM)
        assert line_of(started) == "heard SIGTERM"


def test_a_signal_that_comes_amid_many_others_is_heard() -> None:
    with running("start()\nwait()") as started:
        assert line_of(started) == "ready"
        for _ in range(200):
            started.send_signal(signal.SIGUSR1)
        started.send_signal(signal.SIGUSR2)
        awaited = {"heard SIGUSR1", "heard SIGUSR2"}
        while awaited:
            awaited.discard(line_of(started))


OWN = """
def own(number, frame):
    say("own", signal.Signals(number).name, threading.current_thread() is threading.main_thread())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, own)
start()
"""


@pytest.mark.parametrize("number", ALL)
def test_fault_36_the_users_own_handler_is_called_as_well_in_the_main_thread(number: signal.Signals) -> None:
    """Each signal to a process that had a handler of its own before."""
    with running(OWN + "wait()") as started:
        assert line_of(started) == "ready"
        started.send_signal(number)
        for _ in range(2):
            assert [line_of(started), line_of(started)] == [f"heard {number.name}", f"own {number.name} True"]
            started.send_signal(number)


def test_the_users_own_handler_waits_until_it_is_released_and_is_called_once_for_all_until_then() -> None:
    script = """
read, write = os.pipe()
def own(number, frame):
    say("own", frame.f_code.co_name)
    os.write(write, b"x")
signal.signal(signal.SIGTERM, own)
releasing.remove(signal.SIGTERM)
start()
def inside():
    say("ready")
    os.read(read, 1)
    signals.returned.wait()
inside()
say("over", signals.some_wait)
wait()
"""
    with running(script) as started:
        assert line_of(started) == "ready"
        for _ in range(3):
            started.send_signal(signal.SIGTERM)
            assert line_of(started) == "heard SIGTERM"
        for said in (["own inside", "over False", "ready"], []):
            started.send_signal(signal.SIGUSR1)
            assert line_of(started) == "heard SIGUSR1"
            assert [line_of(started) for _ in said] == said, "it was called again, or heard of again"


def test_a_handler_waits_while_a_training_is_being_ended_from_the_first_line_of_that_on() -> None:
    """One that leaves is released right before, or while, a function that ends a training is called."""
    script = """
from holdfast.doors.signals import ends_training
def own(number, frame):
    say("own", number == signal.SIGTERM)
    raise SystemExit
signal.signal(signal.SIGTERM, own)
releasing.remove(signal.SIGTERM)
start()
@ends_training
def end():
    inner()
    say("ended", signals.some_wait)
    signals.call_all()
def inner():
    signals._keep_waiting(signal.SIGTERM)
    signals.release()
try:
    end()
except SystemExit:
    say("left")
wait()
"""
    with running(script) as started:
        assert [line_of(started) for _ in range(4)] == ["ended True", "own True", "left", "ready"]


def test_a_signal_that_comes_after_the_end_of_listening_waits_until_the_handlers_are_back() -> None:
    """A run is being closed then, which must neither be broken off nor cost the signal."""
    script = """
signal.signal(signal.SIGUSR2, lambda *_: say("own"))
listening = start()
signals.stop()
for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
    os.kill(os.getpid(), number)
say("alive")
late = sorted(signals.put_back())
say(*(signal.Signals(number).name for number in late), len(signals.put_back()))
for number in late:
    signal.raise_signal(number)
"""
    with running(script) as started:
        assert [line_of(started) for _ in range(3)] == ["alive", "SIGUSR2 SIGTERM 0", "own"]
        assert started.wait(30) == -signal.SIGTERM


def test_a_handler_that_was_set_since_comes_at_once_and_once() -> None:
    script = """
for name in ("before", "since"):
    signal.signal(signal.SIGTERM, lambda number, frame, name=name: say("own", name))
    if name == "before":
        start()
wait()
"""
    with running(script) as started:
        assert line_of(started) == "ready"
        started.send_signal(signal.SIGTERM)
        assert sorted([line_of(started), line_of(started)]) == ["heard SIGTERM", "own since"]
        started.send_signal(signal.SIGUSR1)
        assert line_of(started) == "heard SIGUSR1", "a handler was called again"


def test_a_handler_that_waits_where_nothing_may_be_broken_off_is_called_at_the_end() -> None:
    script = """
def own(number, frame):
    say("own", signal.Signals(number).name)
    sys.exit(7)
signal.signal(signal.SIGTERM, own)
start()
signals.keep_all()
say("ready")
while not signals.some_wait:
    time.sleep(0.01)
signals.catch_up()
say(signals.some_wait, signals.exit is None)
try:
    signals.call_all()
finally:
    say(signals.some_wait, signals.exit.code)
"""
    with running(script) as started:
        assert line_of(started) == "ready"
        started.send_signal(signal.SIGTERM)
        assert [line_of(started) for _ in range(4)] == ["heard SIGTERM", "True True", "own SIGTERM", "False 7"]
        assert started.wait(30) == 7


def test_after_stop_everything_is_as_it_was() -> None:
    script = """
before = signal.set_wakeup_fd(-1)
signal.signal(signal.SIGUSR1, print)
was = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
for _ in range(3):
    listening = start()
    signals.stop()
    signals.stop()
    listening.join()
    signals.close()
    signals.close()
    signals.put_back()
now = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
say(was == now, signal.set_wakeup_fd(-1), len(os.listdir("/proc/self/fd")) == descriptors)
say(threading.active_count() == threads)
wait()
"""
    with running(script) as started:
        assert [line_of(started) for _ in range(3)] == ["True -1 True", "True", "ready"]
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1", "USR2"])
def test_what_the_process_was_started_to_ignore_stays_ignored(name: str) -> None:
    ignoring = ("sh", "-c", f"trap '' {name}; exec \"$@\"", "sh")
    with running("start()\nwait()", prefix=ignoring) as started:
        assert line_of(started) == "ready"
        other = signal.SIGUSR1 if name != "USR1" else signal.SIGUSR2
        started.send_signal(signal.Signals[f"SIG{name}"])
        started.send_signal(other)
        assert line_of(started) == f"heard {other.name}"


def test_fault_35_outside_the_main_thread_nothing_is_done_and_it_says_so() -> None:
    """Listening is started from another thread than the main one."""
    script = """
thread = threading.Thread(target=lambda: say(signals.start(), threading.active_count()))
thread.start()
thread.join()
signals.stop()
say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
wait()
"""
    with running(script) as started:
        assert [line_of(started) for _ in range(3)] == ["False 2", "True", "ready"]
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == -signal.SIGTERM


FORKED = """
def child():
    say("child", os.getpid(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.set_wakeup_fd(-1))
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize(
    "fork",
    [
        "os.fork() or child()",
        "threading.Thread(target=lambda: os.fork() or child(), daemon=True).start()",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=child, daemon=True).start()",
    ],
    ids=["fork", "fork from a thread", "multiprocessing"],
)
def test_fault_33_a_forked_child_has_what_was_there_before_and_its_signals_are_its_own(fork: str) -> None:
    """Signals to children that were forked by hand, from a thread, by multiprocessing."""
    with running(f"{FORKED}\nstart()\n{fork}\nwait()") as started:
        said = sorted([line_of(started), line_of(started)])
        assert said[1] == "ready"
        _, pid, *facts = said[0].split()
        assert facts == ["True", "True", "-1"]
        os.kill(int(pid), signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}") or _state(int(pid)) == "Z")  # noqa: PTH110
        started.send_signal(signal.SIGUSR1)
        assert line_of(started) == "heard SIGUSR1", "the parent heard of its child's signal"


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0]


def test_a_forked_childs_own_handler_is_its_own() -> None:
    script = OWN + "os.fork() or (say('child', os.getpid()), wait())\nwait()"
    with running(script) as started:
        said = sorted(line_of(started) for _ in range(3))
        assert said[1:] == ["ready", "ready"]
        os.kill(int(said[0].split()[1]), signal.SIGUSR1)
        assert line_of(started) == "own SIGUSR1 True"
        started.send_signal(signal.SIGUSR2)
        assert sorted([line_of(started), line_of(started)]) == ["heard SIGUSR2", "own SIGUSR2 True"]
        os.kill(int(said[0].split()[1]), signal.SIGKILL)


def test_a_child_that_starts_another_program_leaves_the_parent_listening_and_stop_returns() -> None:
    script = """
import subprocess
start()
sleeping = subprocess.Popen(["sleep", "60"], close_fds=False)
forked = os.fork()
if not forked:
    time.sleep(60)
signals.stop()
signals.put_back()
say("stopped")
sleeping.kill()
os.kill(forked, signal.SIGKILL)
"""
    with running(script) as started:
        assert line_of(started) == "stopped"


def test_fault_36_who_listened_to_signals_before_is_still_told() -> None:
    """Signals are listened to beside asyncio's own handlers."""
    script = """
import asyncio
async def main():
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, told.set)
    start()
    say("ready")
    await told.wait()
    say("told")
    signals.stop()
    signals.put_back()
    again = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, again.set)
    say("ready")
    await again.wait()
    say("told again")
asyncio.run(main())
"""
    with running(script) as started:
        for said in ("told", "told again"):
            assert line_of(started) == "ready"
            started.send_signal(signal.SIGHUP)
            assert line_of(started) == said


def test_what_has_stopped_is_kept_by_nobody() -> None:
    script = """
import gc, weakref
class Training:
    def __init__(self):
        self.signals = Signals()
training = Training()
training.signals.start()
training.signals.stop()
training.signals.close()
training.signals.put_back()
gone = weakref.ref(training)
del training
gc.collect()
say(gone() is None)
"""
    with running(script) as started:
        assert line_of(started) == "True"
