"""The selection of the checkpoint that a training goes on from. To be read from top to bottom."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from logging import Logger
from pathlib import Path

from holdfast.arguments import AUTO, LOCAL
from holdfast.errors import CheckpointError, DamagedCheckpointError, NoCheckpointError, UnsupportedError
from holdfast.layouts.layout import Layout
from holdfast.store import catalog, reading, references, retention
from holdfast.store.folder import Folder, exists
from holdfast.store.manifest import Manifest, in_short
from holdfast.store.verify import Report, verify
from holdfast.text import quoted, shown

# torch.load with weights_only was unsafe before (CVE-2025-32434, CVE-2026-24747), and a foreign checkpoint is a pickle.
_SAFE_TORCH = (2, 10)

_HALF_READ = "what this process holds may be overwritten in part, and is no state to train from"
_TAKE_ANOTHER = "resume from another one: 'auto' takes the newest good one"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to go on from.

    Args:
        folder: Its directory, held open since it was checked: what is loaded is what was checked, whatever has its name
            by now.
        manifest: Its manifest; None for one that plain transformers made.
        passed_over: Newer ones that were not taken; the user was told why.
    """

    folder: Folder
    manifest: Manifest | None
    passed_over: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """Its path, for people to read."""
        return self.folder.path

    def require_in_place(self) -> None:
        """Checks that its path leads to it, where a loader that takes nothing but a path was given that.

        Raises:
            DamagedCheckpointError: Something else has the name, and may have been loaded.
        """
        if self.folder.through == self.path and not self.folder.is_at(self.path):
            problem = "it was moved or exchanged while it was loaded"
            raise DamagedCheckpointError(f"{self.path}: {problem}; {_HALF_READ}", [problem], hint=_TAKE_ANOTHER)

    def continues(self, root: Path) -> str | None:
        """Returns the identity of the run that goes on in `root`; None where the checkpoint is from elsewhere."""
        here = self.path.resolve().parent == root.resolve()
        return self.manifest.run if self.manifest is not None and here else None


def select_checkpoint(root: Path, wanted: str | bool | None, layout: Layout, log: Logger) -> ResumePoint | None:
    """Selects the checkpoint that `resume_from_checkpoint` means.

    Args:
        root: The run directory.
        wanted: `auto`: the newest good one, or none if there is nothing; True and `local`: the newest good one, which
            must exist; a path: that one; None or False: none.
        layout: The layout that this training reads.
        log: Takes a line for the user: the choice, and each one that was skipped, with the reason.

    Raises:
        NoCheckpointError: There is none that could be used.
        DamagedCheckpointError: The one that was named is damaged.
    """
    if wanted is None or wanted is False:
        _tell_of_earlier_training(root, log)
        return None
    if takes_newest(wanted):
        return _newest_good(root, layout, log, required=wanted != AUTO)
    return named_by(wanted, layout, log)


def takes_newest(wanted: str | bool | None) -> bool:
    """Tells whether the user wants the newest good checkpoint, whichever that is."""
    return wanted is True or wanted in (AUTO, LOCAL)


def named_by(wanted: str | bool, layout: Layout, log: Logger) -> ResumePoint:
    """Opens the checkpoint that a path names.

    Raises:
        NoCheckpointError: There is none.
        DamagedCheckpointError: It is damaged.
    """
    return _named(Path(str(wanted)).expanduser().resolve(), layout, log)  # a link to a checkpoint is a way to name it


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
    if not takes_newest(wanted):
        raise refused(damaged, problems)
    tell_of_skipped(damaged.path, problems, log)
    try:
        older = _newest_good(root, layout, log, required=True, passed_over=(*damaged.passed_over, damaged.path))
    except NoCheckpointError as error:
        raise NoCheckpointError(f"{error}; {_HALF_READ}", hint=error.hint) from error
    assert older is not None
    return older


def refused(damaged: ResumePoint, problems: Sequence[str]) -> DamagedCheckpointError:
    """Returns the error for a checkpoint that was named, and turned out to be damaged while it was read."""
    return _refused(damaged.path, problems, f"{_HALF_READ}; {_TAKE_ANOTHER}")


def tell_of_skipped(path: Path, problems: Sequence[str], log: Logger) -> None:
    """Says that a checkpoint is passed over, and why."""
    log.warning(f"skipped {path.name}: {'; '.join(problems)}")


def _newest_good(
    root: Path, layout: Layout, log: Logger, *, required: bool, passed_over: tuple[Path, ...] = ()
) -> ResumePoint | None:
    entries = entries_in(root)
    if not entries:
        if required:
            raise NoCheckpointError(
                f"there is no checkpoint in {root} to resume from",
                hint="give 'auto': a run that has none yet then starts from zero",
            )
        log.info(f"no checkpoint in {root} yet: starting from zero")
        return None
    skipped = list(passed_over)
    # What has no manifest has no place in the order either, and could be the newest: it is named, whatever is chosen.
    for entry in sorted(entries, key=lambda entry: entry.manifest is not None):
        if entry.path in passed_over:
            continue
        try:
            with opening(entry.path) as folder:
                manifest = checked_unasked(folder, layout, log)
        except DamagedCheckpointError as error:
            tell_of_skipped(entry.path, error.problems, log)
            skipped.append(entry.path)
            continue
        tell_of_numbers(entry.path, manifest, entries, log)
        return ResumePoint(folder, manifest, tuple(skipped))
    names = ", ".join(path.name for path in skipped)
    raise NoCheckpointError(
        f"none of the {len(skipped)} checkpoints in {root} can be resumed from: {names}",
        hint=f"look with: holdfast verify {root}; to start from zero all the same, choose another output_dir",
    )


@contextmanager
def opening(path: Path) -> Iterator[Folder]:
    """Opens the directory of a checkpoint, once: whatever has its name later, this is what is checked and loaded.

    It stays open after the context, unless an error leaves that.

    Raises:
        DamagedCheckpointError: That cannot be done.
    """
    try:
        folder = Folder.open(path)
    except OSError as error:
        raise _refused(path, [f"it cannot be opened: {error.strerror or error}"], _TAKE_ANOTHER) from error
    try:
        yield folder
    except BaseException:
        folder.close()
        raise


def checked_unasked(folder: Folder, layout: Layout, log: Logger) -> Manifest:
    """Checks a checkpoint that nobody has named, and returns its manifest.

    Raises:
        DamagedCheckpointError: It is not taken, or only where it is named.
    """
    entry = catalog.read(folder)
    doubt = entry.doubt or ("made by plain transformers" if entry.foreign else None)
    if doubt is not None:
        raise _refused(folder.path, [f"{doubt}: name it to resume from it"], _TAKE_ANOTHER)
    return _checked(folder, layout, log)


def _named(path: Path, layout: Layout, log: Logger) -> ResumePoint:
    if not path.is_dir():
        raise NoCheckpointError(
            f"{path} is not a checkpoint: there is no such directory",
            hint="give the path of a checkpoint, True for the newest good one, 'auto' for that or a start from zero, or"
            " 'local' for that without the mirror",
        )
    with opening(path) as folder:
        manifest = _checked_named(folder, layout, log)
    if manifest is not None and manifest.not_finite:
        tell_of_numbers(path, manifest, entries_in(path.parent), log)
    return ResumePoint(folder, manifest)


def _checked_named(folder: Folder, layout: Layout, log: Logger) -> Manifest | None:
    """Checks a checkpoint that the user has named, and returns its manifest; None for one of plain transformers.

    Raises:
        DamagedCheckpointError: It cannot be resumed from.
        UnsupportedError: It cannot be read safely.
    """
    path, entry = folder.path, catalog.read(folder)
    if entry.doubt is not None:
        log.warning(
            f"{path.name} is {entry.doubt}: others can have made up what it holds, and change it while it is read;"
            " it is resumed from because it was named"
        )
    if entry.foreign and layout.takes_foreign:
        _require_safe_torch(path)
        _require_no_pickles(folder)
        log.warning(f"{path} was made without Holdfast: it has no manifest, so nothing says that it is whole")
        return None
    return _checked(folder, layout, log)


def _checked(folder: Folder, layout: Layout, log: Logger) -> Manifest:
    """Checks all of a checkpoint that its loading will not check, and returns its manifest.

    Raises:
        DamagedCheckpointError: It cannot be resumed from.
    """
    full = not layout.is_digested_while_loading
    report = verify(folder, full=full, through_cache=True)
    manifest, problems = report.entry.manifest, why_not_resumable(report, layout)
    if problems or manifest is None:
        raise _refused(folder.path, problems, _TAKE_ANOTHER)
    for notice in report.notices:
        log.warning(f"{folder.path.name}: {notice}")
    return manifest


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


def tell_of_numbers(path: Path, manifest: Manifest, beside: Sequence[catalog.Entry], log: Logger) -> None:
    """Says that the state went wrong: a resume goes on exactly from it all the same."""
    if not manifest.not_finite:
        return
    finite = retention.newest_finite(path.parent, beside, manifest.run)
    instead = f"{finite.path} is the newest without: name it to go on from it" if finite else "there is none without"
    log.warning(
        f"{path.name} holds NaN or infinity in {shown(in_short(manifest.not_finite))}, and is gone on from; {instead}"
    )


def best_step(point: ResumePoint) -> int | None:
    """Returns the step of the best checkpoint that a Trainer's state names; None where it names none."""
    manifest = point.manifest
    file = next((f for f in manifest.files if f.path == references.STATE), None) if manifest is not None else None
    if file is None:
        return None
    data, problem = reading.read_small(point.folder, file, references.MOST_STATE_BYTES)
    if problem is not None:
        return None
    with suppress(ValueError):
        return references.best_step(data)
    return None


def _tell_of_earlier_training(root: Path, log: Logger) -> None:
    if entries := entries_in(root):
        log.warning(
            f"{root} holds {len(entries)} checkpoints of earlier training; this one starts from zero and keeps them."
            " To go on from the newest, resume from 'auto' (holdfast train: --resume auto)"
        )


def _require_safe_torch(path: Path) -> None:
    major, minor = (int(part) for part in version("torch").split(".")[:2])
    if (major, minor) < _SAFE_TORCH:
        raise UnsupportedError(
            f"{path} has no manifest, and torch {version('torch')} does not read strangers' files safely",
            hint="update torch to 2.10 or newer",
        )


def _require_no_pickles(checkpoint: Folder) -> None:
    """Refuses a checkpoint of torch.distributed.checkpoint or DeepSpeed: it is unpickled, without `weights_only`."""
    for name in checkpoint.names():
        with suppress(NotADirectoryError), Folder.open(checkpoint / name, follow=True) as inside:
            pickles = [".metadata"] if exists(inside / ".metadata") else []
            pickles += inside.names() if name.startswith("global_step") else []
            if pickles:
                raise UnsupportedError(
                    f"{checkpoint} has no manifest, and reading {shown(f'{name}/{pickles[0]}')} runs what is in it",
                    hint="resume from a checkpoint of this form that Holdfast wrote, or start anew from the weights",
                )


def entries_in(root: Path) -> list[catalog.Entry]:
    """Returns the catalog of a run directory; of one that is not there an empty one.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return catalog.entries(root) if root.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{root} cannot be read: {error.strerror or error}") from error
