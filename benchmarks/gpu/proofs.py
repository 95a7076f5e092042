"""The exactness proofs: killed inside a step and resumed, it ends as if it had never been interrupted."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.proof import AT, UNTIL, VARIANTS

_AT_ONCE = 4
_LIMIT_SECONDS = 150
_DRY = ("fp32", "fp16 GradScaler", "data workers, pinned")


def run(bench: Bench) -> None:
    """Proves each way to train, some at a time: nothing is timed."""
    names = _DRY if bench.is_dry else tuple(VARIANTS)
    with ThreadPoolExecutor(1 if bench.is_dry else _AT_ONCE) as pool:
        for name, problem in zip(names, pool.map(lambda name: _prove(bench, name), names), strict=True):
            text = problem or f"asked at every step, killed in step {AT + 1}, equal at step {UNTIL}"
            bench.add(f"exact: {name}", not problem, text)


def _prove(bench: Bench, name: str) -> str:
    """Returns what was otherwise than it should be; empty if nothing was."""
    folder = bench.folder / name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    with ThreadPoolExecutor(1 if bench.is_dry else 2) as pool:
        whole = pool.submit(_train, bench, name, folder / "whole", "lives")
        cut = pool.submit(_train, bench, name, folder / "cut", "dies")
    if whole.result().returncode != 0:
        return f"the one that lives failed: {_end(whole.result())}"
    if cut.result().returncode != -9:
        return f"the one that dies ended with {cut.result().returncode}: {_end(cut.result())}"
    rest = _train(bench, name, folder / "cut", "asks")
    if rest.returncode != 0:
        return f"the resume failed: {_end(rest)}"
    if rest.stdout != whole.result().stdout:
        return f"NOT EQUAL: {whole.result().stdout.strip()} | {rest.stdout.strip()}"
    return ""


def _train(bench: Bench, name: str, run: Path, fate: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu.proof", name, bench.device, str(run), fate]
    # One thread: how many a busy machine gives changes the order of sums.
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"not over after {_LIMIT_SECONDS} s")


def _end(process: "subprocess.CompletedProcess[str]") -> str:
    lines = process.stderr.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
