"""What a save on a GPU is to reach, as ratios to the floors and the peers of the same machine, and whether it does."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.goal import Goal

Found = Mapping[str, Mapping[str, Any]]

_SHORT, _LONG = "steps of 0.1 s", "steps of 0.5 s"


def of(result: Mapping[str, Any]) -> list[Goal]:
    """Returns the goals that a result can tell of: those whose parts were run."""
    found = {
        finding["name"]: finding.get("figures", {}) for part in result["parts"].values() for finding in part["findings"]
    }
    return [*_of_short_steps(found), *_of_long_steps(found), *_of_memory(found), *_of_restoring(found)]


def values(goal: Goal) -> str:
    """Returns a goal's figure beside its limit, as it is printed."""
    sign, unit = ">=" if goal.least else "<=", f" {goal.unit}" if goal.unit else ""
    bound = "" if goal.bound is None else f", this machine allows {goal.bound:.3g}{unit}"
    return f"{goal.value:.3g}{unit} ({sign} {goal.limit:.3g}{unit}{bound})"


def _saves(found: Found, saver: str, steps: str) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    first, second = (found.get(f"13 {saver}, {steps}, save {number}") for number in (1, 2))
    return (first, second) if first and second else None


def _of_short_steps(found: Found) -> Iterator[Goal]:
    ours = _saves(found, "native", _SHORT)
    if ours is None:
        return
    first, save = ours
    floor = found[f"13 native, {_SHORT}, the floor of this machine"]
    allowed = floor["floor"]
    yield Goal("worst step over usual", save["worst"], allowed + 0.03, "s", bound=allowed)
    if others := _saves(found, "only copies and writes", _SHORT):
        yield Goal("training time lost", save["lost"], others[1]["lost"] + 0.1, "s", bound=others[1]["lost"])
    if others := _saves(found, "torch_checkpointing", _SHORT):
        yield Goal("training time lost / torch_checkpointing", save["lost"] / others[1]["lost"], 0.5)
        yield Goal("worst step over usual / torch_checkpointing", save["worst"] / others[1]["worst"], 0.85)
    for column in ("lost", "durable"):
        yield Goal(f"the first save / the second, {column}", first[column] / save[column], 1.2)
    yield Goal("time to durable / raw direct write", save["durable"] / floor["durable"], 1.1, bound=1.0)


def _of_long_steps(found: Found) -> Iterator[Goal]:
    ours = _saves(found, "native", _LONG)
    if ours is not None:
        yield Goal("steps of 0.5 s: worst step over usual", ours[1]["worst"], 0.01, "s", bound=0.0)
        yield Goal("steps of 0.5 s: steps during the write / usual", ours[1]["longer"], 1.05, bound=1.0)


def _of_memory(found: Found) -> Iterator[Goal]:
    made = found.get(f"13 native, {_SHORT}, the arena is made")
    if made and made["seconds"] is not None:
        yield Goal("making the arena: longest step over usual", made["over"], 0.01, "s")
        yield Goal("making the arena", made["seconds"], 20, "s")


def _of_restoring(found: Found) -> Iterator[Goal]:
    for size in ("12", "2"):
        if restored := found.get(f"12 a resume of {size} GB, time"):
            yield Goal(f"a resume of {size} GB / raw read", restored["ratio"], 1.15, bound=1.0)
            memory = found[f"12 a resume of {size} GB, memory"]["host_memory"]
            yield Goal(f"a resume of {size} GB: host memory", memory / 1e6, 300, "MB")
