"""A run's figures as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OURS, _OTHERS = "#1b7f5c", "#9aa5b1"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draws stall, time to durable and training time lost by saver, and what sizes cost.

    Args:
        result: The figures.
        path: The PNG to be.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    savers, titles = result["states"]["gpt2"]["savers"], result["titles"]
    size = result["states"]["gpt2"]["bytes"] / 1e9
    for axis, heading, column in (
        (axes[0, 0], "stall, ms", "stall"),
        (axes[0, 1], f"until {size:.2g} GB are durable, s", "durable"),
    ):
        unit = 1e-3 if column == "stall" else 1.0
        _bars(axis, heading, {titles[name]: [v / unit for v in found[column]] for name, found in savers.items()})
    axes[0, 0].set_xscale("log")
    lost = {titles[name]: values for name, values in result["lost"]["savers"].items()}
    _bars(axes[1, 0], "training time lost for one save, s", lost)
    _sizes(axes[1, 1], result["sizes"])
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _bars(axis: Any, heading: str, values: Mapping[str, Sequence[float]]) -> None:
    titles = list(values)[::-1]
    middles = [statistics.median(values[title]) for title in titles]
    spread = [
        [middle - min(values[title]) for title, middle in zip(titles, middles, strict=True)],
        [max(values[title]) - middle for title, middle in zip(titles, middles, strict=True)],
    ]
    colours = [_OURS if title.startswith("holdfast") else _OTHERS for title in titles]
    axis.barh(titles, middles, xerr=spread, color=colours, error_kw={"elinewidth": 1})
    axis.set_title(heading)


def _sizes(axis: Any, sizes: Mapping[str, Any]) -> None:
    across = [found["bytes"] / 1e9 for found in sizes.values()]
    for column, title, colour in (("durable", "holdfast, native", _OURS), ("raw", "raw direct write", _OTHERS)):
        middles = [statistics.median(found[column]) for found in sizes.values()]
        axis.plot(across, middles, marker="o", color=colour, label=title)
    axis.set_title("until a state of so many GB is durable, s")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend()
