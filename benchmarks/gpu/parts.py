"""The parts: what each runs, how long it may take, and in what order. A part is a process."""

import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.bench import Bench

_ROOT = Path(__file__).parents[2]
_DRY_SECONDS = 240


@dataclass(frozen=True)
class Part:
    """One part.

    Args:
        work: Its module and function.
        seconds: It is ended after so long.
        beside: Whether others may run at the same time: it measures no time, and leaves room on the card.
        of_others: Whether it is a saver of others: that it cannot do something is a figure, and no failure of ours.
    """

    work: str
    seconds: int
    beside: bool = False
    of_others: bool = False

    @property
    def verdict(self) -> bool | None:
        """The verdict on a failure."""
        return None if self.of_others else False


# What is open comes first: its figures decide constants.
CHECK = {
    "machine": Part("machine:run", 60),
    "copies": Part("copies:run", 90),
    "registering": Part("registering:run", 90),
    "snapshots": Part("snapshots:run", 120),
    "native": Part("table:native", 120),
    "torch_checkpointing": Part("table:torch_checkpointing", 120, of_others=True),
    "variants": Part("variants:run", 180, beside=True),
    "proofs": Part("proofs:run", 200, beside=True),
    "tests": Part("marked:run", 200, beside=True),
    "cardmemory": Part("cardmemory:run", 60),
    "restoring": Part("restoring:run", 60),
}
"""`make gpu`."""
TABLE = {
    "native": Part("table:native", 150),
    "copying": Part("table:copying", 120),
    "torch_checkpointing": Part("table:torch_checkpointing", 150, of_others=True),
    "native-early": Part("table:native_early", 120),
    "attach": Part("attached_saves:run", 200),
    "native-long": Part("table:native_long", 150),
    "copying-long": Part("table:copying_long", 120),
    "torch_checkpointing-long": Part("table:torch_checkpointing_long", 150, of_others=True),
    "restore": Part("restoring:large", 180),
    "dcp": Part("table:dcp", 240, of_others=True),
    "torch-save": Part("table:torch_save", 200, of_others=True),
}
"""`make gpu-table`. Ours is measured again: what it is compared with is measured on the same warm machine."""


def run_one(name: str, bench: Bench) -> None:
    """Runs a part in this process. What it raises is a finding."""
    part = {**TABLE, **CHECK}[name]
    module, function = part.work.split(":")
    try:
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(bench)
    except ImportError as error:
        bench.leave_out(name, f"{error.name or error} is not installed here")
    except Exception as error:
        bench.add(name, part.verdict, f"failed: {type(error).__name__}: {error}")
        raise


class Running:
    """A part in a process of its own.

    Args:
        name: Its name.
        part: What it is.
        device: `cuda`, or `cpu` for a dry run.
        folder: Where directories are made for it, on the disk that is measured.
    """

    def __init__(self, name: str, part: Part, device: str, folder: Path) -> None:
        self.name = name
        self._part = part
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        self.into = folder / f"{name}.jsonl"
        self.into.touch()
        self._seconds = _DRY_SECONDS if device == "cpu" else part.seconds
        self._begun = time.monotonic()
        self._output = (folder / f"{name}.out").open("w+")
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "part", name, "--device", device]
        command += ["--folder", str(self.folder), "--into", str(self.into)]
        # A group of its own, so that its children end with it.
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=_environment(),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> float:
        """Waits for its end, or ends it, prints what it said, and returns the seconds that it took."""
        try:
            code = self._process.wait(max(0.1, self._seconds - (time.monotonic() - self._begun)))
            trouble = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            trouble = f"not over after {self._seconds} s"
        self.end()
        seconds = time.monotonic() - self._begun
        self._output.seek(0)
        said = self._output.read()
        self._output.close()
        print(f"[{self.name}, {seconds:.0f} s]\n{said.rstrip()}", flush=True)
        # What it raised is a finding of its own already.
        if trouble and f'"name": "{self.name}"' not in self.into.read_text():
            lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
            text = f"{trouble}: {lines[-1].strip()[:300]}"
            Bench("", self.folder, self.into).add(self.name, self._part.verdict, text)
        shutil.rmtree(self.folder, ignore_errors=True)
        return seconds

    def end(self) -> None:
        """Ends its processes, which may have outlived it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def in_order(parts: dict[str, Part]) -> list[list[str]]:
    """Returns the names in groups that run at the same time, in order."""
    groups: list[list[str]] = []
    for name, part in parts.items():
        if part.beside and groups and parts[groups[-1][-1]].beside:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def missing() -> Sequence[str]:
    """Returns what the project declares and this machine has not."""
    declared = ("torch", "safetensors", "numpy", "pydantic", "yaml", "typer", "xxhash", "psutil")
    return [name for name in declared if importlib.util.find_spec(name) is None]


def _environment() -> dict[str, str]:
    # Children find the package in its folder: it is installed nowhere.
    places = [str(_ROOT / "src"), str(_ROOT / "tests"), str(_ROOT)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        # A machine's own settings are for others: no warning is an error, no option is added to pytest's.
        "PYTHONWARNINGS": "ignore",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
