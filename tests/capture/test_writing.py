"""The writing of a save, as its user sees it: past the page cache or not, and how fast."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.parts import digests_of
from helpers.support import holdfast
from helpers.waiting import wait_until
from holdfast import Checkpointer
from holdfast.store.blocks import takes_direct_writes
from holdfast.store.manifest import File, decode

MODEL_BYTES = 4 << 20


class Plain:
    """A loop of one step, with a model of four megabytes."""

    def __init__(self, run: Path, **settings: Any) -> None:
        self.model = torch.nn.Linear(1024, 1024, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.ckpt = Checkpointer(
            run, model=self.model, optimizer=self.optimizer, on_stop="return", say=lambda text: None, **settings
        )

    def step(self) -> None:
        self.ckpt.resume()
        self.model(torch.ones(1, 1024)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ckpt.step()


def test_a_limit_holds_back_a_save_that_nobody_waits_for(tmp_path: Path) -> None:
    loop = Plain(tmp_path / "run", save_rate_limit="8 MiB")
    with loop.ckpt:
        loop.step()
        ticket = loop.ckpt.save()
        answer = wait_until(lambda: ticket.answer)
        assert answer is not None and answer.saved and answer.seconds >= 0.5


@pytest.mark.parametrize("why", ["training waits", "a stop"])
def test_it_holds_nobody_back_who_cannot_wait(tmp_path: Path, why: str) -> None:
    loop = Plain(tmp_path / "run", save_rate_limit=MODEL_BYTES // 1000)
    with loop.ckpt:
        loop.step()
        ticket = loop.ckpt.save(stop=why == "a stop")
        answer = ticket.wait(100) if why == "training waits" else wait_until(lambda: ticket.answer)
        assert answer is not None and answer.saved


@pytest.mark.parametrize("direct", [True, False])
def test_status_tells_how_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    if not direct:  # a file system that refuses is one that the tests of the files themselves bring
        monkeypatch.setattr("holdfast.capture.snapshot.takes_direct_writes", lambda directory: False)
    elif not takes_direct_writes(tmp_path):
        pytest.skip(f"the file system of {tmp_path} takes no direct writes")
    loop = Plain(tmp_path / "run")
    with loop.ckpt:
        loop.step()
        loop.ckpt.save(wait=True)
    assert ("the file system refuses direct writes" in holdfast("status", tmp_path / "run").stdout) is not direct
    said = "direct" if direct else "buffered"
    assert f'"writes": "{said}"' in holdfast("status", tmp_path / "run", "--json").stdout


def test_files_of_a_megabyte_and_more_are_written_whole_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("direct", "buffered"):
        monkeypatch.setattr("holdfast.capture.snapshot.takes_direct_writes", lambda directory, way=way: way == "direct")
        loop = Plain(tmp_path / way)
        with loop.ckpt:
            loop.step()
            loop.ckpt.save(wait=True)
        assert holdfast("verify", tmp_path / way).returncode == 0
        (checkpoint,) = (tmp_path / way).glob("checkpoint-*")
        listed = {file.path: file for file in decode((checkpoint / "MANIFEST.json").read_bytes()).files}
        for path, file in listed.items():
            assert file == File(path, file.size, digests_of((checkpoint / path).read_bytes()))
        assert len(listed["model.safetensors"].digests) == 2 * 32
