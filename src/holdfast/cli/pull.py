"""`holdfast pull URL DIR`: bring a run from its mirror to this disk."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import as_json, size, tell
from holdfast.cli.there import Endpoint, Moving, Region, moving_again, require_address
from holdfast.errors import DamagedCheckpointError, RunNotFoundError
from holdfast.mirror.pulling import Pulled, directory_for, pull
from holdfast.mirror.run_there import look, split
from holdfast.remote.apart import require_apart
from holdfast.remote.catalog import RemoteEntry
from holdfast.remote.location import location_of
from holdfast.remote.object_store import Progress


@moving_again()
def pull_checkpoints(
    url: Annotated[str, typer.Argument(metavar="URL", help="A mirror, or URL/checkpoint-STEP for one checkpoint.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is new or empty.")],
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring the newest good checkpoint here, the best one, and those that have a slot, a label or a pin."""
    require_address(url)
    place, name = split(url)
    require_apart(location_of(place), directory)
    there = look(place, endpoint, region)
    if not there.checkpoints:
        raise RunNotFoundError(f"there is no checkpoint in {there.store.url} yet", hint="nothing was brought here")
    if name is not None:
        there.named(name)

    def begin(checkpoint: RemoteEntry) -> Progress:
        manifest = checkpoint.entry.manifest
        assert manifest is not None
        if not json:
            tell(f"{checkpoint.entry.path.name}: bringing {size(manifest.size)} from {there.store.url}")
        return Moving(checkpoint.entry.path.name, manifest.size, quiet=json)

    results = []
    with directory_for(directory, there) as root:
        for result in pull(there, root, name, begin):
            results.append(result)
            if not json:
                tell(f"{result.checkpoint.entry.path.name}: {_outcome(result)}")
    if json:
        described = [_described(result) for result in results]
        as_json({"run": there.run, "mirror": there.store.url, "directory": str(directory), "checkpoints": described})
    if damaged := [result.checkpoint.entry.path.name for result in results if result.path is None]:
        if json:
            raise typer.Exit(DamagedCheckpointError.exit_code)
        raise DamagedCheckpointError(
            f"{len(damaged)} of {len(results)} checkpoints in {there.store.url} cannot be trusted, and are not here:"
            f" {', '.join(damaged)}",
            hint=f"see what is wrong: holdfast verify {there.store.url}",
        )


def _outcome(result: Pulled) -> str:
    if result.path is None:
        return f"DAMAGED: {'; '.join(result.problems)}"
    return "is here already" if result.was_here else f"is here, as {result.path}"


def _described(result: Pulled) -> dict[str, object]:
    return {
        "name": result.checkpoint.entry.path.name,
        "step": result.checkpoint.entry.step,
        "path": None if result.path is None else str(result.path),
        "was_here": result.was_here,
        "problems": list(result.problems),
    }
