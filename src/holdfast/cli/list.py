"""`holdfast list RUN`: the checkpoints of a run, newest commit first."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.naming import asked_by, pinned_in, require_run
from holdfast.cli.output import as_json, columns, size, tell
from holdfast.store import catalog
from holdfast.store.catalog import Entry
from holdfast.store.retention import labels_of, slots_held

_HEAD = ("CHECKPOINT", "STEP", "COMMIT", "WRITTEN (UTC)", "SIZE", "PINNED", "SLOT", "ASKED BY", "LABEL")


def list_checkpoints(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output_dir of a training.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a run's checkpoints: step, when, size, who asked. Reads manifests alone; `verify` reads every byte."""
    require_run(run)
    entries = catalog.entries(run)
    pinned, slots = pinned_in(run), slots_held(entries)
    if json:
        described = [_described(entry, pinned, slots.get(entry.path, [])) for entry in entries]
        as_json({"run": str(run), "checkpoints": described})
    elif not entries:
        tell(f"no checkpoint in {run} yet")
    else:
        columns(_HEAD, [_row(entry, pinned, slots.get(entry.path, [])) for entry in entries])


def _described(entry: Entry, pinned: frozenset[str] | None, slots: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {"path": str(entry.path), "step": entry.step, "problem": entry.problem}
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
