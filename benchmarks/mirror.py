"""The cost of a mirror, beside obstore alone and beside a training that has none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import bucket_server, mirror_training, mirror_transfers
from benchmarks.table import head, row

_MIB = 1 << 20
_SIZE = 384 * _MIB
_ROUNDS = 6
_DELAY_SECONDS = 0.03
# Of a file of 100 GB a part has so much.
_LARGE_PART = 10 * _MIB
_MEMORY_SIZES = {"upload": (256 * _MIB, 4096 * _MIB), "pull": (256 * _MIB, 1024 * _MIB)}
_STEP_ROUNDS, _BOUNDARY_ROUNDS, _START_ROUNDS = 6, 60, 4


def report(folder: Path) -> None:
    """Prints the tables."""
    with bucket_server.serving() as port, mirror_training.credentials():
        _report_training(port, folder)
        bucket_server.tell(port, forget=1)
        for text, delay in (("", 0.0), (", each request 30 ms longer", _DELAY_SECONDS)):
            bucket_server.tell(port, delay=delay)
            _report_transfers(port, folder, text)
        bucket_server.tell(port, delay=0)
        _report_memory(port, folder)


def _report_transfers(port: int, folder: Path, text: str) -> None:
    measured = mirror_transfers.measured(port, folder, _SIZE, _ROUNDS)
    head(f"a file of {_SIZE / _MIB:.0f} MiB{text}", "")
    for what, ways in measured.items():
        for way, figures in ways.items():
            row(f"{what}, {way}, s", figures["seconds"], 1)
        obstore, ours = (ways[way]["seconds"] for way in mirror_transfers.WAYS)
        row(f"{what}: speed of ours / obstore alone (goal: >= 0.9)", _ratios(obstore, ours), 1)
        for way, figures in ways.items():
            goal = " (goal: <= 0.25)" if way == "ours" else ""
            row(f"{what}, {way}, processor s per 100 MiB{goal}", figures["processor"], 100 * _MIB / _SIZE)


def _report_memory(port: int, folder: Path) -> None:
    head("resident memory above a process that has the store open", "MiB")
    for what, sizes in _MEMORY_SIZES.items():
        for size, part in ((sizes[0], 0), (sizes[1], 0), *([(sizes[0], _LARGE_PART)] if what == "upload" else [])):
            found = mirror_transfers.memory(port, folder, what, size, part)
            text = ", in parts as of 100 GB" if part else ""
            above = [(found["most"] - found["idle"]) / _MIB]
            row(f"{what} of {size / _MIB:.0f} MiB{text} (goal: <= 64)", above, 1)
    row("that process itself", [found["idle"] / _MIB], 1)


def _report_training(port: int, folder: Path) -> None:
    boundaries = mirror_training.boundaries(port, folder, _BOUNDARY_ROUNDS)
    _report_both("a boundary, of the processor", "µs", boundaries, 1e6, "1")
    cores = torch.get_num_threads()
    for threads in (1, cores):
        steps = mirror_training.steps(port, folder, _STEP_ROUNDS, threads)
        where = f"a step on {threads} of {cores} cores, while a checkpoint is sent at 10 MB/s"
        _report_both(where, "ms", steps, 1e3, "<= 1.02")
    for others in (0, 1):
        place = folder / f"start-{others}"
        place.mkdir()
        ways = mirror_training.first_step(port, place, _START_ROUNDS, others)
        head(f"a machine that has nothing{', one more is labelled in the mirror' * others}", "s")
        for way, parts in ways.items():
            for part, values in parts.items():
                row(f"{way}: {part}", values, 1)
        for text, left_out in (("in all", ""), ("without interpreter and libraries", mirror_training.IMPORTS)):
            wholes = (_sums(parts, left_out) for parts in (ways["mirror"], ways["plain"]))
            row(f"from the mirror / a plain download, {text} (goal: <= 1.1)", _ratios(*wholes), 1)


def _report_both(text: str, unit: str, values: Mapping[str, Sequence[float]], scale: float, goal: str) -> None:
    head(text, unit)
    for way in ("with", "without"):
        row(f"{way} a mirror", values[way], scale)
    row(f"with / without, by turn (goal: {goal})", _ratios(values["with"], values["without"]), 1)


def _sums(parts: Mapping[str, Sequence[float]], left_out: str) -> list[float]:
    return [sum(each) for each in zip(*(values for part, values in parts.items() if part != left_out), strict=True)]


def _ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(over, under, strict=True)]
