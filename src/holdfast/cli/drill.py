"""`holdfast drill -- COMMAND`: rehearse a preemption with one's own command."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import as_json, size, tell
from holdfast.errors import ConfigError
from holdfast.text import one_line

if TYPE_CHECKING:
    from holdfast.drill.rehearse import Findings


def drill(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="What trains: python train.py, torchrun ..., accelerate launch ..."),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Train to step N, four times.")] = 20,
    kill_at: Annotated[
        int | None, typer.Option(metavar="K", help="Ask for a save at step K, then stop. Unset: in the middle.")
    ] = None,
    grace: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="The seconds that a stop may take (25).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Rehearse a preemption: is a run that is stopped and resumed the run that was never stopped?"""
    if not command:
        raise ConfigError(["drill: no command to rehearse"], hint="holdfast drill -- python train.py")
    from holdfast.drill.rehearse import rehearse

    scratch = Path(tempfile.mkdtemp(prefix="holdfast-drill-"))

    def say(line: str) -> None:
        if not json:
            tell(line)

    say(f"drill: output_dir is {scratch / 'run'} in its place; what the program writes elsewhere is yours")
    keep = True
    try:
        findings = rehearse(command, scratch, steps, kill_at, grace, say)
        keep = findings.exit_code != 0
        if json:
            as_json(findings.as_json())
        for line in _lines(findings):
            say(line)
    finally:
        if keep:
            say(f"what the starts wrote and said: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    raise typer.Exit(findings.exit_code)


def _lines(findings: "Findings") -> list[str]:
    if findings.unlike is not None:
        return [
            f"not deterministic: two uninterrupted starts differ from {findings.unlike} on",
            "  to compare a resume, the training must repeat itself: seed everything, and look at",
            "  torch.use_deterministic_algorithms(True)",
        ]
    interrupted = findings.interrupted
    assert interrupted is not None
    lines = []
    if findings.exact:
        lines.append(
            f"exact: steps {findings.resumed_at} to {findings.steps} are those of a run that was never stopped"
        )
    elif findings.difference is not None:
        lines.append(f"NOT exact: differs from {findings.difference} on (stopped and resumed at {findings.resumed_at})")
        lines.append("  something that influences training is in no part of the checkpoint: give it as a part")
    elif interrupted.stopped:
        lines.append(f"NOT compared: the last start began at step {findings.resumed_at}, of {findings.steps}")
    lines += [f"  it said: {one_line(warning)}" for warning in findings.warnings]
    if not interrupted.stopped:
        lines.append(
            f"NOT stopped with a good save; it was given {findings.grace:g} s, and took {interrupted.seconds:.1f} s"
        )
    else:
        verdict = "in time" if findings.in_time else "TOO LATE"
        lines.append(
            f"{verdict}: {interrupted.seconds:.1f} s from SIGTERM to the end; the grace is {findings.grace:g} s"
        )
        if not findings.in_time:
            lines.append("  give the job more time, and say how much in stop_grace_seconds")
    answer = interrupted.answer
    if answer is None or not answer.saved:
        became = "no answer in time" if answer is None else one_line(answer.error)
        lines.append(f"the save that was asked for: {became}")
    else:
        cost = f"training waited {interrupted.waited:.3f} s for both"
        lines.append(f"a save: {size(answer.bytes)} in {answer.seconds:.2f} s; {cost}")
    return lines
