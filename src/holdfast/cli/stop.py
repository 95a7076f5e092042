"""`holdfast stop RUN`: save, then end training."""

from holdfast.cli.asking import ask
from holdfast.cli.save import Json, Label, Mirrored, Run, Timeout, Wait


def stop(
    run: Run,
    wait: Wait = False,
    mirrored: Mirrored = False,
    timeout: Timeout = None,
    label: Label = "",
    json: Json = False,
) -> None:
    """Ask a running training to save and end."""
    ask(run, stop=True, label=label, why="holdfast stop", wait=wait, mirrored=mirrored, timeout=timeout, json=json)
