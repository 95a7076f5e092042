"""What must hold of a run whenever its process has ended, and the counts of what was done to it."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.store import catalog
from holdfast.store.verify import verify

KEPT = 3


def events(run: Path) -> list[dict[str, Any]]:
    """The journal; a line that a full disk has torn is left out."""
    found = []
    journal = run / "events.jsonl"
    for line in journal.read_text(errors="replace").splitlines() if journal.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@dataclass
class Tally:
    """Looks at one run directory, after each life of its training.

    Args:
        run: The run directory.
        losses: What the training writes its losses to.
        expected: The losses of the training that was never interrupted.
        counts: What is printed at the end.
    """

    run: Path
    losses: Path
    expected: list[str]
    counts: Counter[str]
    acknowledged: int = 0
    judged: set[str] = field(default_factory=set)
    trouble: set[str] = field(default_factory=set)
    looked_at: int = 0

    def check_beginning(self, output: str) -> None:
        """A life resumed from the newest acknowledged checkpoint, or a later one."""
        if begun := re.search(r"begins after (\d+)", output):
            assert int(begun[1]) >= self.acknowledged, f"lost: {self.acknowledged} was acknowledged\n{output}"
            self.counts["resumed"] += int(begun[1]) > 0

    def check_end(self, *, full: bool) -> None:
        """Everything that was promised up to now.

        Args:
            full: Whether the disk was full for a time, so that a request may not have come to it.
        """
        happened = events(self.run)
        if full:
            self.trouble.update(event["id"] for event in happened if event["event"] == "request")
        saved = [event["step"] for event in happened if event["event"] == "saved"]
        self.acknowledged = max([self.acknowledged, *saved])
        self._check_answers()
        self._check_losses()

    def check_all_answered(self) -> None:
        """Every request that came to the disk has an answer."""
        asked = {e["id"] for e in events(self.run) if e["event"] == "request" and e["door"] != "schedule"}
        self.counts["requests"] += len(asked)
        without = asked - self.judged - self.trouble
        assert not without, f"never answered: {without}"

    def _check_answers(self) -> None:
        present = {}
        for found in catalog.entries(self.run):
            if found.manifest is not None:
                present[found.manifest.sha256] = found
        for path in (self.run / ".holdfast" / "answers").glob("*.json"):
            if path.stem in self.judged:
                continue
            self.judged.add(path.stem)
            answer = json.loads(path.read_text())
            self.counts["answered saved" if answer["saved"] else "answered failed"] += 1
            if not answer["saved"]:
                assert answer["error"]
                continue
            self.acknowledged = max(self.acknowledged, answer["step"])
            entry = present.get(answer["digest"])
            if entry is None:
                newer = [e for e in present.values() if e.step >= answer["step"] and verify(e.path).good]
                assert len(newer) >= KEPT, f"{answer} is gone, and only {newer} came after it"
            else:
                report = verify(entry.path)
                assert report.good, f"{answer} was given for {report}"
            self.counts["verified"] += entry is not None

    def _check_losses(self) -> None:
        lines = self.losses.read_text().splitlines() if self.losses.exists() else []
        for line in lines[self.looked_at :]:
            step, loss = line.split()
            assert self.expected[int(step) - 1] == loss, f"step {step} is not that of the uninterrupted run"
        self.counts["steps"] += len(lines) - self.looked_at
        self.looked_at = len(lines)
