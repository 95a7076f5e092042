"""`holdfast push RUN`: send what is on this disk only to the run's mirror."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.naming import require_run
from holdfast.cli.output import as_json, size, tell
from holdfast.cli.there import Endpoint, Moving, Region, moving_again
from holdfast.errors import ConfigError, DamagedCheckpointError, RunNotFoundError
from holdfast.mirror.address import Address, address_of
from holdfast.mirror.pushing import Push, Pushed, to_send
from holdfast.remote.apart import require_apart
from holdfast.remote.location import location_of
from holdfast.remote.opening import open_store, require_usable
from holdfast.run import asking
from holdfast.run.directory import RunDirectory
from holdfast.run.journal import Journal
from holdfast.run.needed import identity_of
from holdfast.store import catalog
from holdfast.store.folder import exists


@moving_again()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output_dir of a training.")],
    to: Annotated[str | None, typer.Option(metavar="URL", help="The mirror, where the run has had none here.")] = None,
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send the newest checkpoint to the mirror, and those that somebody asked for, unless they are there."""
    require_run(run)
    directory = RunDirectory.open(run)
    identity = identity_of(directory, catalog.entries(directory.folder))
    place = _place(directory, identity, to, endpoint, region)
    entries = to_send(directory, identity)
    if not entries:
        raise RunNotFoundError(f"there is no good checkpoint in {run}", hint=f"see what there is: holdfast list {run}")
    require_apart(location_of(place.url), run)
    store = open_store(*place)
    require_usable(store)
    pushing = Push(store, directory, identity)
    results = []
    for entry in entries:
        assert entry.manifest is not None
        if not json and not pushing.is_there(entry):
            tell(f"{entry.path.name}: sending {size(entry.manifest.size)} to {store.url}")
        result = pushing.send(entry, Moving(entry.path.name, entry.manifest.size, quiet=json))
        results.append(result)
        _journal(directory, store.url, result)
        if not json:
            tell(f"{entry.path.name}: {_outcome(result)}")
    newest = results[0].key
    if not json and newest is not None and (other := pushing.newest_elsewhere(newest)) is not None:
        tell(
            f"a start elsewhere does not go on from {entries[0].path.name}: {store.url} has a newer one, which is not"
            f" on this disk (commit {other.sequence} of term {other.term})"
        )
    if json:
        as_json({"run": str(run), "mirror": store.url, "checkpoints": [_described(result) for result in results]})
    if damaged := [result for result in results if result.is_damaged]:
        if json:
            raise typer.Exit(DamagedCheckpointError.exit_code)
        raise DamagedCheckpointError(
            f"{len(damaged)} of {len(results)} checkpoints cannot be trusted, and were not sent",
            hint=f"see what is wrong: holdfast verify {run}",
        )


def _place(directory: RunDirectory, run: str, to: str | None, endpoint: str | None, region: str | None) -> Address:
    """Returns the mirror of a run; what the command line says goes before what is known here."""
    known = address_of(directory, run)
    if to is not None:
        return Address(to, endpoint, region)
    if known is None:
        raise ConfigError(
            [f"the run in {directory.root} has had no mirror"], hint="say where to: --to s3://BUCKET/PREFIX"
        )
    return Address(known.url, endpoint or known.endpoint, region or known.region)


def _journal(directory: RunDirectory, url: str, result: Pushed) -> None:
    manifest = result.entry.manifest
    if manifest is None or result.key is None or not result.seconds or not exists(directory.journal):
        return
    if result.has_waited and asking.living(directory) is not None:
        return  # the training hears of it, and journals it
    event = {"step": manifest.step, "sequence": manifest.sequence, "term": result.key.term, "bytes": manifest.size}
    Journal(directory.journal, manifest.run).write(
        "mirrored", **event, seconds=result.seconds, mirror=url, by="holdfast push"
    )


def _outcome(result: Pushed) -> str:
    if result.key is None:
        return f"not sent: {result.why}"
    return f"mirrored in {result.seconds:.1f} s" if result.seconds else "is there already"


def _described(result: Pushed) -> dict[str, object]:
    entry = result.entry
    return {
        "path": str(entry.path),
        "step": entry.step,
        "mirrored": result.key is not None,
        "term": None if result.key is None else result.key.term,
        "seconds": result.seconds,
        "why": result.why,
    }
