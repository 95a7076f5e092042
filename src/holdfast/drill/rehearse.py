"""One drill, to be read from top to bottom: the same training four times, once of them interrupted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.drill.starts import Interrupted, Starts
from holdfast.drill.trace import Difference, first_difference, unseeded
from holdfast.errors import DIFFERENT, NOT_DETERMINISTIC, ConfigError
from holdfast.settings import DEFAULTS

# What is asked for and stopped needs some steps: where a save is taken at boundaries only, two for each.
LEAST_AFTER = 4


@dataclass(frozen=True)
class Findings:
    """The findings of a drill.

    Args:
        steps: The step to which it was rehearsed.
        ranks: The number of processes.
        grace: The seconds that the program was given to leave.
        unlike: The first moment at which two uninterrupted starts differ; None where they are alike.
        interrupted: What became of the start that was stopped; None where that was not tried.
        resumed_at: The step from which the last start went on.
        difference: The first moment at which the stopped or the resumed start differs; None where they are alike.
        warnings: The warnings that Holdfast gave in them.
    """

    steps: int
    ranks: int
    grace: float
    unlike: Difference | None = None
    interrupted: Interrupted | None = None
    resumed_at: int | None = None
    difference: Difference | None = None
    warnings: Sequence[str] = ()

    @property
    def in_time(self) -> bool:
        """True when the program had saved and left within the grace."""
        return self.interrupted is not None and self.interrupted.stopped and self.interrupted.seconds <= self.grace

    @property
    def answered(self) -> bool:
        """True when the save that was asked for was made."""
        return bool(self.interrupted and self.interrupted.answer and self.interrupted.answer.saved)

    @property
    def went_on(self) -> bool:
        """True when the last start went on from a checkpoint, and had steps left to compare."""
        return self.resumed_at is not None and 0 < self.resumed_at < self.steps

    @property
    def exact(self) -> bool:
        """True when everything that the steps left is the same."""
        return self.unlike is None and self.went_on and self.difference is None

    @property
    def exit_code(self) -> int:
        """The exit code that `docs/cli.md` promises."""
        if self.unlike is not None:
            return NOT_DETERMINISTIC
        return 0 if self.exact and self.in_time and self.answered else DIFFERENT

    def as_json(self) -> dict[str, Any]:
        """Returns them for scripts."""
        interrupted = self.interrupted
        answer = interrupted.answer if interrupted else None
        return {
            "exact": self.exact,
            "in_time": self.in_time,
            "deterministic": self.unlike is None,
            "first_difference": _as_json(self.unlike or self.difference),
            "steps": self.steps,
            "ranks": self.ranks,
            "resumed_at": self.resumed_at,
            "seconds_to_exit": None if interrupted is None else round(interrupted.seconds, 3),
            "grace": self.grace,
            "save": None
            if answer is None
            else {"saved": answer.saved, "seconds": answer.seconds, "bytes": answer.bytes},
            "held_seconds": None if interrupted is None else round(interrupted.waited, 4),
            "warnings": list(self.warnings),
            "exit_code": self.exit_code,
        }


def rehearse(
    command: Sequence[str],
    scratch: Path,
    steps: int,
    kill_at: int | None,
    grace: float | None,
    say: Callable[[str], None],
) -> Findings:
    """Rehearses a preemption.

    Args:
        command: The program and its arguments.
        scratch: An empty directory.
        steps: The step to which it is rehearsed; less where training ends before.
        kill_at: The step after which it is asked and stopped; None for the middle.
        grace: The seconds that it is given to leave; None for those of a training that sets none.
        say: Takes a line about each start.

    Raises:
        ConfigError: The steps leave no room for it.
        UnsupportedError: The program never opened Holdfast.
        HoldfastError: The program failed by itself.
    """
    _require_room(steps, kill_at)
    grace = DEFAULTS.stop_grace_seconds if grace is None else grace
    starts = Starts(command, scratch)
    say(f"1 of 4: training to step {steps}")
    reference = starts.to("reference", steps)
    steps = min(steps, reference.left_at or steps)
    at = min(steps // 2, steps - LEAST_AFTER) if kill_at is None else kill_at
    _require_room(steps, at)
    findings = Findings(steps, len(reference.pids), grace)
    say(f"2 of 4: the same once more, to step {steps}")
    again = starts.to("again", steps)
    ignored = unseeded(reference, again)
    if (unlike := first_difference(reference, again, ignored)) is not None:
        return replace(findings, unlike=unlike)
    say(f"3 of 4: asked for a save at step {at}, then stopped by SIGTERM")
    interrupted = starts.interrupted("stopped", at, steps, grace)
    findings = replace(findings, interrupted=interrupted, warnings=interrupted.trace.warnings)
    if not interrupted.stopped:
        return replace(findings, difference=first_difference(reference, interrupted.trace, ignored))
    say(f"4 of 4: going on to step {steps}")
    resumed = starts.to("resumed", steps, afresh=False)
    return replace(
        findings,
        resumed_at=resumed.begins_at,
        difference=first_difference(reference, interrupted.trace, ignored)
        or first_difference(reference, resumed, ignored),
        warnings=tuple(dict.fromkeys([*interrupted.trace.warnings, *resumed.warnings])),
    )


def _require_room(steps: int, kill_at: int | None) -> None:
    least = 1 + LEAST_AFTER
    if steps < least:
        raise ConfigError([f"--steps: a drill needs {least} steps at least, and this training has {steps}"])
    if kill_at is not None and not 1 <= kill_at <= steps - LEAST_AFTER:
        raise ConfigError(
            [f"--kill-at: {kill_at} is not between 1 and {steps - LEAST_AFTER}, {LEAST_AFTER} before the end"]
        )


def _as_json(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else {**vars(difference), "parts": list(difference.parts)}
