"""The part of `docs/benchmarks.md` that is of a GPU, from a measured file; where there is none it says so."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.gpu import goals

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
NOTHING = "Nothing has been measured on a GPU with this version: `make gpu` and `make gpu-table` do it.\n"

_BLOCK = re.compile(
    r"<!-- measured on a GPU: (?P<name>.*?) -->\n(?P<text>.*?)<!-- end of what was measured on a GPU -->\n", re.DOTALL
)
_NAME = "nothing yet"
_STEPS = ("0.1", "0.5")
_SAVERS = (
    "native",
    "native, asked at once",
    "attach",
    "only copies and writes",
    "torch_checkpointing",
    "DCP async_save, pinned",
    "torch.save",
)
_TITLES = {
    "native": "holdfast, native",
    "native, asked at once": "holdfast, native, asked before its memory is made",
    "attach": "holdfast, attach",
}


def write(path: Path | None = None, page: Path = PAGE) -> None:
    """Puts a measured file's figures between the marks of the page; of the file that it names, if none is given."""
    text = page.read_text()
    if path is None:
        name = _found(text)["name"]
        path = None if name == _NAME else page.parent / name
    page.write_text(_BLOCK.sub(lambda found: _block(path, page), text))


def differs(page: Path = PAGE) -> str:
    """Returns what the page says otherwise than the file that it names; empty where they agree."""
    text = page.read_text()
    found = _found(text)
    path = None if found["name"] == _NAME else page.parent / found["name"]
    if path is not None and not path.is_file():
        return f"{page} names {path}, which is not there"
    agree = found[0] == _block(path, page)
    return "" if agree else f"{page} differs from {path}; run: python -m benchmarks.gpu page"


def tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Returns everything that was measured, line by line."""
    parts = result["parts"]
    found = {finding["name"]: finding for part in parts.values() for finding in part["findings"]}
    commits = sorted({part["commit"] for part in parts.values()})
    machine = found.get("the machine", {}).get("text", result["device"])
    yield f"{result['date']}, {machine}; {', '.join(commits)}."
    for steps in _STEPS:
        yield from _of_savers(found, steps)
    reached = goals.of(result)
    if reached:
        yield from ["", "### On a GPU, against the goals", "", "| figure | measured, goal | |", "| --- | --- | --- |"]
    for goal in reached:
        yield f"| {goal.text} | {goals.values(goal)} | {'reached' if goal.reached else '**not reached**'} |"
    yield from ["", "### On a GPU, what was tried", "", "| | | |", "| --- | --- | --- |"]
    for name, finding in found.items():
        if not name.startswith("13 "):
            verdict = {True: "pass", False: "**fail**", None: ""}[finding["passed"]]
            yield f"| {_cell(name)} | {_cell(finding['text'])} | {verdict} |"


def _of_savers(found: Mapping[str, Any], steps: str) -> Iterator[str]:
    rows = []
    for saver in _SAVERS:
        label = f"13 {saver}, steps of {steps} s"
        saves = [found[name]["figures"] for number in (1, 2) if (name := f"{label}, save {number}") in found]
        if not saves:
            continue
        cells = [" ".join(_pair(column, saves)) for column in ("lost", "worst", "durable")]
        memory = found.get(f"{label}, memory", {}).get("figures", {}).get("taken")
        cells.append("" if memory is None else f"{memory / 1e6:.0f}")
        rows.append(f"| {_TITLES.get(saver, saver)} | {' | '.join(cells)} |")
    if not rows:
        return
    yield from ["", f"### On a GPU, steps of {steps} s", ""]
    if floor := found.get(f"13 native, steps of {steps} s, the floor of this machine"):
        yield from [f"The floor: {floor['text']}.", ""]
    yield "| second save [first], s | training time lost | worst step over usual | durable | host memory, MB |"
    yield "| --- | --- | --- | --- | --- |"
    yield from rows


def _pair(column: str, saves: list[Mapping[str, float]]) -> Iterator[str]:
    yield f"{saves[-1][column]:.3g}"
    if len(saves) > 1:
        yield f"[{saves[0][column]:.3g}]"


def _block(path: Path | None, page: Path) -> str:
    if path is None:
        name, text = _NAME, NOTHING
    else:
        name, text = os.path.relpath(path, page.parent), "\n".join(tables(results.read(path))) + "\n"
    return f"<!-- measured on a GPU: {name} -->\n{text}<!-- end of what was measured on a GPU -->\n"


def _found(text: str) -> "re.Match[str]":
    found = _BLOCK.search(text)
    assert found is not None, "the page has no marks between which figures of a GPU could be"
    return found


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
