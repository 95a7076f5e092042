"""`holdfast export CHECKPOINT DIR`: plain weights, for anything that loads a model."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import naming
from holdfast.cli.output import as_json, tell


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to take the weights of.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them; made if it is missing.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a checkpoint's plain weights. Never overwrites a file."""
    folder, _ = naming.checkpoint(checkpoint)
    from holdfast.layouts.export import export as export_weights

    written = export_weights(folder, target)
    if json:
        as_json({"files": [str(file) for file in written]})
    else:
        for file in written:
            tell(str(file))
