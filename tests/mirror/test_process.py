"""The mirror's process beside a training that uses the store's library itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.object_servers import BUCKET, S3_ENVIRONMENT, environment, needs
from holdfast.mirror import process
from holdfast.mirror.destination import LEFT, TRAINS
from holdfast.mirror.sending import Wake

_SAMPLES = 40

# What is read through the library's own store; the process that has used it cannot fork any more.
FILLS = """
import sys, obstore
from obstore.store import S3Store

store = S3Store(sys.argv[1], endpoint=sys.argv[2], client_options={"allow_http": True})
for number in range(int(sys.argv[3])):
    obstore.put(store, f"data/{number}", b"%d" % number)
"""

# A training whose data workers are forked, and read each sample through the library.
TRAINING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import torch
from torch.utils.data import DataLoader, Dataset
from helpers.loops import Loop

BUCKET, ENDPOINT, SAMPLES = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Rows(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, number):
        import obstore
        from obstore.store import S3Store

        store = S3Store(BUCKET, endpoint=ENDPOINT, client_options={"allow_http": True})
        data = bytes(obstore.get(store, f"data/{number}").bytes())
        return torch.full((8,), float(data)), torch.tensor([float(os.getpid())])

rows = DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context="fork")
loop = Loop(Path("run"), data=rows, say=print, mirror=f"s3://{BUCKET}/forked", mirror_endpoint=ENDPOINT, save_steps=2)
with loop.ckpt:
    for batch in loop.ckpt.batches(epochs=2):
        assert os.getpid() not in batch[1].flatten().tolist()
        loop.update([batch[0], torch.zeros(len(batch[0]), 1)])
assert "obstore" not in sys.modules, "the training's own process loads the library"
"""


def test_it_hears_of_the_first_step_and_at_the_end_how_much_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    read, write = os.pipe()
    wake = Wake()
    os.write(write, b"\n" + TRAINS + LEFT + b"12.500\n")
    os.close(write)
    process._listen(read, os.getppid(), wake)
    os.close(read)
    assert wake.trains and wake.is_set() and wake.ends_at is not None and 0 < wake.ends_at - time.monotonic() <= 12.5
    assert ended == [0], "the end of the pipe is the end of training"


@needs("obstore", "moto")
def test_forked_workers_that_read_through_the_stores_library_work_beside_a_mirror(s3_port: int, tmp_path: Path) -> None:
    with environment(S3_ENVIRONMENT, tmp_path):
        arguments = [BUCKET, f"http://127.0.0.1:{s3_port}", str(_SAMPLES), str(Path(__file__).parents[1])]
        subprocess.run([sys.executable, "-c", FILLS, *arguments], check=True, timeout=60)
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"mirrored up to step {2 * _SAMPLES // 4} (s3://{BUCKET}/forked)"
