"""One resume of a plain loop, from a checkpoint's files to the live state. To be read from top to bottom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts import native, native_reading
from holdfast.loop.subject import LoopState
from holdfast.resume.choose import ResumePoint
from holdfast.state import environment
from holdfast.state.data import position
from holdfast.state.part import Stored
from holdfast.state.rng import state as random_state
from holdfast.state.values import tensor_names
from holdfast.store import names
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

_MOST_LINES = 20

Say = Callable[[str], None]

Settle = Callable[[Exception | None], None]
"""Tells what has become of the reading here, and raises what has become of it in any process."""


def load_into(state: LoopState, chosen: ResumePoint, *, strict: bool, replay: bool, say: Say, settle: Settle) -> int:
    """Puts a checkpoint back into the live state, and says in one line what was resumed.

    Args:
        state: What the loop registered.
        chosen: The checkpoint.
        strict: Whether one that does not fit is refused. Otherwise what fits is taken.
        replay: Whether batches before the position are loaded and dropped rather than skipped.
        say: Prints a line.
        settle: Called once all tensors are read.

    Returns:
        The step that it holds.

    Raises:
        CheckpointError: It does not fit. Nothing was changed.
        DamagedCheckpointError: It is not what was written. Tensors of the live state may be partly overwritten.
    """
    manifest = chosen.manifest
    if manifest is None:
        raise CheckpointError(f"{chosen.path} has no manifest, and only such a checkpoint can be put into a loop")
    failure, found = None, None
    try:
        found = _read(state, chosen.path, manifest, strict=strict)
    except Exception as error:  # noqa: BLE001 - the other processes wait to be told of it
        failure = error
    settle(failure)
    assert found is not None
    stored, extra, random, notices = found
    for part in state.parts:
        if part.name in stored:
            notices += part.restore(stored[part.name], strict=strict)
    notices += random.check(state.generators)
    now, then = state.world_size, manifest.world_size

    def set_random_state() -> None:
        random.restore(state.generators)
        if state.rank >= then:
            random_state.reseed_for_rank(state.rank)

    where = redistribution = ""
    if state.data is not None and "data" in extra:
        notices += state.data.restore(
            extra["data"], after_skip=set_random_state, replay=replay, saved_by=then, processes=now
        )
        where, redistribution = f", {state.data.where}", state.data.redistribution
    set_random_state()
    if now != then:
        differing = native.differing_parts(file.path for file in manifest.files)
        changes = [
            *([redistribution] if redistribution else []),
            *(
                [f"buffers of {', '.join(differing)} that differed between them are those of rank 0"]
                if differing
                else []
            ),
            "random numbers are others from here on",
        ]
        notices.append(
            f"{then} processes saved it and {now} go on: the tensors are the same, bit for bit; {'; '.join(changes)}"
        )
    elif redistribution:
        notices.append(f"data: {redistribution}")
    say(f"resumed from {chosen.path}: step {manifest.step}{where}")
    for notice in dict.fromkeys(notices):
        say(notice)
    if changed := environment.differences(manifest.versions, environment.record()):
        say(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}")
    return manifest.step


def _read(
    state: LoopState, path: Path, manifest: Manifest, *, strict: bool
) -> tuple[dict[str, Stored], dict[str, Any], random_state.RngRecord, list[str]]:
    """Everything is compared with what is here before the first tensor is read, into the live ones where they fit."""
    memory = state.memory() if strict else None  # what is left out must stay as it is, also when this one is damaged
    own = state.world_size == manifest.world_size
    what = {"rank": state.rank, "own": own, "places": state.place, "memory": memory}
    try:
        with native_reading.opened(path, manifest.files, manifest.tensors, **what) as reading:
            random, notices = _compared(state, path, manifest, reading, strict=strict)
            reading.read(through_cache=state.world_size > 1)
    except CheckpointError as error:
        if not isinstance(error, DamagedCheckpointError) and (problems := verify(path).problems):
            raise DamagedCheckpointError(f"{path}: {'; '.join(problems)}", list(problems)) from error
        raise
    return reading.stored, reading.extra, random, notices


def _compared(
    state: LoopState, path: Path, manifest: Manifest, reading: native_reading.NativeReading, *, strict: bool
) -> tuple[random_state.RngRecord, list[str]]:
    """The random state, and a line for each part that is only here or only there."""
    stored, extra = reading.stored, reading.extra
    step = extra["training"].get("step") if isinstance(extra["training"], dict) else None
    if step != manifest.step:
        raise DamagedCheckpointError(f"{path}: training.json is of step {step}, the manifest of {manifest.step}")
    random = random_state.decode(extra["random"])
    random.check(state.generators)
    if state.data is not None and "data" in extra:
        position.decode(extra["data"])
    here = {part.name: part for part in state.parts}
    notices = [
        *(f"{name}: not in the checkpoint; it stays as it is" for name in here if name not in stored),
        *(f"{name}: in the checkpoint, and nothing here has that name" for name in stored if name not in here),
    ]
    for name in here.keys() & stored.keys():
        if gone := [one for one in tensor_names(stored[name].rest) if one not in stored[name].tensors]:
            raise CheckpointError(f"{path}: {name}.json speaks of {names.quoted(gone[0])}, and no file has that tensor")
    problems = [*notices, *(line for name in here if name in stored for line in here[name].problems(stored[name]))]
    if strict and problems:
        shown = problems[:_MOST_LINES] + [f"and {len(problems) - _MOST_LINES:,} more"] * (len(problems) > _MOST_LINES)
        raise CheckpointError(
            f"{path} does not fit this training:\n  " + "\n  ".join(shown),
            hint="build the same model and optimizer, or take what fits with strict=False; nothing was changed",
        )
    return random, notices
