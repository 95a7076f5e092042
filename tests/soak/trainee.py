"""What the endurance test trains: the loop of the other tests, with its losses in a file, and requests of its own."""

import faulthandler
import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from helpers.loops import Loop
from holdfast.errors import SaveError


def run() -> None:
    """Trains as `sys.argv` says: the run directory, the last step, a seed, and the settings as JSON."""
    run_directory, until, seed, settings = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.nice(10)
    faulthandler.dump_traceback_later(80)  # no life is that long
    draw = random.Random(seed)
    losses = os.open("losses.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    loop = Loop(run_directory, say=lambda text: print(text, flush=True), **json.loads(settings))
    with loop.ckpt:
        for number, batch in enumerate(loop.ckpt.batches(until=until)):
            if not number:
                print(f"begins after {loop.ckpt.step_count}", flush=True)
            loop.update(batch)
            os.write(losses, f"{loop.ckpt.step_count} {loop.losses[-1]}\n".encode())
            if draw.random() < 0.01:
                with suppress(SaveError):  # the disk may be full
                    loop.ckpt.save("from Python", wait=draw.random() < 0.3)
            while Path("stand").exists():
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.015))
    print(f"ends {loop.ckpt.step_count} {loop.digest()}", flush=True)
