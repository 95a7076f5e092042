"""Trainings in cells of a real Jupyter kernel: nothing that ends a training ends the kernel."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from helpers.trainings import events
from helpers.waiting import wait_until

BEGIN = """
import os, sys, time, threading, signal
from pathlib import Path
sys.path.insert(0, TESTS)
from helpers.loops import Loop
from helpers.waiting import wait_until

def stand(loop, after):
    def stands(*_):
        if loop.ckpt.step_count >= after:
            Path("stands").touch()
            while True:
                time.sleep(0.01)
    loop.model.register_forward_pre_hook(stands)

def made(name, after=10**9, **changes):
    loop = Loop(Path(name), say=lambda text: print(text, flush=True), **changes)
    stand(loop, after)
    return loop

def run(loop):
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=100_000):
            loop.update(batch)
"""


class Kernel:
    """A kernel in a folder, its cells and what they print."""

    def __init__(self, folder: Path) -> None:
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder))
        self.folder = folder
        self.manager: KernelManager = manager
        self.client: BlockingKernelClient = client
        self.printed: list[str] = []

    def start(self, code: str) -> str:
        """Starts a cell."""
        (self.folder / "stands").unlink(missing_ok=True)
        self.printed.clear()
        return str(self.client.execute(code))

    def end(self, cell: str) -> str:
        """Waits for the end of a cell, and returns the name of the error that it ended with; `ok` for none."""
        reply = self._reply(cell)
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "stream":
                self.printed.append(message["content"]["text"])
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return str(reply.get("ename", reply["status"]))

    def run(self, code: str) -> str:
        """Runs a cell to its end."""
        return self.end(self.start(code))

    def stands(self) -> None:
        """Waits until the training stands in the step that does not end."""
        wait_until((self.folder / "stands").exists, 60, "a training that stands")

    def interrupt(self) -> float:
        """Does what the stop button does; returns when."""
        self.manager.interrupt_kernel()
        return time.monotonic()

    @property
    def output(self) -> str:
        return "".join(self.printed)

    def _reply(self, cell: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=60)
            if message["parent_header"].get("msg_id") == cell:
                return dict(message["content"])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    started = Kernel(tmp_path_factory.mktemp("notebook"))
    assert started.run(BEGIN.replace("TESTS", repr(str(Path(__file__).parents[1])))) == "ok"
    yield started
    assert started.run("print(sorted(t.name for t in threading.enumerate() if t.name.startswith('holdfast')))") == "ok"
    left = started.output
    started.client.stop_channels()
    started.manager.shutdown_kernel()
    assert left == "[]\n", "a closed training has left threads in the kernel"


def is_alive(kernel: Kernel) -> bool:
    return kernel.run("print(1 + 1)") == "ok" and kernel.output == "2\n" and kernel.manager.is_alive()


def test_an_interrupt_saves_and_ends_the_training_and_not_the_kernel(kernel: Kernel) -> None:
    cell = kernel.start("run(made('one'))")
    status = kernel.folder / "one" / ".holdfast" / "status.json"
    wait_until(lambda: status.exists() and json.loads(status.read_text())["step"] >= 3, 60)
    kernel.interrupt()
    assert kernel.end(cell) == "Stopped"
    assert "checkpoint saved" in kernel.output and is_alive(kernel)
    assert events(kernel.folder / "one", "end")[-1]["outcome"] == "stopped"


def test_a_second_interrupt_gives_the_cell_back(kernel: Kernel) -> None:
    mirror = (kernel.folder / "mirror").as_uri()
    cell = kernel.start(f"run(made('two', after=3, mirror='{mirror}'))")
    kernel.stands()
    pressed = kernel.interrupt()
    wait_until(lambda: events(kernel.folder / "two", "saved"))
    wait_until(lambda: time.monotonic() - pressed > 1.1)
    kernel.interrupt()
    assert kernel.end(cell) == "KeyboardInterrupt"
    assert "second Ctrl+C: the save is complete" in kernel.output
    last, push = kernel.output.splitlines()[-1], "holdfast push two sends it"
    assert last in (f"mirrored up to step 3 ({mirror})", f"nothing is mirrored; 3 is on this disk only: {push}")
    assert is_alive(kernel)
    assert events(kernel.folder / "two", "end")[-1]["outcome"] == "stopped"


def test_an_interrupt_before_the_first_step_gives_the_cell_back(kernel: Kernel) -> None:
    cell = kernel.start("run(made('three', after=0))")
    kernel.stands()
    kernel.interrupt()
    assert kernel.end(cell) == "KeyboardInterrupt"
    assert "nothing to save" in kernel.output and is_alive(kernel)


def test_a_grace_that_is_over_gives_the_cell_back(kernel: Kernel) -> None:
    cell = kernel.start("run(made('four', after=3, stop_grace_seconds=1))")
    kernel.stands()
    kernel.interrupt()
    assert kernel.end(cell) == "KeyboardInterrupt"
    assert "did not end within 1 s" in kernel.output and is_alive(kernel)
    assert [saved["step"] for saved in events(kernel.folder / "four", "saved")] == [3]


def test_a_save_that_hangs_does_not_keep_the_cell(kernel: Kernel) -> None:
    """A second interrupt while the disk hangs; it comes back later, so that the thread ends."""
    code = """
from holdfast.store import commit
own, back = commit.Attempt.seal, threading.Event()
commit.Attempt.seal = lambda *args, **kwargs: (Path("stands").touch(), back.wait(), own(*args, **kwargs))[2]
run(made('hangs'))
"""
    cell = kernel.start(code.replace("run(made('hangs'))", "loop = made('hangs', save_steps=3)\nrun(loop)"))
    kernel.stands()
    pressed = kernel.interrupt()
    wait_until(lambda: events(kernel.folder / "hangs", "request"))
    wait_until(lambda: time.monotonic() - pressed > 1.1)
    kernel.interrupt()
    assert kernel.end(cell) == "KeyboardInterrupt"
    ends = "(saver,) = [one for one in threading.enumerate() if one.name == 'holdfast-saver']"
    assert kernel.run(f"{ends}\ncommit.Attempt.seal = own; back.set(); saver.join()") == "ok"
    assert "FAILED" not in kernel.output and "failed" not in kernel.output, kernel.output
    assert is_alive(kernel)


def test_a_new_checkpointer_takes_the_run_over_in_one_line(kernel: Kernel) -> None:
    again = (
        f"first = made('five', mirror='{kernel.folder.as_uri()}/mirror-of-five')\n"
        "first.ckpt.resume(); first.update(next(iter(first.data))); first.ckpt.save(wait=True)"
    )
    # To the mirror's process nothing gets through any more: what waits there is the next one's to send.
    stop = "os.kill(wait_until(lambda: first.ckpt._engine._mirror.process).pid, signal.SIGSTOP)"
    assert kernel.run(again.replace("first.update", f"{stop}; first.update")) == "ok"
    assert kernel.run(again.replace("first", "second")) == "ok"
    assert kernel.output.count("takes over") == 1 and "resumed from" in kernel.output, kernel.output
    assert kernel.run("first.ckpt.close(); second.ckpt.close()") == "ok"
    ends = [end["outcome"] for end in events(kernel.folder / "five", "end")]
    assert ends == ["taken over", "finished"]
    assert [event["step"] for event in events(kernel.folder / "five", "mirrored")] == [1, 2]
    assert kernel.run("print(made('five').ckpt is made('five').ckpt)") == "ok", "one that was never resumed keeps it"
