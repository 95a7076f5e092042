"""A save and a load of ours beside those of others, in turns: `python -m benchmarks --only save`."""

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import host, page, peers, plot, results, states, triggers, turns
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
    print(page.tables(result))
    path = results.write(result)
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


def run(folder: Path, plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything of a plan.

    Args:
        folder: An empty directory on the disk that is measured.
        plan: How much.
        say: Hears what is being measured.

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
    with quiet(), ballast(folder, wanted=plan.warm) as filled:
        for name, make in plan.states.items():
            state = make(plan.device)
            table = Rounds(state, new_directory(folder / name), plan, filled)
            say(f"{name}: {state.size / 1e6:.0f} MB, {plan.rounds} rounds of {len(table.turns)} savers")
            found["missing"] += [f"{name}: {line}" for line in table.missing]
            found["states"][name] = table.measure(plan.rounds)
            if "lost" not in found:
                say(f"{name}: {plan.lost_rounds} rounds of training with a save")
                found["lost"] = table.measure_lost(plan.lost_rounds)
            table.close()
            latencies = triggers.latencies(state, folder / f"{name}-doors")
            shutil.rmtree(folder / name)
            shutil.rmtree(folder / f"{name}-doors")
            del state, table
            gc.collect()
        found["latencies"] = latencies
        say("sizes")
        found["sizes"] = {
            str(size): measure_size(states.sized(size, plan.device), new_directory(folder / "sized"), plan, filled)
            for size in plan.gigabytes
        }
    say("triggers")
    found["triggers"] = triggers.costs(folder, plan.rounds)
    return {**found, "seconds": round(time.monotonic() - begun)}
