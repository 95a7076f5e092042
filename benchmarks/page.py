"""The tables of a run, as they are printed and as `docs/benchmarks.md` shows them."""

import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import first_step, goals, results
from benchmarks.goal import Goal

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_BLOCK = re.compile(r"<!-- figures of (?P<name>.*?) -->\n.*<!-- end of figures -->\n", re.DOTALL)
_NOTHING = "nothing yet"
_STATES = {"gpt2": "GPT-2 small in fp32 with AdamW", "lora": "Adapters of GPT-2 small with AdamW"}
# Column: heading, unit.
_COLUMNS = {
    "stall": ("stall, ms", 1e-3),
    "safe": ("safe, ms", 1e-3),
    "durable": ("durable, s", 1.0),
    "lost": ("training time lost, s", 1.0),
    "memory": ("extra memory, MB", 1e6),
    "disk": ("on disk, MB", 1e6),
    "cold": ("load cold, s", 1.0),
    "warm": ("load warm, s", 1.0),
}


def tables(result: Mapping[str, Any]) -> str:
    """Everything that a run found."""
    host = result["host"]
    lines = [
        f"{result['date']}, {host['cores']} cores, {host['memory in GiB']} GiB, {host['file system']}, state on"
        f" {host['device']}, Linux {host['kernel']}, Python {host['python']};"
        f" {', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
        *result.get("missing", []),
    ]
    for name, state in result["states"].items():
        lines += ["", f"### {_STATES[name]}: {state['bytes'] / 1e6:.0f} MB", ""]
        lines += _of_state(state, result["lost"]["savers"] if name == "gpt2" else {}, result["titles"])
    if "first_step" in result:
        lines += ["", "### From the start of a process to its first step", "", *_of_first_step(result["first_step"])]
    lines += ["", "### Against the goals", "", *_of_goals(goals.of(result))]
    lines += ["", "### Sizes", "", *_of_sizes(result["sizes"])]
    lines += ["", "### Finding out whether somebody asks", "", *_of_triggers(result)]
    return "\n".join(lines) + "\n"


def write(path: Path, plot: Path, page: Path = PAGE) -> None:
    """Puts a run's tables and its plot between the marks of the page.

    Args:
        path: The run's figures.
        plot: The picture of them.
        page: The page.
    """
    block = _block(path, plot, page)
    page.write_text(_BLOCK.sub(lambda found: block, page.read_text()))


def differs(page: Path = PAGE) -> str:
    """What the page says otherwise than the figures that it names; empty where they agree."""
    text = page.read_text()
    found = _BLOCK.search(text)
    if found is None:
        return f"{page} has no marks between which figures could be"
    if found["name"] == _NOTHING:
        return f"{page} shows none of {results.FOLDER}" if any(results.FOLDER.glob("*.json")) else ""
    path = page.parent / found["name"]
    if not path.is_file():
        return f"{page} names {path}, which is not there"
    plot = path.with_suffix(".png")
    if not plot.is_file():
        return f"{plot} is not there"
    return (
        "" if found[0] == _block(path, plot, page) else f"{page} differs from {path}; run: python -m benchmarks --page"
    )


def named(page: Path = PAGE) -> Path:
    """The figures that the page shows."""
    found = _BLOCK.search(page.read_text())
    assert found is not None, f"{page} has no marks between which figures could be"
    return page.parent / found["name"]


def _block(path: Path, plot: Path, page: Path) -> str:
    def link(target: Path) -> str:
        return os.path.relpath(target, page.parent)

    picture = f"![Stall, time to durable and training time lost, by saver]({link(plot)})"
    return f"<!-- figures of {link(path)} -->\n{picture}\n\n{tables(results.read(path))}<!-- end of figures -->\n"


def _of_state(state: Mapping[str, Any], lost: Mapping[str, list[float]], titles: Mapping[str, str]) -> Iterator[str]:
    columns = [name for name in _COLUMNS if name != "lost" or lost]
    yield _line(["", *(_COLUMNS[name][0] for name in columns)])
    yield _line(["---"] * (len(columns) + 1))
    for saver, found in state["savers"].items():
        values = {**found, **({"lost": lost[saver]} if saver in lost else {})}
        yield _line([titles[saver], *(_spread(values.get(name, ()), _COLUMNS[name][1]) for name in columns)])
    disk = {"durable": state["raw"], "cold": state.get("raw read", ())}
    yield _line(["raw direct write, and read", *(_spread(disk.get(name, ()), 1.0) for name in columns)])
    yield _line(["copy in memory", *(_spread(state["copy"], 1e-3) if name == "safe" else "" for name in columns)])


def _of_first_step(ways: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Iterator[str]:
    columns = {
        f"{first_step.WAYS[way]}, {cache}": found for way, caches in ways.items() for cache, found in caches.items()
    }
    yield _line(["spent on, s", *columns])
    yield _line(["---"] * (len(columns) + 1))
    # Ours has every part; who loads with torch alone lacks some.
    for part in next(iter(columns.values())):
        yield _line([part, *(_spread(found.get(part, ()), 1.0) for found in columns.values())])
    wholes = ([sum(parts) for parts in zip(*found.values(), strict=True)] for found in columns.values())
    yield _line(["in all", *(_spread(whole, 1.0) for whole in wholes)])


def _of_goals(found: Sequence[Goal]) -> Iterator[str]:
    yield _line(["figure", "goal", "measured", "", "what this machine allows"])
    yield _line(["---"] * 5)
    for goal in found:
        sign, unit = ">=" if goal.least else "<=", f" {goal.unit}" if goal.unit else ""
        reached = "reached" if goal.reached else "**not reached**"
        bound = "" if goal.bound is None else f"{goal.bound:.3g}"
        yield _line([goal.text, f"{sign} {goal.limit:g}{unit}", f"{goal.value:.3g}{unit}", reached, bound])


def _of_sizes(sizes: Mapping[str, Any]) -> Iterator[str]:
    yield _line(
        ["state, GB", "stall, ms", "safe where the update comes at once, ms", "durable, s", "raw direct write, s"]
    )
    yield _line(["---"] * 5)
    for found in sizes.values():
        cells = [("stall", 1e-3), ("safe", 1e-3), ("durable", 1.0), ("raw", 1.0)]
        yield _line([f"{found['bytes'] / 1e9:.2g}", *(_spread(found[name], unit) for name, unit in cells)])


def _of_triggers(result: Mapping[str, Any]) -> Iterator[str]:
    yield _line(["what a step costs", "µs"])
    yield _line(["---"] * 2)
    for text, values in result["triggers"].items():
        yield _line([text, _spread(values, 1e-6)])
    yield ""
    yield _line(["from asking to durable, adapters", "ms"])
    yield _line(["---"] * 2)
    for text, values in result["latencies"].items():
        yield _line([text, _spread(values, 1e-3)])


def _spread(values: Sequence[float], unit: float) -> str:
    if not values:
        return ""
    figures: tuple[Callable[[Sequence[float]], float], ...] = (statistics.median, min, max)
    middle, low, high = (_digits(figure(values) / unit) for figure in figures)
    return f"{middle} ({low} to {high})" if low != high else middle


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
