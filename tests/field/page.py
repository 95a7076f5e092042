"""The matrix of docs/trainers.md, from the tests that ran; rows of an earlier run stay where they did not run now.

Some trainers need an environment of their own, so that no run has all of them.
"""

from pathlib import Path

import pytest

from field.rows import REFUSED, ROWS
from field.story import PROOFS

BEGIN, END = "<!-- matrix: written by make test-trainers -->", "<!-- end of the matrix -->"
_HEAD = f"| trainer | {' | '.join(PROOFS)} | |\n|---|{':-:|' * len(PROOFS)}---|\n"


class Matrix:
    """Gathers what the rows' tests report, also those of other workers, and writes the page."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._rows: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes in the test of one row when it is over."""
        properties = {name: str(value) for name, value in report.user_properties}
        name = properties.get("trainer")
        if report.when != "call" or name is None or report.skipped:
            return
        proved = properties["proved"].split(", ")
        cells = ["yes" if proof in proved else "**no**" for proof in PROOFS]
        verdict = f"works, with this line: “{properties['line']}”" if properties.get("line") else "works"
        verdict = f"{verdict if report.passed else '**fails**'} ({properties['versions']})"
        self._rows[name] = f"| {name} | {' | '.join(cells)} | {verdict} |\n"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the matrix, and writes it into the page."""
        text = self._page.read_text()
        before, _, rest = text.partition(BEGIN)
        earlier, _, after = rest.partition(END)
        matrix = self._matrix(_rows_of(earlier))
        terminalreporter.section("trainers")
        terminalreporter.write(matrix)
        self._page.write_text(f"{before}{BEGIN}\n{matrix}{END}{after}")

    def _matrix(self, earlier: dict[str, str]) -> str:
        rows = {**earlier, **self._rows}
        refused = [
            f"| {each.name} |{' |' * len(PROOFS)} refused: “... and {each.words[0]}”, “... {each.words[1]} ...” |\n"
            for each in REFUSED
        ]
        return "".join([_HEAD, *(rows[row.name] for row in ROWS if row.name in rows), *refused])


def _rows_of(matrix: str) -> dict[str, str]:
    lines = [f"{line}\n" for line in matrix.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in lines}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trainers-page", metavar="PATH", help="print the matrix of trainers, and write it into this page"
    )


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--trainers-page")
    if page and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Matrix(Path(page)), "trainers-matrix")
