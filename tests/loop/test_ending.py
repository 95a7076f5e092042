"""A training that is in no `with` block, or in one later than usual."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from helpers.loops import Loop
from helpers.mirrors import DirectoryMirror
from helpers.trainings import answers, events
from helpers.waiting import wait_until
from holdfast import Checkpointer
from holdfast.errors import HoldfastError, Stopped


def steps(loop: Loop, count: int) -> None:
    for _, batch in zip(range(count), loop.data, strict=False):
        loop.update(batch)


def test_resume_opens_every_door_and_close_shuts_them(tmp_path: Path) -> None:
    hook, handler, run = sys.excepthook, signal.getsignal(signal.SIGTERM), tmp_path / "run"
    loop = Loop(run)
    assert loop.ckpt.resume() == 0
    steps(loop, 2)
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until(lambda: len(events(run, "saved")) == 1)
    (run / "axolotl_checkpoint.save").touch()
    wait_until(lambda: len(answers(run)) == 2)
    steps(loop, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: loop.ckpt.stop_requested)
    assert [event["step"] for event in events(run, "saved")] == [2, 3]
    for _ in range(2):
        if events(run, "end"):
            loop.ckpt.close()
        else:
            with pytest.raises(Stopped) as stopped:
                loop.ckpt.close()
            assert stopped.value.code == 75
    assert [(end["outcome"], end["code"]) for end in events(run, "end")] == [("stopped", 75)]
    assert (sys.excepthook, signal.getsignal(signal.SIGTERM)) == (hook, handler)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("holdfast")]


def test_a_block_may_begin_after_resume_and_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.ckpt.resume()
    with loop.ckpt as entered:
        assert entered is loop.ckpt
        with pytest.raises(HoldfastError, match="entered already"):
            loop.ckpt.__enter__()
        steps(loop, 1)
    assert len(events(tmp_path, "end")) == 1
    closed = Loop(tmp_path / "closed").ckpt
    closed.close()
    with pytest.raises(HoldfastError, match="was closed"):
        closed.resume()
    with pytest.raises(HoldfastError, match="was closed"):
        closed.__enter__()


def test_nobody_keeps_a_checkpointer_that_is_not_in_use(tmp_path: Path) -> None:
    never_resumed, closed = Loop(tmp_path / "never"), Loop(tmp_path / "closed")
    closed.ckpt.resume()
    steps(closed, 1)
    closed.ckpt.close()
    left = [weakref.ref(kept) for loop in (never_resumed, closed) for kept in (loop.ckpt, loop.model)]
    assert isinstance(left[0](), Checkpointer)
    del never_resumed, closed
    gc.collect()
    assert [kept() for kept in left] == [None] * 4


def test_what_is_forked_in_a_training_and_leaves_its_block_does_not_end_it(tmp_path: Path) -> None:
    mirror = DirectoryMirror(tmp_path / "mirror")
    loop = Loop(tmp_path / "run", mirror=mirror.url)
    with loop.ckpt:
        loop.ckpt.resume()
        steps(loop, 2)
        loop.ckpt.save()
        wait_until(lambda: events(tmp_path / "run", "mirrored"))
        if not (child := os.fork()):
            try:
                with suppress(BaseException):
                    loop.ckpt.__exit__(SystemExit, SystemExit(), None)
            finally:
                os._exit(0)
        try:
            wait_until(lambda: os.waitpid(child, os.WNOHANG)[0])
        except AssertionError:
            os.kill(child, signal.SIGKILL)
            raise
        outcome = json.loads((tmp_path / "run/.holdfast/outcome.json").read_text())
        assert outcome["ended_at"] is None
        steps(loop, 1)
        loop.ckpt.save()
    assert [event["step"] for event in events(tmp_path / "run", "mirrored")] == [2, 3]
    assert not events(tmp_path / "run", "mirror process ended")
    assert len(events(tmp_path / "run", "end")) == 1


# One process that imports what they need, and a child for each kind, which comes to its end as a script does.
PROGRAM = """
import atexit, os, signal, sys
from pathlib import Path
sys.path.insert(0, TESTS)
from helpers.loops import Loop
from helpers.mirrors import DirectoryMirror
from helpers.waiting import wait_until

children = {}
for kind in ("uncaught", "stopped", "handler", "asked"):
    if not (child := os.fork()):
        break
    children[kind] = child
else:
    for kind, child in children.items():
        Path(f"{kind}.code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    sys.exit()
atexit.register(lambda: print("an earlier one of atexit", flush=True))
os.dup2(os.open(f"{kind}.txt", os.O_WRONLY | os.O_CREAT), 1)
sys.excepthook = lambda kind, error, trace: print("own hook:", kind.__name__, flush=True)
if kind == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
loop = Loop(Path(kind), say=lambda text: print(text, flush=True))
loop.ckpt.resume()
for number, batch in enumerate(loop.data):
    loop.update(batch)
    if number == 2:
        break
if kind == "uncaught":
    raise ArithmeticError("nobody catches it")
if kind in ("stopped", "handler"):
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: loop.ckpt.stop_requested and kind == "stopped")
if kind == "asked":
    loop.ckpt.save("at the end")
"""


def test_what_nobody_catches_or_closes_is_noticed_answered_and_said(tmp_path: Path) -> None:
    program = PROGRAM.replace("TESTS", repr(str(Path(__file__).parents[1])))
    kinds = {"uncaught": 1, "stopped": 75, "handler": 9, "asked": 0}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=120, check=True)
    said = {kind: (tmp_path / f"{kind}.txt").read_text() for kind in kinds}
    codes = {kind: int((tmp_path / f"{kind}.code").read_text()) for kind in kinds}
    assert codes == kinds, said
    for kind in ("uncaught", "stopped", "handler"):
        assert [saved["step"] for saved in events(tmp_path / kind, "saved")] == [3]
    ends = {kind: [(end["outcome"], end["code"]) for end in events(tmp_path / kind, "end")] for kind in kinds}
    assert ends["uncaught"] == [("failed: ArithmeticError", 1)] and ends["stopped"] == [("stopped", 75)]
    assert ends["handler"] == [("stopped", 9)] and ends["asked"] == [("finished", 0)]
    assert "own hook: ArithmeticError" in said["uncaught"] and "close() was not called" not in said["uncaught"]
    for kind in ("stopped", "handler", "asked"):
        assert "an earlier one of atexit" in said[kind]
        assert ("close() was not called" in said[kind]) == (kind != "handler")
        (answer,) = answers(tmp_path / kind).values()
        assert answer["saved"] or "thread" in answer["error"], answer  # from Python 3.12 on none is started at the end


def test_a_notebooks_training_that_has_ended_in_another_directory_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.loop.ending.in_notebook", lambda: True)
    (tmp_path / "elsewhere").mkdir()
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    first = Checkpointer("run", model=model, save_at_end=False, say=said.append)
    first.resume()
    monkeypatch.chdir(tmp_path / "elsewhere")
    first.close()
    monkeypatch.chdir(tmp_path)
    Checkpointer("run", model=model, save_at_end=False, say=said.append).close()
    assert not [line for line in said if "takes over" in line]
