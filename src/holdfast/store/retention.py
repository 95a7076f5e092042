"""Deletion: which checkpoints go, and the order in which they do: validity first, the last good one never."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import ConfigError
from holdfast.store import catalog, files, names, pins
from holdfast.store.catalog import Entry
from holdfast.store.folder import Directory, Folder, Where, is_folder, names_in
from holdfast.store.verify import verify
from holdfast.text import quoted

SCHEDULE = "schedule"
# The doors of what nobody asked for.
_UNASKED = (SCHEDULE, "exception")
NEEDED = "still needed"
WAITS = "waits for the mirror"
"""The verdict on a checkpoint that nothing else keeps."""


@dataclass(frozen=True)
class RetentionPolicy:
    """The rules by which checkpoints are kept: each that any of them speaks for.

    Args:
        scheduled: The newest so many of those that nobody asked for (`save_total_limit`): the schedule's, those of
            stops without a label, and those that an exception left; None: all.
        on_demand: The newest so many of those that somebody asked for (`dynamic_checkpoint.keep`); None: all.
        every: Those whose step is a multiple of this.
        last: The newest so many, whoever asked.
        labelled: Those that have a label.

    Raises:
        ConfigError: `every` is no number of steps.
    """

    scheduled: int | None
    on_demand: int | None
    every: int | None = None
    last: int = 0
    labelled: bool = False

    def __post_init__(self) -> None:
        every: object = self.every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ConfigError(
                [f"keep_every: {quoted(every)} is no number of steps"], hint="give a whole number from 1 up"
            )


@dataclass(frozen=True)
class Verdict:
    """The decision on a checkpoint: `kept` says why it stays; None where it goes."""

    entry: Entry
    kept: str | None


class StillWantedError(OSError):
    """A checkpoint that was to be deleted was pinned, or gave its name to another, at the last moment. It is there."""


def judge(
    root: Directory,
    control: Directory | None,
    entries: Sequence[Entry],
    run: str,
    policy: RetentionPolicy,
    protected: Iterable[Path] = (),
) -> list[Verdict]:
    """Decides for each checkpoint whether it stays, and why.

    Only what verifies (names and sizes) counts as kept or goes; another run's checkpoints, damaged ones, pinned ones,
    and those in `protected` are left alone. The newest good checkpoint never goes, nor the newest that holds no NaN or
    infinity where none should be: a training that went wrong saves as often as one that did not. Of those that were
    given the same slot the newest has it, and stays; of the others that is no reason to stay.

    Args:
        root: The run directory.
        control: The private directory in it, which has the pins; None where there is none.
        entries: Its catalog, newest commit first.
        run: The identity of the run that asks.
        policy: The rules.
        protected: Checkpoints that something still needs: the one this run resumed from, the best one.

    Raises:
        OSError: The pins cannot be read.
    """
    safe = {path.resolve() for path in protected}
    left_alone = {entry.path: why for entry in entries if (why := _why_left_alone(root, entry, run)) is not None}
    asked = frozenset() if control is None else pins.asked_for(control)
    needed = frozenset(entry.path for entry in entries if entry.path.resolve() in safe)
    return judged(entries, left_alone, policy, Marks(_pinned(control), asked, needed, _queued(control)))


@dataclass(frozen=True)
class Marks:
    """The checkpoints that are spoken for otherwise than by their manifests.

    Args:
        pinned: The attempts that are pinned.
        asked: The attempts that somebody asked for after they had been saved for another reason.
        needed: The checkpoints that something still needs.
        queued: The attempts that wait for the mirror.
    """

    pinned: frozenset[str]
    asked: frozenset[str]
    needed: frozenset[Path]
    queued: frozenset[str] = frozenset()


def judged(
    entries: Sequence[Entry], left_alone: Mapping[Path, str], policy: RetentionPolicy, marks: Marks
) -> list[Verdict]:
    """Decides as `judge` does, wherever the checkpoints are.

    Args:
        entries: All checkpoints of the place, newest commit first.
        left_alone: Those that neither count nor go, each with the reason.
        policy: The rules.
        marks: Those that are spoken for.
    """
    kept = dict(left_alone)
    good = [entry for entry in entries if entry.path not in kept]
    finite = next(filter(_is_finite, good), None)
    slots = slots_held(good)
    by_rule = _by_rule(good, policy, marks.asked, slots)
    for entry in good:
        if entry is good[0]:
            kept[entry.path] = "the newest good one"
        elif entry is finite:
            kept[entry.path] = "the newest with finite numbers"
        elif entry.manifest is not None and entry.manifest.attempt in marks.pinned:
            kept[entry.path] = "pinned"
        elif entry.path in slots:
            kept[entry.path] = f"it has the slot {', '.join(slots[entry.path])}"
        elif entry.path in marks.needed:
            kept[entry.path] = NEEDED
        elif entry.path in by_rule:
            kept[entry.path] = by_rule[entry.path]
        elif entry.manifest is not None and entry.manifest.attempt in marks.queued:
            kept[entry.path] = WAITS
    return [Verdict(entry, kept.get(entry.path)) for entry in entries]


def newest_finite(root: Directory, entries: Sequence[Entry], run: str) -> Entry | None:
    """Returns the newest good checkpoint of a run that holds no NaN or infinity where none should be; None without one.

    Args:
        root: The run directory.
        entries: Its catalog, newest commit first.
        run: The identity of the run.
    """
    return next((entry for entry in entries if _is_finite(entry) and _why_left_alone(root, entry, run) is None), None)


def surplus(
    root: Directory,
    control: Directory | None,
    entries: Sequence[Entry],
    run: str,
    policy: RetentionPolicy,
    protected: Iterable[Path] = (),
) -> list[Path]:
    """Returns the checkpoints that go, oldest commit first. The arguments are those of `judge`."""
    verdicts = judge(root, control, entries, run, policy, protected)
    return [verdict.entry.path for verdict in reversed(verdicts) if verdict.kept is None]


def delete(root: Directory, control: Directory | None, path: Path, attempt: str | None = None) -> None:
    """Deletes a checkpoint: its name goes first, durably, so that a crash leaves no half of one that looks whole.

    Any process may do so beside any other. What was pinned a moment ago keeps its name, or gets it back: whoever pins
    looks for the checkpoint after the pin is there, and here the pins are read after the name has gone. The newer
    checkpoint for which this one may go was perhaps renamed by a process that was killed before it could sync that.

    Args:
        root: The run directory.
        control: The private directory in it; None where there is none.
        path: The checkpoint.
        attempt: The attempt of the checkpoint that is meant, where another may have its name by now.

    Raises:
        StillWantedError: It is pinned, waits for the mirror, or is another one than was meant.
        FileNotFoundError: It has gone already.
    """
    checkpoint, doomed = root / path.name, root / names.trash(uuid.uuid4().hex)
    with Folder.open(checkpoint) as folder:
        _require_unwanted(control, folder, attempt)
        files.sync_directory(root)
        files.rename_new(checkpoint, doomed)
        try:
            if not folder.is_at(doomed):
                raise StillWantedError("what has its name is not the checkpoint that was to be deleted")
            _require_unwanted(control, folder, attempt)
        except OSError:
            _give_back(root, doomed, checkpoint)
            raise
        files.sync_directory(root)
        # The sweep of a run that starts may be removing files of it too.
        while folder.is_at(doomed):
            with suppress(FileNotFoundError):
                files.remove_open(folder, doomed)


class Swept(NamedTuple):
    """The names that a sweep removed, and those that it could not, each with the reason."""

    removed: list[str]
    left: dict[str, str]


def sweep(root: Directory, control: Directory | None) -> Swept:
    """Removes what dead attempts, deletions and copies left. Only the holder of the run's lease may call this.

    All names become durable first: what a process renamed that was killed before it could sync is what this start goes
    on from, and what it had begun to delete must not have its name again with half of its files.

    Args:
        root: The run directory, or one of those in it.
        control: The private directory, which has the pins; None where nothing in `root` can be pinned.

    Raises:
        OSError: The directory cannot be synced or listed.
    """
    files.sync_directory(root)
    swept = Swept([], {})
    for name in names_in(root):
        try:
            if names.is_temporary(name):
                files.remove(root / name)
            elif not ((names.is_staging(name) or names.is_trash(name)) and _sweep_folder(root, control, name)):
                continue
        except FileNotFoundError:
            continue  # whoever began to delete it is still at it
        except OSError as error:
            swept.left[name] = error.strerror or str(error)
        else:
            swept.removed.append(name)
    return swept


def _sweep_folder(root: Directory, control: Directory | None, name: str) -> bool:
    """Removes what a save or a deletion has left; False where it is none, or gets its name back."""
    left = root / name
    if not is_folder(left):
        return False
    with Folder.open(left) as folder:
        if names.is_trash(name) and _is_held(control, folder):
            _give_back(root, left, root / names.checkpoint(catalog.read(folder).step))
            return False
        files.remove_open(folder, left)
    return True


def _pinned(control: Directory | None) -> frozenset[str]:
    return frozenset() if control is None else pins.pinned(control)


def _queued(control: Directory | None) -> frozenset[str]:
    return frozenset() if control is None else pins.queued(control)


def _is_held(control: Directory | None, doomed: Folder) -> bool:
    """Tells whether somebody pinned or queued a checkpoint between the two looks of a `delete` that crashed there."""
    manifest = catalog.read(doomed).manifest
    wanted = _pinned(control) | _queued(control)
    return manifest is not None and manifest.attempt in wanted and verify(doomed, full=False).good


def _is_finite(entry: Entry) -> bool:
    return entry.manifest is not None and not entry.manifest.not_finite


def _why_left_alone(root: Directory, entry: Entry, run: str) -> str | None:
    if entry.manifest is None:
        return "made by plain transformers" if entry.foreign else f"damaged: {entry.problem}"
    if entry.manifest.run != run:
        return "of another run"
    if entry.doubt is not None:
        return entry.doubt
    problems = verify(root / entry.path.name, full=False).problems
    return f"damaged: {problems[0]}" if problems else None


def _by_rule(
    good: Sequence[Entry], policy: RetentionPolicy, asked: frozenset[str], slots: Mapping[Path, Sequence[str]]
) -> dict[Path, str]:
    """Returns the checkpoints that a rule speaks for, each with the reason. One that has a slot needs none."""
    counted = [entry for entry in good if entry.path not in slots and not _was_for_slots_alone(entry, asked)]
    wanted_by_nobody = {entry.path for entry in counted if not _was_asked_for(entry, asked)}
    kept: dict[Path, str] = {}
    for kind, wanted, limit in (("scheduled", True, policy.scheduled), ("on-demand", False, policy.on_demand)):
        why = f"all {kind} ones stay" if limit is None else f"one of the last {limit} {kind} ones"
        alike = [entry for entry in counted if (entry.path in wanted_by_nobody) is wanted]
        kept.update((entry.path, why) for entry in alike[:limit])
    if policy.every is not None:
        why = f"its step is a multiple of {policy.every}"
        kept.update((entry.path, why) for entry in good if entry.step % policy.every == 0)
    if policy.labelled:
        kept.update((entry.path, "it has a label") for entry in good if has_label(entry))
    kept.update((entry.path, f"one of the last {policy.last}") for entry in good[: policy.last])
    return kept


def labels_of(entry: Entry) -> list[str]:
    """Returns the labels by which a checkpoint is known."""
    reasons = entry.manifest.reasons if entry.manifest is not None else ()
    return [str(reason["label"]) for reason in reasons if reason.get("label")]


def has_label(entry: Entry) -> bool:
    """Returns whether somebody gave a checkpoint a label, and not just together with a slot, with which it ends."""
    return any(reason.get("label") for reason in _lasting_reasons(entry))


def slots_held(entries: Sequence[Entry]) -> dict[Path, list[str]]:
    """Returns the slots that each checkpoint has now: the newest of a run that was given one has it.

    Args:
        entries: A catalog, newest commit first. What is in doubt has no slot.
    """
    taken: set[tuple[str, str]] = set()
    by_path: dict[Path, list[str]] = {}
    for entry in entries:
        if entry.manifest is None or entry.doubt is not None:
            continue
        for slot in sorted({slot for reason in entry.manifest.reasons if (slot := _slot_of(reason))}):
            if (entry.manifest.run, slot) not in taken:
                taken.add((entry.manifest.run, slot))
                by_path.setdefault(entry.path, []).append(slot)
    return by_path


def _slot_of(reason: Mapping[str, Any]) -> str:
    """Returns the slot that a request of a manifest's `reasons` gave; empty for none. Anybody may have written them."""
    slot = reason.get("slot")
    return slot if isinstance(slot, str) and names.is_component(slot) else ""


def wants_checkpoint(reason: Mapping[str, Any]) -> bool:
    """Returns whether a request of a manifest's `reasons` was for that checkpoint: a stop without a label is to end."""
    return bool(reason.get("label")) or not (reason.get("door") in _UNASKED or reason.get("stop") is True)


def _lasting_reasons(entry: Entry) -> list[Mapping[str, Any]]:
    """Returns the requests of a checkpoint's manifest that were for no slot, and so do not end with one."""
    return [] if entry.manifest is None else [each for each in entry.manifest.reasons if not _slot_of(each)]


def _was_for_slots_alone(entry: Entry, asked: frozenset[str]) -> bool:
    """Returns whether nobody wanted that checkpoint but for slots: without one it is of no use to anybody."""
    manifest = entry.manifest
    if manifest is None or manifest.attempt in asked or not manifest.reasons or manifest.more_reasons:
        return False
    return not _lasting_reasons(entry)


def _was_asked_for(entry: Entry, asked: frozenset[str]) -> bool:
    """Returns whether somebody wanted that checkpoint, otherwise than for a slot."""
    if entry.manifest is None or entry.manifest.attempt in asked:
        return True
    return any(map(wants_checkpoint, _lasting_reasons(entry)))


def _require_unwanted(control: Directory | None, checkpoint: Folder, attempt: str | None) -> None:
    manifest = catalog.read(checkpoint).manifest
    if manifest is None or attempt not in (None, manifest.attempt):
        raise StillWantedError("it is not the checkpoint that was to be deleted")
    if manifest.attempt in _pinned(control):
        raise StillWantedError("it was pinned")
    if manifest.attempt in _queued(control):
        raise StillWantedError(f"it {WAITS}")


def _give_back(root: Directory, doomed: Where, checkpoint: Where) -> None:
    """Gives a name back, or, where a new checkpoint has it by now, the one that such a checkpoint gives way to."""
    try:
        files.rename_new(doomed, checkpoint)
    except FileExistsError:
        manifest = catalog.read(doomed).manifest
        attempt = manifest.attempt if manifest is not None else uuid.uuid4().hex
        files.rename_new(doomed, root / names.superseded(names.step_of(checkpoint.name) or 0, attempt))
    files.sync_directory(root)
