"""What the parts have found: kept in a file as it comes, and summed up."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.gpu import goals

_ROOT = Path(__file__).parents[2]


class Keeper:
    """The figures of a machine's day: `make gpu` and `make gpu-table` add to one file.

    Args:
        what: `check` or `table`.
        device: `cuda`, or `cpu` for a dry run, of which nothing is kept.
        folder: A directory that goes away afterwards.
    """

    def __init__(self, what: str, device: str, folder: Path) -> None:
        self._what = what
        self._is_dry = device == "cpu"
        date = datetime.now(UTC).date().isoformat()
        name = "dry" if self._is_dry else torch.cuda.get_device_name().replace(" ", "-").lower()
        self.path = (folder if self._is_dry else results.FOLDER) / f"{date}-{name}.json"
        self.result: dict[str, Any] = {"date": date, "device": name, "torch": torch.__version__, "parts": {}}
        if self.path.is_file():
            self.result = results.read(self.path)
        self._failed: list[str] = []
        self._left_out: list[str] = []

    def take(self, name: str, seconds: float, into: Path) -> None:
        """Takes in the findings of a part, and keeps them."""
        findings = [json.loads(line) for line in into.read_text().splitlines()]
        self._failed += [f"{finding['name']}: {finding['text']}" for finding in findings if finding["passed"] is False]
        self._left_out += [f"{finding['name']}: {finding['text']}" for finding in findings if finding.get("left_out")]
        self.result["parts"][name] = {"seconds": round(seconds), "commit": _commit(), "findings": findings}
        results.put(self.result, self.path)

    def leave_out(self, name: str, why: str) -> None:
        """Notes a part that was not begun. What an earlier run of the day has found of it stays."""
        self._left_out.append(f"{name}: not run: {why}")

    def end(self, seconds: float) -> int:
        """Prints the sum of it, puts the figures into the page, and returns the exit code."""
        print(f"\n{self._what}, {seconds:.0f} s, {self.result['device']}")
        if not self._is_dry:
            for goal in goals.of(self.result):
                print(f"  {'reached' if goal.reached else 'NOT REACHED':11}  {goal.text}: {goals.values(goal)}")
            from benchmarks.gpu import page

            page.write(self.path)
            print(f"written: {self.path}, {page.PAGE}")
        for line in self._left_out:
            print(f"  not run  {line}")
        for line in self._failed:
            print(f"  FAIL  {line}")
        failed = len(self._failed)
        print("passed" if not failed else f"{failed} FAILED", end="")
        print(f", {len(self._left_out)} not run" if self._left_out else "", flush=True)
        return 1 if failed else 0


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"
