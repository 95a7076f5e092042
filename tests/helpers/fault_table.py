"""Counts what the tests of faults have injected, prints the table, and writes docs/faults.md from it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.rows import ROWS, outcome_of, proofs, rows_of

_INTRODUCTION = """\
# Faults

What can go wrong, how the tests make it go wrong, and what holds then. `make test-faults` runs all of it and writes
this page; as root, with strace, faketime and xfsprogs, nothing is skipped but what the machine lacks, and that says so.
*Injected* is how often the fault came about in the run that wrote the page, *survived* how often what is said held.
A row without a test states a limit.

"""


@dataclass
class Tally:
    """What came of one test, in all its cases."""

    how: str
    survived: int = 0
    lost: int = 0
    skipped: set[str] = field(default_factory=set)


class FaultTable:
    """Gathers the reports of the tests that carry a row's number, also those of other workers."""

    def __init__(self, page: str | None) -> None:
        self.page = page
        self.tallies: dict[str, Tally] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a case when it was called, or when it ended before that."""
        properties = dict(report.user_properties)
        how = properties.get("how")
        if how is None or (report.when != "call" and report.passed):
            return
        name = report.nodeid.split("::")[-1].partition("[")[0]
        tally = self.tallies.setdefault(name, Tally(str(how)))
        injected = int(str(properties.get("injected", 1)))
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            tally.skipped.add(str(reason).removeprefix("Skipped: ").removeprefix("SKIPPED, NOT PASSED: "))
        elif report.passed:
            tally.survived += injected
        else:
            tally.lost += injected

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints one line a row, and writes the page."""
        if self.page is None:
            return
        terminalreporter.section("faults")
        for line in self.lines():
            terminalreporter.write_line(line)
        Path(self.page).write_text(self.text())

    def by_row(self) -> dict[str, list[tuple[str, Tally]]]:
        """The tests of each row, in the order of their names."""
        found: dict[str, list[tuple[str, Tally]]] = defaultdict(list)
        for name, tally in sorted(self.tallies.items()):
            for row in rows_of(name):
                found[row].append((name, tally))
        return found

    def lines(self) -> Iterable[str]:
        """The table as it is printed: fault, injected how often, survived, lost, and what was not run."""
        yield f"{'':4}{'fault':74}{'injected':>9}{'survived':>9}{'lost':>6}"
        tests = self.by_row()
        for number, row in ROWS.items():
            survived = sum(tally.survived for _, tally in tests[number])
            lost = sum(tally.lost for _, tally in tests[number])
            what = row.what if len(row.what) < 73 else f"{row.what[:70]}..."
            yield f"{number:4}{what:74}{survived + lost:9}{survived:9}{lost:6}"
            for reason in sorted({reason for _, tally in tests[number] for reason in tally.skipped}):
                yield f"    not run: {reason}"
            if not tests[number]:
                yield f"    {row.limit or 'no test of it was among these'}"
        yield f"{'':4}{'in all':74}{self.injected:9}{self.injected - self.lost:9}{self.lost:6}"

    @property
    def injected(self) -> int:
        """How many faults were injected, one that proves several rows counted once."""
        return sum(tally.survived + tally.lost for tally in self.tallies.values())

    @property
    def lost(self) -> int:
        """How many times what should have held did not."""
        return sum(tally.lost for tally in self.tallies.values())

    def text(self) -> str:
        """The page."""
        head = "| | {} | how it is injected | what holds then | injected | survived |\n|---|---|---|---|---|---|\n"
        for proof in proofs():
            self.tallies.setdefault(proof.name, Tally(proof.how, skipped={"not among those of this run"}))
        tests = self.by_row()
        parts = [_INTRODUCTION]
        for title, word, first in (("Failures", "fault", ""), ("Threats", "threat", "S")):
            parts += [f"## {title}\n\n", head.format(word)]
            for number in ROWS:
                if number.startswith("S") == bool(first):
                    parts += self._rows_of_page(number, tests[number])
            parts.append("\n")
        parts.append(f"In all {self.injected:,} faults were injected, and {self.lost} not survived.\n")
        return "".join(parts)

    def _rows_of_page(self, number: str, tests: list[tuple[str, Tally]]) -> Iterable[str]:
        row = ROWS[number]
        shown = f"| {number} | {row.what} |"
        for name, tally in tests:
            injected = tally.survived + tally.lost
            part = " in part" if injected else ""
            reasons = f" (not run{part}: {'; '.join(sorted(tally.skipped))})" if tally.skipped else ""
            yield f"{shown} {tally.how.rstrip('.')}{reasons} | {outcome_of(name)} | {injected} | {tally.survived} |\n"
            shown = "| | |"
        if row.limit:
            yield f"{shown} *Limit:* {row.limit} | | | |\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", metavar="PATH", help="print the table of faults, and write it to this page")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(config.getoption("--faults-page")), "fault-table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker's reports carry properties to where the table is made, and docstrings do not."""
    for item in items:
        if isinstance(item, pytest.Function) and rows_of(item.originalname):
            item.user_properties.append(("how", (item.function.__doc__ or "").strip().partition("\n")[0]))
