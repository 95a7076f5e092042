"""One resume of a plain loop, from a checkpoint's files to the live state. To be read from top to bottom."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.devices.cuda import device_in_use
from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.native_reading import NativeReading
from holdfast.log import RunLog
from holdfast.loop.settings import LoopSettings
from holdfast.loop.subject import LoopData, LoopState
from holdfast.resume import changed_settings
from holdfast.resume.open_run import Resumption
from holdfast.state import environment
from holdfast.state.data.position import is_past
from holdfast.state.gradients import Gradients
from holdfast.state.outside import put_back
from holdfast.state.part import GRADIENTS, Stored
from holdfast.state.reachable import MOST_OBJECTS
from holdfast.state.registry import Parts
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord
from holdfast.state.stateful import StatefulPart
from holdfast.state.values import tensor_names
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify
from holdfast.text import quoted, shown

_MOST_LINES = 20


class _Content(NamedTuple):
    """A checkpoint that was read and fits, and of which the tensors alone are in the live state yet."""

    stored: dict[str, Stored]
    beside: dict[str, Stored]
    """The state in no part, by the names of `state.part.BESIDE`."""
    rank0_buffers: list[str]
    """The models of which each rank had buffers of its own, where another number of processes goes on."""
    extra: dict[str, Any]
    random: RngRecord
    notices: list[str]
    """A line for each part that is only here or only there, or rank 0's though others had their own."""


def tell_of_what_is_not_watched(state: LoopState, log: RunLog) -> None:
    """Says of a training that begins what of it no checkpoint will have, as far as that shows by now."""
    if not state.has_parts:
        log.announce(
            "no part was given: what is saved and resumed is the step, the random state and the position in data="
            " alone; give model=, optimizer= and what else training changes",
            logging.WARNING,
        )
    if not state.outside.complete:
        log.announce(
            f"{MOST_OBJECTS:,} objects and more can be reached: tensors in the rest are not watched", logging.WARNING
        )


def load_into(state: LoopState, origin: Resumption, *, strict: bool, replay: bool, log: RunLog) -> int:
    """Puts a checkpoint back into the live state, and says in one line what was resumed.

    Args:
        state: The state of the loop.
        origin: The checkpoint, and the processes that read it together.
        strict: Refuses one that does not fit. Otherwise what fits is taken.
        replay: Loads batches before the position and drops them, rather than skipping them.
        log: Takes the lines for the user.

    Returns:
        The step that it holds.

    Raises:
        CheckpointError: It does not fit. Nothing was changed.
        DamagedCheckpointError: It is not what was written. Tensors of the live state may be partly overwritten.
    """
    chosen = origin.chosen
    assert chosen is not None
    manifest = chosen.manifest
    if manifest is None:
        raise CheckpointError(f"{chosen.path} has no manifest, and only such a checkpoint can be put into a loop")
    content = _read_with_others(state, origin, chosen.folder, manifest, strict=strict)
    notices = content.notices
    parts: Parts = state.parts
    notices += parts.restore(content.stored, strict=strict)
    notices += put_back(state.outside, content.beside)
    gradients: Gradients = state.gradients
    notices += gradients.restore(content.beside.get(GRADIENTS))
    notices += content.random.check(state.generators)
    settings: LoopSettings | None = state.given
    changes = settings.follow(manifest.settings) if settings is not None else []
    before, now = manifest.world_size, state.world_size

    def set_random_state() -> None:
        content.random.restore(state.generators)
        if state.rank >= before:
            rng_state.reseed_for_rank(state.rank)

    where = redistribution = ""
    data: LoopData | None = state.data
    if data is not None and "data" in content.extra:
        notices += data.restore(
            content.extra["data"], after_skip=set_random_state, replay=replay, saved_by=before, processes=now
        )
        where, redistribution = f", {data.where}", data.redistribution
        if (epoch := content.extra["training"].get("epoch")) is not None:
            state.epoch = epoch
            state.begins_past_batches = bool(is_past(content.extra["data"], epoch))
            if state.begins_past_batches:
                where = f", epoch {epoch}, its batches taken and the rest of its body to come"
    set_random_state()
    notices += _data_notices(state, "data" in content.extra)
    if before != now:
        notices.append(_world_size_notice(before, now, content.rank0_buffers, redistribution))
    elif redistribution:
        notices.append(f"data: {redistribution}")
    log.announce(f"resumed from {chosen.path}: step {manifest.step}{where}")
    changed_settings.announce(log, changes)
    if not manifest.settings:
        changed_settings.announce_unrecorded(log)
    for notice in dict.fromkeys(notices):
        log.announce(notice, logging.WARNING)
    if changed := environment.differences(manifest.versions, environment.record()):
        log.announce(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}", logging.WARNING)
    return manifest.step


def _read_with_others(
    state: LoopState, origin: Resumption, folder: Folder, manifest: Manifest, *, strict: bool
) -> _Content:
    """Reads, and returns once all processes have read without a failure."""
    content, failure = None, None
    try:
        content = _read(state, folder, manifest, strict=strict)
    except Exception as error:  # noqa: BLE001 - the other processes wait to be told of it
        failure = error
    origin.barrier_after_read(failure)
    assert content is not None
    return content


def _read(state: LoopState, folder: Folder, manifest: Manifest, *, strict: bool) -> _Content:
    """Compares everything with what is here before the first tensor is read, into the live ones where they fit."""
    path, before = folder.path, manifest.world_size
    needs: dict[str, Any] = {
        "rank": state.rank,
        "saved_by": before,
        "own": before == state.world_size,
        "places": state.shard_range,
        # What is left out must stay as it is, also when this checkpoint turns out to be damaged.
        "memory": state.parts.memory() if strict else None,
        "device": device_in_use(),
        "neighbors": state.neighbors,
    }
    try:
        reading = NativeReading(folder, manifest.files, manifest.tensors, **needs)
        if reading.refused:
            raise _cannot_be_shared_out(path, manifest, state.world_size, reading.refused)
        content = _checked(state, path, manifest, reading, strict=strict)
        content.notices.extend(_of_rank0(part, before) for part in reading.differing)
        content.notices.extend(_not_of_rank0(part, before) for part in reading.not_of_rank0)
        misfits = content.notices + _misfits(state, path, content.stored)
        if strict and misfits:
            raise _does_not_fit(path, misfits)
        reading.read(through_cache=state.world_size > 1)
        if reading.refusal:
            content.notices.append(
                f"read through memory that the driver does not lock, which is slow: {reading.refusal}"
            )
    except CheckpointError as error:
        if not isinstance(error, DamagedCheckpointError) and (problems := verify(folder).problems):
            raise DamagedCheckpointError(f"{path}: {'; '.join(problems)}", list(problems)) from error
        raise
    return content


def _checked(state: LoopState, path: Path, manifest: Manifest, reading: NativeReading, *, strict: bool) -> _Content:
    """Decodes what is not a tensor, and notes each part that is only here or only there."""
    stored, extra = reading.stored, reading.extra
    step = extra["training"].get("step") if isinstance(extra["training"], dict) else None
    if step != manifest.step:
        raise DamagedCheckpointError(f"{path}: training.json is of step {step}, the manifest of {manifest.step}")
    _require_epoch(path, extra)
    random = rng_state.decode(extra["random"])
    random.check(state.generators)
    other_order = ""
    if state.data is not None and "data" in extra:
        other_order = state.data.other_order(extra["data"], manifest.world_size, state.world_size)
    here, stays = [part.name for part in state.parts], "" if strict else "; it stays as it is"
    notices = [
        *(f"{name}: not in the checkpoint{stays}" for name in here if name not in stored),
        *(f"{name}: in the checkpoint, and nothing here has that name" for name in stored if name not in here),
        *([other_order] if other_order else []),
    ]
    return _Content(stored, reading.beside, reading.rank0_buffers, extra, random, notices)


def _require_epoch(path: Path, extra: dict[str, Any]) -> None:
    """Refuses an epoch that does not go with the position in the data.

    Raises:
        DamagedCheckpointError: There is one.
    """
    if (epoch := extra["training"].get("epoch")) is None:
        return
    data = extra.get("data")
    at = data.get("epoch") if isinstance(data, dict) else None
    if type(epoch) is not int or type(at) is not int or epoch < 0 or at not in (epoch, epoch + 1):
        raise DamagedCheckpointError(f"{path}: training.json is of epoch {quoted(epoch)}, data.json of {quoted(at)}")


def _data_notices(state: LoopState, is_there: bool) -> list[str]:
    """Returns a line where the position in the data is not that of the checkpoint, or is in none."""
    if state.data is not None:
        return [] if is_there else ["data: the checkpoint has no position in it: it begins with its first epoch"]
    if is_there:
        return ["data: the checkpoint has a position in it, and this loop has no data=: the loop begins where it likes"]
    if state.generators or any(isinstance(part, StatefulPart) and part.is_of_data() for part in state.parts):
        return []
    return ["data: the position in it is not saved: give data= and take batches(), or give what knows it as a part"]


def _misfits(state: LoopState, path: Path, stored: dict[str, Stored]) -> list[str]:
    """Lists what the parts find in the checkpoint that does not fit them.

    Raises:
        CheckpointError: A part speaks of a tensor that no file has.
    """
    common = [part for part in state.parts if part.name in stored]
    for part in common:
        content = stored[part.name]
        if absent := [name for name in tensor_names(content.rest) if name not in content.tensors]:
            raise CheckpointError(
                f"{path}: {part.name}.json speaks of {quoted(absent[0])}, and no file has that tensor"
            )
    return state.parts.problems(stored)


def _does_not_fit(path: Path, misfits: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} does not fit this training:\n  " + "\n  ".join(_first_of(misfits)),
        hint="build the same model and optimizer, or take what fits with strict=False; nothing was changed",
    )


def _cannot_be_shared_out(path: Path, manifest: Manifest, now: int, refused: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} was saved by {manifest.world_size} processes, each with its own of what follows, and {now} go on:\n  "
        + "\n  ".join(_first_of(refused)),
        hint=f"go on with {manifest.world_size} processes; nothing was changed",
    )


def _first_of(lines: list[str]) -> list[str]:
    """Returns the first lines of many, which may quote names that a checkpoint has."""
    more = [f"and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
    return [*(shown(line) for line in lines[:_MOST_LINES]), *more]


def _of_rank0(part: str, before: int) -> str:
    return f"{part}: each of the {before} processes that saved it had its own; another number of them takes rank 0's"


def _not_of_rank0(part: str, before: int) -> str:
    return f"{part}: of the {before} processes that saved it rank 0 had none; another number of them goes on without it"


def _world_size_notice(before: int, now: int, buffers: list[str], redistribution: str) -> str:
    """Says what is the same, and what is not, where another number of processes goes on."""
    changes = ["random numbers are others from here on"]
    if buffers:
        changes.insert(0, f"buffers of {', '.join(buffers)} that differed between them are those of rank 0")
    if redistribution:
        changes.insert(0, redistribution)
    return f"{before} processes saved it and {now} go on: the tensors are the same, bit for bit; {'; '.join(changes)}"
