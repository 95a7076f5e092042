"""Real ranks: processes that train together over gloo, and do what they are told through a pipe each."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_LIMIT_SECONDS = 60

Work = Callable[[Path, Connection], None]
"""What one rank does, given the run directory and its end of the pipe."""


class Ranks:
    """The ranks of one training. Use it as a context manager.

    Args:
        size: How many.
        work: What each of them does.
        run: The run directory.
    """

    def __init__(self, size: int, work: Work, run: Path) -> None:
        # Forked from a process of its own that has torch imported: this one may run threads that a fork would lose.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "torch.nn.parallel", "holdfast"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            store = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_begin, args=(work, run, theirs, rank, size, store), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.join(_LIMIT_SECONDS if error[0] is None else 0)
            process.kill()

    def tell(self, word: str, ranks: Sequence[int] | None = None) -> None:
        """Sends a word to some ranks, or to all."""
        for rank in range(len(self._pipes)) if ranks is None else ranks:
            self._pipes[rank].send(word)

    def hear_all(self) -> list[Any]:
        """Waits for what each rank sends back."""
        return [self.hear(rank) for rank in range(len(self._pipes))]

    def hear(self, rank: int) -> Any:
        """Waits for what a rank sends back."""
        if not self._pipes[rank].poll(_LIMIT_SECONDS):
            raise TimeoutError(f"rank {rank} of {len(self._pipes)} said nothing for {_LIMIT_SECONDS} s")
        return self._pipes[rank].recv()


def _begin(work: Work, run: Path, pipe: Connection, rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    # What a launcher tells; one rank alone needs no group.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    if size > 1:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    work(run, pipe)
    if size > 1:
        dist.destroy_process_group()
