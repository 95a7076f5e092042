"""The mirror's process beside a training that uses the store's library itself."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from helpers.loops import Loop
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, environment, needs
from holdfast.mirror import process
from holdfast.mirror.destination import LEFT
from holdfast.mirror.sending import Wake

_SAMPLES = 40


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Reads each sample from a bucket, in whichever process it is asked for."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        import obstore
        from obstore.store import S3Store

        store = S3Store(BUCKET, endpoint=self.endpoint, client_options={"allow_http": True})
        data = bytes(obstore.get(store, f"data/{number}").bytes())
        return torch.full((8,), float(data)), torch.tensor([float(os.getpid())])


def test_it_hears_how_much_time_is_left_at_the_end_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    read, write = os.pipe()
    wake = Wake()
    os.write(write, b"\n" + LEFT + b"12.500\n")
    os.close(write)
    process._listen(read, os.getppid(), wake)
    os.close(read)
    assert wake.is_set() and wake.ends_at is not None and 0 < wake.ends_at - time.monotonic() <= 12.5
    assert ended == [0], "the end of the pipe is the end of training"


@needs("obstore", "moto")
def test_forked_workers_that_read_through_the_stores_library_work_beside_a_mirror(s3_port: int, tmp_path: Path) -> None:
    with environment(S3_ENVIRONMENT, tmp_path):
        endpoint = f"http://127.0.0.1:{s3_port}"
        filled = os.fork()
        if not filled:  # the training's own process never loads the library
            import obstore
            from obstore.store import S3Store

            store = S3Store(BUCKET, endpoint=endpoint, client_options={"allow_http": True})
            for number in range(_SAMPLES):
                obstore.put(store, f"data/{number}", b"%d" % number)
            os._exit(0)
        assert os.waitpid(filled, 0)[1] == 0
        rows = DataLoader(Rows(endpoint), batch_size=4, num_workers=2, multiprocessing_context="fork")
        loop = Loop(tmp_path / "run", data=rows, mirror=f"s3://{BUCKET}/forked", mirror_endpoint=endpoint, save_steps=2)
        with loop.ckpt:
            for batch in loop.ckpt.batches(epochs=2):
                assert os.getpid() not in batch[1].flatten().tolist()
                loop.update([batch[0], torch.zeros(len(batch[0]), 1)])
    assert loop.said[-1] == f"mirrored up to step {2 * _SAMPLES // 4} (s3://{BUCKET}/forked)"
    assert "obstore" not in sys.modules
