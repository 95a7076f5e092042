"""`holdfast train config.yml`: train from an Axolotl-style configuration."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="An Axolotl-style YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; dots go down. May be repeated."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|true|local|PATH", help="What to resume from; overrides the configuration."),
    ] = None,
    keep_settings: Annotated[
        bool, typer.Option("--keep-settings", help="Go on with the settings of the checkpoint, not with changed ones.")
    ] = False,
    nproc: Annotated[
        int, typer.Option(metavar="N", min=1, help="Train in N processes of this machine, started by torchrun.")
    ] = 1,
) -> None:
    """Fine-tune or pretrain a causal language model, with saves on demand and exact resume."""
    overrides = [*(overrides or []), *(["resume_settings=keep"] if keep_settings else [])]
    if nproc > 1:
        from holdfast.train.torchrun import run_in_processes

        raise typer.Exit(run_in_processes(nproc, config, overrides, resume))
    from holdfast.train.run import run

    raise typer.Exit(run(config, overrides, resume))
