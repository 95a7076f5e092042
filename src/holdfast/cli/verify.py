"""`holdfast verify RUN|CHECKPOINT|URL`: read every byte and compare."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from holdfast.arguments import is_address
from holdfast.cli.naming import is_checkpoint
from holdfast.cli.output import as_json, tell
from holdfast.cli.there import Endpoint, Moving, Region, local_path
from holdfast.errors import DamagedCheckpointError, RunNotFoundError
from holdfast.layouts.contents import own_json, problem_in_json, problems_of_json
from holdfast.layouts.layout import BY_NAME
from holdfast.mirror.run_there import RunThere, look, split
from holdfast.remote.catalog import RemoteEntry
from holdfast.remote.checking import problems_of
from holdfast.remote.object_store import read
from holdfast.store import catalog
from holdfast.store.folder import opened
from holdfast.store.manifest import in_short
from holdfast.store.verify import Report
from holdfast.store.verify import verify as check
from holdfast.text import shown


def verify(
    path: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|URL", help="A run directory, a mirror, or one checkpoint of it.")
    ],
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that checkpoints are what was written. Exit code 3 when one is not."""
    if is_address(path):
        place, name = split(path)
        there = look(place, endpoint, region)
        listed = there.checkpoints if name is None else [there.named(name)]
        if not listed:
            raise RunNotFoundError(f"there is no checkpoint in {there.store.url} yet", hint="give one that has some")
        reports = [_say(_checked_there(there, each, quiet=json), quiet=json) for each in listed]
        base = f"{there.store.url}/"
    else:
        reports = [_say(_checked(each), quiet=json) for each in _paths(local_path(path, endpoint, region))]
        base = ""
    if json:
        as_json({"checkpoints": [_described(report, base) for report in reports]})
    damaged = [report.entry.path.name for report in reports if _problems(report) and not report.entry.foreign]
    if damaged and json:
        raise typer.Exit(DamagedCheckpointError.exit_code)
    if damaged:
        raise DamagedCheckpointError(
            f"{len(damaged)} of {len(reports)} checkpoints cannot be trusted: {', '.join(damaged)}",
            hint="resume_from_checkpoint: auto skips them",
        )


def _paths(path: Path) -> list[Path]:
    """Returns the checkpoints that a path means.

    Raises:
        RunNotFoundError: There is none.
    """
    if not path.is_dir():
        raise RunNotFoundError(
            f"there is no directory {shown(str(path))}", hint="give an output_dir, or a checkpoint in one"
        )
    path = path.resolve()  # a link to a checkpoint, or `.` in one, has not its name
    paths = [path] if is_checkpoint(path) else [entry.path for entry in catalog.entries(path)]
    if not paths:
        raise RunNotFoundError(f"there is no checkpoint in {path}", hint=f"see what there is: ls -a {path}")
    return paths


def _checked_there(there: RunThere, checkpoint: RemoteEntry, *, quiet: bool) -> Report:
    """Fetches all of a checkpoint of a mirror, and compares it."""
    entry = checkpoint.entry
    if (manifest := entry.manifest) is None:
        return Report(entry, (entry.problem or "it has no manifest",), (), ())
    moving = Moving(entry.path.name, manifest.size, quiet=quiet)
    problems = problems_of(there.store, there.listed(checkpoint.key), manifest, moving)
    if not problems:
        for file in own_json(manifest):
            data = read(there.store, checkpoint.key.of(file.path), file.size)  # which was the right one just now
            problems += filter(None, [problem_in_json(file, data)])
    return Report(entry, tuple(problems), (), ())


def _checked(path: Path) -> Report:
    """Reads all of a checkpoint, and of what is good its JSON as a resume does."""
    try:
        with opened(path) as folder:
            report = check(folder)
            manifest = report.entry.manifest
            if manifest is None or not report.good:
                return report
            return replace(report, problems=tuple(problems_of_json(folder, manifest)))
    except OSError:
        return check(path)


def _problems(report: Report) -> list[str]:
    """Returns the problems of a checkpoint: of its files, and of others that would be read in their place."""
    return [*report.problems, *_refused(report).values()]


def _notices(report: Report) -> list[str]:
    refused = _refused(report)
    notices = [notice for name, notice in zip(report.unlisted, report.notices, strict=True) if name not in refused]
    if (manifest := report.entry.manifest) is not None and manifest.not_finite:
        notices.append(f"it holds NaN or infinity in {shown(in_short(manifest.not_finite))}, as training had it")
    return notices


def _refused(report: Report) -> dict[str, str]:
    """Returns the unlisted files that bar a resume, each with a line that says why."""
    manifest = report.entry.manifest
    layout = None if manifest is None else BY_NAME.get(manifest.layout)
    return {} if layout is None else layout.why_refused(report.unlisted)


def _say(report: Report, *, quiet: bool) -> Report:
    if not quiet:
        problems = _problems(report)
        verdict = "no manifest" if report.entry.foreign else "DAMAGED" if problems else "good"
        tell(f"{report.entry.path.name}: {verdict}")
        for line in (*problems, *_notices(report)):
            tell(f"  {shown(line)}")
    return report


def _described(report: Report, base: str) -> dict[str, object]:
    return {
        "path": f"{base}{report.entry.path}",
        "step": report.entry.step,
        "good": not _problems(report),
        "problems": _problems(report),
        "notices": _notices(report),
    }
