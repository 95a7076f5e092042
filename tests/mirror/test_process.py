"""The mirror's process beside a training that uses the store's library itself."""

import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from helpers.loops import Loop
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, environment, moto, needs

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


@needs("obstore", "moto")
def test_forked_workers_that_read_through_the_stores_library_work_beside_a_mirror(tmp_path: Path) -> None:
    with moto() as port, environment(S3_ENVIRONMENT, tmp_path):
        endpoint = f"http://127.0.0.1:{port}"
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
        loop = Loop(tmp_path / "run", data=rows, mirror=f"s3://{BUCKET}/run", mirror_endpoint=endpoint, save_steps=2)
        with loop.ckpt:
            for batch in loop.ckpt.batches(epochs=2):
                assert os.getpid() not in batch[1].flatten().tolist()
                loop.update([batch[0], torch.zeros(len(batch[0]), 1)])
    assert loop.said[-1] == f"mirrored up to step {2 * _SAMPLES // 4} (s3://{BUCKET}/run)"
    assert "obstore" not in sys.modules
