"""`holdfast list RUN|URL`: the checkpoints of a run, newest commit first."""

from typing import Annotated, Any

import typer

from holdfast.arguments import is_address
from holdfast.cli.naming import asked_by, pinned_in, require_run
from holdfast.cli.output import as_json, columns, size, tell
from holdfast.cli.there import Endpoint, Region, local_path
from holdfast.mirror.run_there import look
from holdfast.store import catalog
from holdfast.store.catalog import Entry
from holdfast.store.retention import labels_of, slots_held

_HEAD = ("CHECKPOINT", "STEP", "COMMIT", "WRITTEN (UTC)", "SIZE", "PINNED", "SLOT", "ASKED BY", "LABEL")


def list_checkpoints(
    run: Annotated[str, typer.Argument(metavar="RUN|URL", help="The output_dir of a training, or its mirror.")],
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a run's checkpoints: step, when, size, who asked. Reads manifests alone; `verify` reads every byte."""
    pinned: frozenset[str] | None
    if is_address(run):
        there = look(run, endpoint, region)
        run, entries, pinned = there.store.url, there.entries, there.listing.pins
    else:
        require_run(root := local_path(run, endpoint, region))
        entries, pinned = catalog.entries(root), pinned_in(root)
    slots = slots_held(entries)
    if json:
        described = [_described(entry, run, pinned, slots.get(entry.path, [])) for entry in entries]
        as_json({"run": run, "checkpoints": described})
    elif not entries:
        tell(f"no checkpoint in {run} yet")
    else:
        columns(_HEAD, [_row(entry, pinned, slots.get(entry.path, [])) for entry in entries])


def _described(entry: Entry, run: str, pinned: frozenset[str] | None, slots: list[str]) -> dict[str, Any]:
    path = f"{run}/{entry.path}" if is_address(run) else str(entry.path)
    described: dict[str, Any] = {"path": path, "step": entry.step, "problem": entry.problem}
    if (manifest := entry.manifest) is not None:
        described |= {
            "sequence": manifest.sequence,
            "term": entry.term,
            "run": manifest.run,
            "attempt": manifest.attempt,
            "parent": manifest.parent,
            "created": manifest.created,
            "bytes": manifest.size,
            "pinned": None if pinned is None else manifest.attempt in pinned,
            "slots": slots,
            "reasons": list(manifest.reasons),
            "not_finite": list(manifest.not_finite),
        }
    return described


def _row(entry: Entry, pinned: frozenset[str] | None, slots: list[str]) -> tuple[str, ...]:
    if (manifest := entry.manifest) is None:
        problem = "made by plain transformers" if entry.foreign else entry.problem or ""
        return (entry.path.name, str(entry.step), "-", "-", "-", "-", "-", problem, "")
    asked, labels = asked_by(entry), ", ".join(labels_of(entry))
    written = manifest.created.removesuffix("+00:00").replace("T", " ")
    if manifest.not_finite:
        labels = f"NaN or infinity inside{'; ' if labels else ''}{labels}"
    pin = "?" if pinned is None else "yes" if manifest.attempt in pinned else "-"
    number = f"{manifest.sequence} (term {entry.term})" if entry.term else str(manifest.sequence)
    facts = (entry.path.name, str(entry.step), number, written, size(manifest.size))
    return (*facts, pin, ", ".join(slots) or "-", asked, labels)
