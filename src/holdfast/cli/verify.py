"""`holdfast verify RUN|CHECKPOINT`: read every byte and compare."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import as_json
from holdfast.errors import DamagedCheckpointError, RunNotFoundError
from holdfast.store import catalog, names
from holdfast.store.verify import Report
from holdfast.store.verify import verify as check


def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run directory, or one checkpoint.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that checkpoints are what was written. Exit code 3 when one is not."""
    if not path.is_dir():
        raise RunNotFoundError(f"there is no directory {path}", hint="give an output_dir, or a checkpoint in one")
    one = names.step_of(path.resolve().name) is not None or (path / names.MANIFEST).exists()
    paths = [path] if one else [entry.path for entry in catalog.entries(path)]
    if not paths:
        raise RunNotFoundError(f"there is no checkpoint in {path}", hint=f"see what there is: ls -a {path}")
    reports = [_say(check(each), quiet=json) for each in paths]
    if json:
        as_json({"checkpoints": [_described(report) for report in reports]})
    damaged = [report.entry.path.name for report in reports if not _acceptable(report)]
    if damaged and json:
        raise typer.Exit(DamagedCheckpointError.exit_code)
    if damaged:
        raise DamagedCheckpointError(
            f"{len(damaged)} of {len(reports)} checkpoints cannot be trusted: {', '.join(damaged)}",
            hint="resume_from_checkpoint: auto skips them",
        )


def _acceptable(report: Report) -> bool:
    return report.good or report.entry.foreign


def _say(report: Report, *, quiet: bool) -> Report:
    if not quiet:
        verdict = "good" if report.good else "no manifest" if report.entry.foreign else "DAMAGED"
        print(f"{report.entry.path.name}: {verdict}")
        for line in (*report.problems, *report.notices):
            print(f"  {line}")
    return report


def _described(report: Report) -> dict[str, object]:
    return {
        "path": str(report.entry.path),
        "step": report.entry.step,
        "good": report.good,
        "problems": list(report.problems),
        "notices": list(report.notices),
    }
