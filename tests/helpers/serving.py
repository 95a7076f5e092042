"""A small real process that opens a run and answers requests: everything of a training but the training."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.support import line_of, process

# It is told line by line: `save` serves what is asked for, `fail` fails to, `end` ends it.
_SCRIPT = """
import sys, threading, time
from pathlib import Path

from holdfast.engine import save as saving
from holdfast.capture.boundary import Boundary
from holdfast.settings import DynamicCheckpoint
from holdfast.doors.request_queue import RequestQueue
from holdfast.log import RunLog
from holdfast.run.run import Run
from holdfast.capture.snapshot import Snapshot
from holdfast.store.retention import RetentionPolicy

def save(folder):
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        (folder.path / name).write_bytes(b"{}" if name.endswith(".json") else name.encode())
    return {}

def fail(folder):
    raise RuntimeError("a bad day\\nin two lines")

run = Run.open(Path(sys.argv[1]))
queue = RequestQueue(run, DynamicCheckpoint(), RunLog(lambda text: None), threading.Event())
queue.start()
run.status.update(phase="training", step=6, max_steps=100, rate=2.5, loss=float("nan"))
run.status.write()
print("ready")
step = 6
for line in map(str.strip, sys.stdin):
    if line == "end":
        break
    step += 1
    while not queue.look(step, last=True):
        time.sleep(0.002)
    snapshot = Snapshot(Boundary(step, "logged"), {"save": save, "fail": fail}[line], "transformers", 1000)
    answer = saving.save(run, snapshot, queue.take(), RetentionPolicy(None, None))
    run.status.update(step=step)
    run.status.write()
    print("saved" if answer.saved else "failed")
queue.close()
run.close("finished", 0)
"""


@contextmanager
def training(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains the run in `root`, as far as any other process can tell."""
    with process(_SCRIPT, root) as started:
        assert line_of(started) == "ready"
        yield started
