"""What the very machine allows: its bus, its disk, and the floors that they give."""

import mmap
import shutil
import time
from dataclasses import dataclass

import torch

from benchmarks.against import BOUNDARY_LAYERS, boundary_seconds
from benchmarks.gpu.bench import GB, GIB, MIB, Bench, milliseconds
from benchmarks.gpu.card import Card
from benchmarks.gpu.locked import HostMemory
from benchmarks.host import describe
from benchmarks.raw import RawFile

_ROUNDS = 3


@dataclass(frozen=True)
class Machine:
    """Bytes a second, and seconds for a state.

    Args:
        to_host: From the card into locked memory of the host.
        to_card: The other way.
        durable: Seconds for as many bytes as the state has, written past the page cache and synced.
        read: Seconds to read as many.
        size: The state's bytes.
    """

    to_host: float
    to_card: float
    durable: float
    read: float
    size: int

    @classmethod
    def of(cls, bench: Bench, size: int) -> "Machine":
        """Measures it.

        Args:
            bench: The setting.
            size: The state's bytes, for which the disk's times are.
        """
        to_host, to_card = _bus(bench)
        sample = min(size, bench.size(4 * GB, 4 * MIB)) // mmap.PAGESIZE * mmap.PAGESIZE
        written, read = RawFile(bench.folder, sample).seconds()
        return cls(to_host, to_card, written * size / sample, read * size / sample, size)

    def floor(self, forward_backward: float) -> float:
        """Returns the seconds that an update must wait where everything is copied between it and the last.

        Args:
            forward_backward: The seconds of what training does in between.
        """
        return max(0.0, self.size / self.to_host - forward_backward)


def run(bench: Bench) -> None:
    """Says what the machine is and allows."""
    card = Card(bench.device)
    properties = card.describe()
    host = describe(bench.folder, bench.device)
    text = f"{properties['name']}, {properties['memory'] / 1e9:.0f} GB, torch {torch.__version__}"
    text += f", {shutil.disk_usage(bench.folder).free / 1e9:.0f} GB free on the disk"
    text += f", {host['cores']} cores, {host['memory in GiB']} GiB, {host['file system']}"
    bench.add("the machine", None, text, host=host, card=properties, torch=torch.__version__)
    size = bench.size(12 * GB, 4 * MIB)
    machine = Machine.of(bench, size)
    bench.add(
        "what it allows",
        None,
        f"to the host {machine.to_host / 1e9:.1f} GB/s, to the card {machine.to_card / 1e9:.1f} GB/s,"
        f" written directly {size / machine.durable / 1e9:.2f} GB/s, read {size / machine.read / 1e9:.2f} GB/s:"
        f" 12 GB take {size / machine.to_host:.3f} s of the bus, {machine.durable:.1f} s of the disk",
        to_host=machine.to_host,
        to_card=machine.to_card,
        durable=machine.durable,
        read=machine.read,
    )
    _of_boundaries(bench)


def _of_boundaries(bench: Bench) -> None:
    """Says what a boundary costs training where nobody asks, with the state on the card and on the host."""
    for device in dict.fromkeys(("cpu", bench.device)):
        seconds = boundary_seconds(bench.folder / device, BOUNDARY_LAYERS, device)
        bench.add(f"a boundary of 800 tensors on {device}", None, milliseconds(seconds), seconds=seconds)


def _bus(bench: Bench) -> tuple[float, float]:
    card = Card(bench.device)
    size = bench.size(GIB, 4 * MIB)
    host = HostMemory(size, bench.device)
    host.make(size)
    there = torch.ones(size, dtype=torch.uint8, device=bench.device)
    rates = []
    for target, source in ((host.tensor, there), (there, host.tensor)):
        best = float("inf")
        for _ in range(_ROUNDS):
            card.settle()
            begun = time.perf_counter()
            target.copy_(source, non_blocking=True)
            card.settle()
            best = min(best, time.perf_counter() - begun)
        rates.append(size / best)
    del there
    card.release()
    return rates[0], rates[1]
