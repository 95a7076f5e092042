"""A save and a load of ours beside those of others, in turns: `python -m benchmarks --only save`."""

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import first_step, host, page, peers, plot, results, states, triggers, turns
from benchmarks.memory import ballast
from benchmarks.ours import Native
from benchmarks.plan import Plan
from benchmarks.quiet import quiet
from benchmarks.rounds import Rounds, measure_size, new_directory


def report(folder: Path, plan: Plan, missing: Sequence[str]) -> None:
    """Measures, prints the tables, and keeps them: with a plot, and on the page if nobody is missing.

    Args:
        folder: An empty directory on the disk that is measured.
        plan: How much.
        missing: A line for each peer that is not there.
    """
    result = run(folder, plan)
    result["missing"] = missing = [*missing, *result["missing"]]
    path = results.write(result)
    results.UNFINISHED.unlink()
    print(page.tables(result))
    print(f"written: {path}")
    try:
        picture = path.with_suffix(".png")
        plot.draw(result, picture)
    except ImportError:
        print("no plot, and docs/benchmarks.md stays as it is: matplotlib is not installed (pip install -e '.[bench]')")
        return
    if set(plan.peers) == set(peers.found(peers.NAMES)[0]) and not missing:
        page.write(path, picture)
        print(f"written: {page.PAGE}")


def run(
    folder: Path, plan: Plan, say: Callable[[str], None] = print, unfinished: Path = results.UNFINISHED
) -> dict[str, Any]:
    """Measures everything of a plan.

    Args:
        folder: An empty directory on the disk that is measured.
        plan: How much.
        say: Hears what is being measured.
        unfinished: The file that has, at any time, what was measured until then.

    Returns:
        What `page` and `goals` read, and what goes into the results' file.
    """
    begun = time.monotonic()
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "host": host.describe(folder, plan.device),
        "versions": host.versions([Native.package, *(peer.package for peer in plan.peers.values())]),
        "titles": turns.OURS | {name: peer.title for name, peer in plan.peers.items()},
        "missing": [],
        "states": {},
    }
    results.put(found, unfinished)
    try:
        for _ in _measure(found, folder, plan, lambda text: say(f"[{time.monotonic() - begun:4.0f} s] {text}")):
            results.put(found, unfinished)
    except BaseException:
        say(f"not finished; what was measured until then: {unfinished}")
        raise
    return {**found, "seconds": round(time.monotonic() - begun)}


def _measure(found: dict[str, Any], folder: Path, plan: Plan, say: Callable[[str], None]) -> Iterator[None]:
    """Puts what it measures into `found`, and yields whenever something is there."""
    with quiet(), ballast(folder, wanted=plan.warm) as filled:
        for number, (name, make) in enumerate(plan.states.items()):
            state = make(plan.device)
            table = Rounds(state, new_directory(folder / name), plan, filled)
            say(f"{name}: {state.size / 1e6:.0f} MB, {plan.rounds} rounds of {len(table.turns)} savers")
            found["missing"] += [f"{name}: {line}" for line in table.missing]
            found["states"][name] = table.measure(plan.rounds)
            yield
            if number == 0:
                say(f"{name}: {plan.lost_rounds} rounds of training with a save")
                found["lost"] = table.measure_lost(plan.lost_rounds)
                yield
            table.close()
            if number == 0:
                say(f"{name}: new processes, until their first step")
                found["first_step"] = first_step.measure(state, new_directory(folder / "new"), plan.rounds, filled)
            else:
                say(f"{name}: from asking to durable")
                found["latencies"] = triggers.latencies(state, folder / "doors")
                shutil.rmtree(folder / "doors")
            yield
            shutil.rmtree(folder / name)
            del state, table
            gc.collect()
        found["sizes"] = {}
        for size in plan.gigabytes:
            say(f"{size} GB, ours alone")
            state = states.sized(size, plan.device)
            found["sizes"][str(size)] = measure_size(state, new_directory(folder / "sized"), plan, filled)
            yield
    say("what a step costs while nobody asks")
    found["triggers"] = triggers.costs(folder, plan.rounds)
    yield
