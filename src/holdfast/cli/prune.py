"""`holdfast prune RUN`: delete checkpoints by a rule."""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.naming import asked_by, require_run
from holdfast.cli.output import as_json, columns, size, tell
from holdfast.cli.there import Endpoint, Region, require_no_address_options
from holdfast.errors import ConfigError, HoldfastError, MirrorError, RunNotFoundError
from holdfast.mirror.pruning import MirrorPruning
from holdfast.run.directory import RunDirectory
from holdfast.run.journal import Journal
from holdfast.run.needed import identity_of, needed
from holdfast.store import catalog, retention
from holdfast.store.catalog import Entry
from holdfast.store.folder import Folder, exists
from holdfast.store.retention import RetentionPolicy, StillWantedError, Verdict, labels_of


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output_dir of a training.")],
    keep_last: Annotated[int, typer.Option(metavar="N", min=1, help="Keep the newest N, whoever asked for them.")],
    keep_every: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Keep those too whose step is a multiple of K.")
    ] = None,
    labelled: Annotated[bool, typer.Option("--labelled", help="Delete those that have a label, too.")] = False,
    mirror: Annotated[bool, typer.Option("--mirror", help="Delete from the mirror too, by the same rule.")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; with --yes or --dry-run.")] = False,
) -> None:
    """Delete a run's older checkpoints. What is labelled, pinned, needed, damaged or of another run stays."""
    require_run(run)
    if not mirror:
        require_no_address_options(endpoint, region)
    if not (dry_run or yes) and (json or not sys.stdin.isatty()):
        raise ConfigError(["prune asks before it deletes, and nobody is here to answer: add --yes, or --dry-run"])
    policy = RetentionPolicy(0, 0, every=keep_every, last=keep_last, labelled=not labelled)
    there = MirrorPruning(RunDirectory.open(run), policy, endpoint, region) if mirror else None
    verdicts = _judge(*_opened(run), policy)
    verdicts_there = [] if there is None else [verdict for _, verdict in there.judge()]
    going, going_there = _going(verdicts), _going(verdicts_there)
    if not json:
        _show(str(run), verdicts, going)
    if not json and there is not None:
        tell(f"\nin the mirror, {there.there.store.url}:")
        _show(there.there.store.url, verdicts_there, going_there)
    deleted: list[str] = []
    deleted_there: list[str] = []
    problems: list[str] = []
    if (going or going_there) and not dry_run:
        if not yes and not _agreed():
            raise HoldfastError("nothing was deleted")
        deleted, problems = _delete(run, policy, {_attempt(entry) for entry in going})
        if there is not None:
            problems += _delete_there(there, {_attempt(entry) for entry in going_there}, deleted_there)
    if json:
        in_mirror = {} if there is None else {"mirror": [_described(each, deleted_there) for each in verdicts_there]}
        described = [_described(verdict, deleted) for verdict in verdicts]
        as_json({"run": str(run), "dry_run": dry_run, "checkpoints": described, **in_mirror, "problems": problems})
    elif not dry_run:
        if going:
            tell(f"deleted {len(deleted)} of {len(going)}")
        if going_there:
            tell(f"deleted {len(deleted_there)} of {len(going_there)} in the mirror")
    if problems and json:
        raise typer.Exit(HoldfastError.exit_code)
    if problems:
        raise HoldfastError("; ".join(problems), hint="the others are deleted; to go on, do the same again")


def _going(verdicts: list[Verdict]) -> list[Entry]:
    return [verdict.entry for verdict in verdicts if verdict.kept is None]


def _delete_there(there: MirrorPruning, agreed: set[str], deleted: list[str]) -> list[str]:
    """Deletes from the mirror, and notes the attempts in `deleted`. Returns the problem, to be said with the others."""
    try:
        deleted.extend(there.delete(agreed))
    except MirrorError as error:
        return [f"the mirror: {error}"]
    return []


def _judge(root: Folder, directory: RunDirectory | None, policy: RetentionPolicy) -> list[Verdict]:
    """Returns a verdict on each checkpoint as of now; a run that is alive saves and deletes all the time."""
    entries = catalog.entries(root)
    why = needed(directory, entries)
    control = None if directory is None else directory.control
    verdicts = retention.judge(root, control, entries, identity_of(directory, entries), policy, protected=why)
    return [replace(v, kept=why[v.entry.path]) if v.kept == retention.NEEDED else v for v in verdicts]


def _delete(run: Path, policy: RetentionPolicy, agreed: set[str]) -> tuple[list[str], list[str]]:
    """Deletes what was agreed to and still may go, by whatever name it has by now. Returns attempts, and problems."""
    root, directory = _opened(run)
    control = None if directory is None else directory.control
    deleted, problems = [], []
    for verdict in reversed(_judge(root, directory, policy)):
        entry = verdict.entry
        if verdict.kept is not None or _attempt(entry) not in agreed:
            continue
        try:
            retention.delete(root, control, entry.path, _attempt(entry))
        except (FileNotFoundError, StillWantedError):
            continue  # the run itself has deleted it, somebody has pinned it, or its name is another's
        except OSError as error:
            problems.append(f"{entry.path.name} was not deleted: {error.strerror or error}")
            continue
        deleted.append(_attempt(entry))
        if directory is not None and exists(directory.journal) and entry.manifest is not None:
            Journal(directory.journal, entry.manifest.run).write("deleted", path=str(entry.path), by="holdfast prune")
    return deleted, problems


def _opened(run: Path) -> tuple[Folder, RunDirectory | None]:
    """Opens a directory of checkpoints once, and the run in it, where it was trained there."""
    try:
        directory = RunDirectory.open(run)
    except RunNotFoundError:
        return Folder.open(run, follow=True), None
    return directory.folder, directory


def _agreed() -> bool:
    # Python may look for a Ctrl+C just before it begins to wait for the answer, and then not until the answer: the
    # system's own handling has no such gap, and nothing is open here that would have to be closed.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("Delete them? [y/N] ", end="", flush=True)
    answer = sys.stdin.readline()
    signal.signal(signal.SIGINT, before)
    return answer.strip().lower() in ("y", "yes")


def _show(run: str, verdicts: list[Verdict], going: list[Entry]) -> None:
    if not verdicts:
        tell(f"no checkpoint in {run} yet")
        return
    columns(("CHECKPOINT", "STEP", "SIZE", "ASKED BY", "LABEL", "VERDICT"), [_row(verdict) for verdict in verdicts])
    freed = size(sum(entry.manifest.size for entry in going if entry.manifest is not None))
    tell(f"{len(going)} of {len(verdicts)} go, {freed}" if going else "nothing to delete")


def _row(verdict: Verdict) -> tuple[str, ...]:
    entry = verdict.entry
    measured = size(entry.manifest.size) if entry.manifest is not None else "-"
    decided = "goes" if verdict.kept is None else f"stays: {verdict.kept}"
    return (entry.path.name, str(entry.step), measured, asked_by(entry), ", ".join(labels_of(entry)), decided)


def _described(verdict: Verdict, deleted: list[str]) -> dict[str, Any]:
    entry = verdict.entry
    return {
        "path": str(entry.path),
        "step": entry.step,
        "bytes": entry.manifest.size if entry.manifest is not None else None,
        "asked_by": asked_by(entry),
        "labels": labels_of(entry),
        "kept": verdict.kept,
        "deleted": entry.manifest is not None and entry.manifest.attempt in deleted,
    }


def _attempt(entry: Entry) -> str:
    assert entry.manifest is not None, "nothing goes without a manifest"
    return entry.manifest.attempt
