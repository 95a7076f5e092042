"""The processes that work for a training beside it, started from whatever a training may be."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from helpers.support import line_of, process
from helpers.waiting import wait_until
from holdfast.mirror import child


def test_a_data_worker_that_is_forked_in_the_middle_of_a_start_does_not_hold_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forked = threading.Event()
    in_the_middle = threading.Event()
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]

    def slow(*arguments: object) -> int:
        pid: int = fork_exec(*arguments)
        in_the_middle.set()
        forked.wait(0.5)
        return pid

    monkeypatch.setattr(subprocess, "_fork_exec", slow)
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(child.start("holdfast.mirror.process")))
    thread.start()
    assert in_the_middle.wait(30)
    worker = os.fork()
    if not worker:
        signal.pause()
        os._exit(0)
    forked.set()
    try:
        wait_until(lambda: started, 10)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        thread.join()
        started[0].communicate()


_BARE = """
import os, subprocess, sys
os.close(2)
sys.path.append(sys.argv[1])
from holdfast.mirror import child
print(child.start("told_of", stdout=subprocess.PIPE).communicate()[0].decode(), end="", flush=True)
"""

_TOLD_OF = """
import os, sys

def main():
    print(sys.stderr is not None, os.path.basename(sys.path[0]) == "told", os.path.basename(sys.path[-1]) == "told")
"""


def test_it_has_a_place_for_errors_and_the_libraries_that_training_was_told_of(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.mkdir()
    (told / "told_of.py").write_text(_TOLD_OF)
    with process(_BARE, told) as started:
        assert line_of(started, 60) == "True False True"
