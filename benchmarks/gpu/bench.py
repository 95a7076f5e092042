"""The setting of one part: where it measures, how large, and where its findings go."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1_000_000_000
MIB = 1 << 20
GIB = 1 << 30

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """One part's setting.

    Args:
        device: `cuda`, or `cpu` for a dry run.
        folder: An empty directory on the disk that is measured.
        into: The file that its findings are added to, one JSON object a line: what was found before it failed is kept.
    """

    device: str
    folder: Path
    into: Path

    @property
    def is_dry(self) -> bool:
        """True where there is no card, and nothing is measured."""
        return self.device == "cpu"

    def size(self, full: int, dry: int) -> int:
        """Returns a size: the one to measure with, or the one of a dry run."""
        return dry if self.is_dry else full

    def timed(self, reached: bool) -> bool | None:
        """Returns a verdict that goes by time: none in a dry run."""
        return None if self.is_dry else reached

    def add(self, name: str, passed: bool | None, text: str, /, **figures: Any) -> None:
        """Adds a finding, and prints it.

        Args:
            name: What it is of; an item of the list begins with its number.
            passed: Whether it is as it should be; None for a figure without a verdict.
            text: The figures, as a reader wants them.
            figures: The same for the file.
        """
        verdict = {True: "pass", False: "FAIL", None: "    "}[passed]
        print(f"  {verdict}  {name}: {text}", flush=True)
        line = json.dumps({"name": name, "passed": passed, "text": text, "figures": _plain(figures)})
        with self.into.open("a") as file:
            file.write(line + "\n")

    def leave_out(self, name: str, why: str) -> None:
        """Adds that something was not run."""
        print(f"  ----  {name}: not run: {why}", flush=True)
        with self.into.open("a") as file:
            file.write(json.dumps({"name": name, "passed": None, "text": f"not run: {why}", "left_out": True}) + "\n")


def milliseconds(seconds: float) -> str:
    """Returns a time as it is printed."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
