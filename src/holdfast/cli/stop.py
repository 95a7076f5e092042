"""`holdfast stop RUN`: save, then end training."""

from holdfast.cli.asking import ask
from holdfast.cli.save import Json, Label, Run, Timeout, Wait


def stop(run: Run, wait: Wait = False, timeout: Timeout = None, label: Label = "", json: Json = False) -> None:
    """Ask a running training to save and end."""
    ask(run, stop=True, label=label, why="holdfast stop", wait=wait, timeout=timeout, json=json)
