"""Item 13, the table: each saver in the same loop, one process each."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import saving, shadow
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.copying import CopyAndWrite
from benchmarks.gpu.ours import Ours
from benchmarks.gpu.training import Training
from benchmarks.peers.saver import Saver

SHORT, LONG = 0.1, 0.5


def native(bench: Bench) -> None:
    """Ours, at short steps."""
    with shadow.card_of_paper(bench):
        saving.measure(bench, "native", Ours, SHORT)


def native_long(bench: Bench) -> None:
    """Ours, at long steps: nothing waits at the gate."""
    with shadow.card_of_paper(bench):
        saving.measure(bench, "native", Ours, LONG)


def native_early(bench: Bench) -> None:
    """Ours, whose first save comes right after the first boundary: it uses what is there of the arena."""
    with shadow.card_of_paper(bench):
        saving.measure(bench, "native, asked at once", Ours, SHORT, rests=False)


def copying(bench: Bench) -> None:
    """The saver that only copies and writes."""
    saving.measure(bench, "only copies and writes", CopyAndWrite, SHORT)


def copying_long(bench: Bench) -> None:
    """The same at long steps."""
    saving.measure(bench, "only copies and writes", CopyAndWrite, LONG)


def torch_checkpointing(bench: Bench) -> None:
    """Meta's."""
    saving.measure(bench, "torch_checkpointing", _peer("meta_checkpointing", "TorchCheckpointing"), SHORT)


def torch_checkpointing_long(bench: Bench) -> None:
    """The same at long steps."""
    saving.measure(bench, "torch_checkpointing", _peer("meta_checkpointing", "TorchCheckpointing"), LONG)


def dcp(bench: Bench) -> None:
    """DCP's `async_save`, whose stager keeps locked memory."""
    saving.measure(bench, "DCP async_save, pinned", _peer("dcp", "DcpAsyncCached"), SHORT)


def torch_save(bench: Bench) -> None:
    """`torch.save`, and a sync."""
    saving.measure(bench, "torch.save", _peer("torch_save", "TorchSave"), SHORT)


def _peer(module: str, name: str) -> Callable[[Training, Path], Saver]:
    # Not before its turn: who is not installed fails alone.
    import importlib

    kind: Callable[[Training, Path], Saver] = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
    return kind
