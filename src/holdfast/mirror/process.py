"""The mirror's process: started by training, alone in using the store's library, and gone when training is.

It hears of what is to be done through a pipe from training: a first line with its settings, then a line whenever
something waits, after the first steps, and at the end, with the time that is left. A last line, the end of the pipe,
and another parent are the end of training.
"""

import io
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from holdfast.mirror.destination import END, LEFT, TRAINS, Assignment
from holdfast.mirror.sending import Sender, Wake
from holdfast.remote.opening import open_store
from holdfast.run.directory import RunDirectory

# What a launcher or a scheduler sends to all processes of a job is for training, which has its grace by it.
_FOR_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_SECONDS = 1.0
_MOST_BYTES = 64 << 10


def main() -> None:
    """Serves one training, until it ends."""
    for number in _FOR_TRAINING:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()  # not what training says: a wrapper of the interpreter may be in between
    pipe = io.FileIO(sys.stdin.fileno(), closefd=False)  # no buffer, in which later lines would wait unseen
    if not (line := pipe.readline(_MOST_BYTES)):
        return
    assignment = Assignment.decode(line)
    wake = Wake()
    heard = (pipe.fileno(), parent, wake)
    threading.Thread(target=_listen, args=heard, name="holdfast-pipe", daemon=True).start()
    there = assignment.destination
    Sender(
        RunDirectory.open(Path(assignment.root)),
        assignment,
        lambda: open_store(there.url, there.endpoint, there.region),
        wake,
    ).serve()


def _listen(pipe: int, parent: int, wake: Wake) -> None:
    """Ends the process, whatever it does, when training has ended. What is under way is sent again by the next start.

    A data worker that was forked holds the pipe open as well, and may outlive a training that is killed.
    """
    with suppress(OSError, ValueError):
        while os.getppid() == parent:
            if select.select([pipe], [], [], _LOOK_SECONDS)[0]:
                data = os.read(pipe, _MOST_BYTES)
                if not data or END in data:
                    break
                wake.trains = wake.trains or TRAINS in data
                for text in (line[len(LEFT) :] for line in data.splitlines() if line.startswith(LEFT)):
                    wake.ends_at = time.monotonic() + float(text)
                wake.set()
    os._exit(0)
