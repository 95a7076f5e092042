"""One resume of a plain loop, from a checkpoint's files to the live state. To be read from top to bottom."""

from collections.abc import Callable

from holdfast.capture import environment, random_state
from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts import native
from holdfast.loop_state import LoopState
from holdfast.resuming import Chosen

Say = Callable[[str], None]


def load_into(state: LoopState, chosen: Chosen, *, strict: bool, replay: bool, say: Say) -> int:
    """Puts a checkpoint back into the live state, and says in one line what was resumed.

    Args:
        state: What the loop registered.
        chosen: The checkpoint; it has been verified.
        strict: Whether one that does not fit is refused. Otherwise what fits is taken.
        replay: Whether batches before the position are loaded and dropped rather than skipped.
        say: Prints a line.

    Returns:
        The step that it holds.

    Raises:
        CheckpointError: It does not fit. Nothing was changed.
    """
    manifest = chosen.manifest
    if manifest is None:
        raise CheckpointError(f"{chosen.path} has no manifest, and only such a checkpoint can be put into a loop")
    files = [file.path for file in manifest.files]
    stored, extra = native.read(chosen.path, files, tensors=manifest.tensors, rank=state.rank, places=state.place)
    step = extra["training"].get("step") if isinstance(extra["training"], dict) else None
    if step != manifest.step:
        raise DamagedCheckpointError(f"{chosen.path}: training.json is of step {step}, the manifest of {manifest.step}")
    random = random_state.decode(extra["random"])
    here, there = {part.name: part for part in state.parts}, set(stored)
    notices = [
        *(f"{name}: not in the checkpoint; it stays as it is" for name in here if name not in there),
        *(f"{name}: in the checkpoint, and nothing here has that name" for name in stored if name not in here),
    ]
    problems = [*notices, *(line for name in here if name in there for line in here[name].problems(stored[name]))]
    if strict and problems:
        raise CheckpointError(
            f"{chosen.path} does not fit this training:\n  " + "\n  ".join(problems),
            hint="build the same model and optimizer, or take what fits with strict=False; nothing was changed",
        )
    for name, part in here.items():
        if name in there:
            notices += part.restore(stored[name], strict=strict)
    notices += random.check(state.generators)
    now, then = state.world_size, manifest.world_size

    def set_random_state() -> None:
        random.restore(state.generators)
        if state.rank >= then:
            random_state.go_apart(state.rank)

    where = handed_over = ""
    if state.data is not None and "data" in extra:
        notices += state.data.restore(
            extra["data"], after_skip=set_random_state, replay=replay, saved_by=then, processes=now
        )
        where, handed_over = f", {state.data.where}", state.data.handed_over
    set_random_state()
    if now != then:
        notices.append(
            f"{then} processes saved it and {now} go on: the tensors are the same, bit for bit;"
            f" {handed_over and f'{handed_over}; '}random numbers are others from here on"
        )
    elif handed_over:
        notices.append(f"data: {handed_over}")
    say(f"resumed from {chosen.path}: step {step}{where}")
    for notice in dict.fromkeys(notices):
        say(notice)
    if changed := environment.differences(manifest.versions, environment.record()):
        say(f"equivalent, not bit for bit, since the save: {'; '.join(changed)}")
    return manifest.step
