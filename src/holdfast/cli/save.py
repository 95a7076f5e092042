"""`holdfast save RUN`: save, and go on training."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.asking import ask

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The output_dir of a running training.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the answer; exit 0 only when the checkpoint is durable.")]
Mirrored = Annotated[
    bool, typer.Option("--mirrored", help="With --wait: exit 0 only when the checkpoint is in the run's mirror too.")
]
Timeout = Annotated[float | None, typer.Option(metavar="S", min=0, help="With --wait: give up after S seconds.")]
Label = Annotated[str, typer.Option(metavar="TEXT", help="What the checkpoint is to be known for.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def save(
    run: Run,
    wait: Wait = False,
    mirrored: Mirrored = False,
    timeout: Timeout = None,
    label: Label = "",
    stop: Annotated[bool, typer.Option("--stop", help="End training after the save.")] = False,
    json: Json = False,
) -> None:
    """Ask a running training for a full, resumable checkpoint."""
    ask(run, stop=stop, label=label, why="holdfast save", wait=wait, mirrored=mirrored, timeout=timeout, json=json)
