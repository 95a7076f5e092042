"""The selection of the checkpoint that a training goes on from. To be read from top to bottom."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from logging import Logger
from pathlib import Path

from holdfast.errors import CheckpointError, DamagedCheckpointError, NoCheckpointError, UnsupportedError
from holdfast.layouts.layout import Layout
from holdfast.store import catalog, retention
from holdfast.store.manifest import Manifest, in_short
from holdfast.store.verify import Report, verify
from holdfast.text import quoted, shown

# torch.load with weights_only was unsafe before (CVE-2025-32434, CVE-2026-24747), and a foreign checkpoint is a pickle.
_SAFE_TORCH = (2, 10)

_HALF_READ = "what this process holds may be overwritten in part, and is no state to train from"
_TAKE_ANOTHER = "resume from another one: resume_from_checkpoint: auto takes the newest good one"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to go on from.

    Args:
        path: Its directory.
        manifest: Its manifest; None for one that plain transformers made.
        passed_over: Newer ones that were not taken; the user was told why.
    """

    path: Path
    manifest: Manifest | None
    passed_over: tuple[Path, ...] = field(default=(), compare=False)

    def continues(self, root: Path) -> str | None:
        """Returns the identity of the run that goes on in `root`; None where the checkpoint is from elsewhere."""
        here = self.path.resolve().parent == root.resolve()
        return self.manifest.run if self.manifest is not None and here else None


def select_checkpoint(root: Path, wanted: str | bool | None, layout: Layout, log: Logger) -> ResumePoint | None:
    """Selects the checkpoint that `resume_from_checkpoint` means.

    Args:
        root: The run directory.
        wanted: `auto`: the newest good one, or none if there is nothing; True: the newest good one, which must exist;
            a path: that one; None or False: none.
        layout: The layout that this training reads.
        log: Takes a line for the user: the choice, and each one that was skipped, with the reason.

    Raises:
        NoCheckpointError: There is none that could be used.
        DamagedCheckpointError: The one that was named is damaged.
    """
    if wanted is None or wanted is False:
        _tell_of_earlier_training(root, log)
        return None
    if wanted is True or wanted == "auto":
        return _newest_good(root, layout, log, required=wanted is True)
    return _named(Path(wanted).expanduser().resolve(), layout, log)  # a link to a checkpoint is a way to name it


def select_older(
    damaged: ResumePoint, problems: Sequence[str], root: Path, wanted: str | bool | None, layout: Layout, log: Logger
) -> ResumePoint:
    """Selects another checkpoint, after the selected one turned out to be damaged while it was read.

    Args:
        damaged: That one.
        problems: Its problems.
        root: The run directory.
        wanted: The user's wish, as for `select_checkpoint`.
        layout: The layout that this training reads.
        log: Takes a line for the user.

    Raises:
        NoCheckpointError: There is no other.
        DamagedCheckpointError: It was named, so that no other will do.
    """
    if wanted is not True and wanted != "auto":
        raise _refused(damaged.path, problems, f"{_HALF_READ}; {_TAKE_ANOTHER}")
    log.warning(f"skipped {damaged.path.name}: {'; '.join(problems)}")
    try:
        older = _newest_good(root, layout, log, required=True, passed_over=(*damaged.passed_over, damaged.path))
    except NoCheckpointError as error:
        raise NoCheckpointError(f"{error}; {_HALF_READ}", hint=error.hint) from error
    assert older is not None
    return older


def _newest_good(
    root: Path, layout: Layout, log: Logger, *, required: bool, passed_over: tuple[Path, ...] = ()
) -> ResumePoint | None:
    entries = _entries(root)
    if not entries:
        if required:
            raise NoCheckpointError(
                f"there is no checkpoint in {root} to resume from",
                hint="with resume_from_checkpoint: auto a run that has none yet starts from zero",
            )
        log.info(f"no checkpoint in {root} yet: starting from zero")
        return None
    skipped = list(passed_over)
    # What has no manifest has no place in the order either, and could be the newest: it is named, whatever is chosen.
    for entry in sorted(entries, key=lambda entry: entry.manifest is not None):
        if entry.path in passed_over:
            continue
        if (reason := _why_not_taken_unasked(entry)) is None:
            report = _inspect(entry.path, layout)
            problems = why_not_resumable(report, layout)
            if not problems and entry.manifest is not None:
                _tell_of_notices(entry.path, report, log)
                _tell_of_numbers(entry.path, entry.manifest, entries, log)
                return ResumePoint(entry.path, entry.manifest, tuple(skipped))
            reason = "; ".join(problems)
        log.warning(f"skipped {entry.path.name}: {reason}")
        skipped.append(entry.path)
    names = ", ".join(path.name for path in skipped)
    raise NoCheckpointError(
        f"none of the {len(skipped)} checkpoints in {root} can be resumed from: {names}",
        hint=f"look with: holdfast verify {root}; to start from zero all the same, choose another output_dir",
    )


def _why_not_taken_unasked(entry: catalog.Entry) -> str | None:
    """Returns the reason why a checkpoint is resumed from only where the user names it; None where there is none."""
    if entry.other_owner is not None:
        return f"of another user (uid {entry.other_owner}): name it to resume from it"
    return "made by plain transformers: name it to resume from it" if entry.foreign else None


def _named(path: Path, layout: Layout, log: Logger) -> ResumePoint:
    if not path.is_dir():
        raise NoCheckpointError(f"{path} is not a checkpoint: there is no such directory")
    entry = catalog.read(path)
    if entry.foreign and layout.takes_foreign:
        _require_safe_torch(path)
        _require_no_pickles(path)
        log.warning(f"{path} was made without Holdfast: it has no manifest, so nothing says that it is whole")
        return ResumePoint(path, None)
    report = _inspect(path, layout)
    if problems := why_not_resumable(report, layout):
        raise _refused(path, problems, _TAKE_ANOTHER)
    _tell_of_notices(path, report, log)
    if entry.manifest is not None and entry.manifest.not_finite:
        _tell_of_numbers(path, entry.manifest, _entries(path.parent), log)
    return ResumePoint(path, entry.manifest)


def _inspect(path: Path, layout: Layout) -> Report:
    """Checks all of a checkpoint that its loading will not check."""
    if layout.is_digested_while_loading:
        return verify(path, full=False)
    return verify(path, through_cache=True)


def why_not_resumable(report: Report, layout: Layout) -> list[str]:
    """Returns the reasons why a training that reads `layout` cannot resume from a checkpoint; none if it can."""
    manifest = report.entry.manifest
    if manifest is None or not report.good:
        return list(report.problems)
    if manifest.layout != layout.name:
        return [f"its layout is {quoted(manifest.layout)}, and this training reads {layout.name!r}"]
    missing = layout.missing([file.path for file in manifest.files], manifest.world_size)
    return [
        *(f"it lacks {path}, without which nothing can be resumed" for path in missing),
        *layout.why_refused(report.unlisted).values(),
    ]


def _refused(path: Path, problems: Sequence[str], hint: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} cannot be resumed from: {'; '.join(problems)}", list(problems), hint=hint)


def _tell_of_notices(path: Path, report: Report, log: Logger) -> None:
    for notice in report.notices:
        log.warning(f"{path.name}: {notice}")


def _tell_of_numbers(path: Path, manifest: Manifest, beside: Sequence[catalog.Entry], log: Logger) -> None:
    """Says that the state went wrong: a resume goes on exactly from it all the same."""
    if not manifest.not_finite:
        return
    finite = retention.newest_finite(path.parent, beside, manifest.run)
    instead = f"resume_from_checkpoint: {finite.path} is the newest without" if finite else "there is none without"
    log.warning(
        f"{path.name} holds NaN or infinity in {shown(in_short(manifest.not_finite))}, and is gone on from; {instead}"
    )


def _tell_of_earlier_training(root: Path, log: Logger) -> None:
    if entries := _entries(root):
        log.warning(
            f"{root} holds {len(entries)} checkpoints of earlier training; this one starts from zero and keeps them."
            " To go on from the newest: --resume auto"
        )


def _require_safe_torch(path: Path) -> None:
    major, minor = (int(part) for part in version("torch").split(".")[:2])
    if (major, minor) < _SAFE_TORCH:
        raise UnsupportedError(
            f"{path} has no manifest, and torch {version('torch')} does not read strangers' files safely",
            hint="update torch to 2.10 or newer",
        )


def _require_no_pickles(path: Path) -> None:
    """Refuses a checkpoint of torch.distributed.checkpoint or DeepSpeed: it is unpickled, without `weights_only`."""
    pickles = [*path.glob("*/.metadata"), *path.glob("global_step*/*")]
    if pickles:
        raise UnsupportedError(
            f"{path} has no manifest, and reading {shown(pickles[0].relative_to(path).as_posix())} runs what is in it",
            hint="resume from a checkpoint of this form that Holdfast wrote, or start anew from the weights",
        )


def _entries(root: Path) -> list[catalog.Entry]:
    try:
        return catalog.entries(root) if root.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{root} cannot be read: {error.strerror or error}") from error
