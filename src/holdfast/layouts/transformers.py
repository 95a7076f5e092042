"""The transformers layout: the files that plain `Trainer` writes, resumes from, and would read if they were there.

Read off transformers 5.23, `trainer.py`: `_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`,
`_load_rng_state`.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from holdfast.errors import DamagedCheckpointError
from holdfast.store import catalog, files, names
from holdfast.store.folder import Folder
from holdfast.store.verify import Report
from holdfast.text import shown

NAME = "transformers"

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
# Of an adapter that has another name than `default`.
_NAMED_ADAPTER = "*/adapter_model.safetensors"
# The forms that a checkpoint's large files can have. Trainers read their own form alone.
PLAIN = "no sharding of its own"
FSDP = "FSDP"
DEEPSPEED = "DeepSpeed"

# Of FSDP through accelerate, sharded and full. Its third form, a file for each rank, a Trainer does not resume from.
_FSDP_WEIGHTS = ("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp.bin")
_FSDP_OPTIMIZER = ("optimizer_0/.metadata", "optimizer.bin")
# DeepSpeed's file that names the folder of its own format, which has weights, optimizer and scheduler.
_DEEPSPEED_LATEST = "latest"
_IN_DEEPSPEEDS_FOLDER = ("optimizer.pt", "scheduler.pt")

RESUMABLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")

# What a Trainer looks for by name. A file of such a name that no manifest vouches for could be read instead of
# ours, and half of these are pickles.
_LOOKED_FOR = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "*/adapter_config.json",
    "*/adapter_model.*",
    "*/.metadata",
    "*/*.distcp",
    _DEEPSPEED_LATEST,
    "global_step*/*",
)


CARRIED = ("carried.json", "carried.safetensors", "gradients.json", "gradients.safetensors")
"""The files of what changes and is in no file of a Trainer's own, at which plain transformers does not look."""
# The files that are of use to the training alone.
_TRAINING = (
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "trainer_state.json",
    "training_args.bin",
    *CARRIED,
    names.MANIFEST,
)


def random_files(world_size: int) -> list[str]:
    """Returns the files of the random state, in the order of the processes that train together."""
    return ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]


def form(paths: Iterable[str]) -> str:
    """Returns the form of a checkpoint with these files: `PLAIN`, `FSDP` or `DEEPSPEED`."""
    present = set(paths)
    if _DEEPSPEED_LATEST in present and any(_matches(path, "global_step*/*") for path in present):
        return DEEPSPEED
    return FSDP if present.intersection(_FSDP_WEIGHTS) else PLAIN


def missing(paths: Iterable[str], world_size: int = 1, *, weights_only: bool = False) -> list[str]:
    """Returns the files that a checkpoint lacks and must have to be resumed from.

    Args:
        paths: The paths of its files.
        world_size: The number of processes that wrote it, as its manifest says. Of many files of theirs, some are
            named.
        weights_only: True where the user asked for weights alone (`save_only_model`), which cannot be resumed.
    """
    present = set(paths)
    several = random_files(min(world_size, len(present) + 2))  # more than there are files cannot all be there
    wanted = ["trainer_state.json"] if weights_only else [*RESUMABLE, *several]
    kind = form(present)
    if kind == DEEPSPEED:
        return [path for path in wanted if path not in present and path not in _IN_DEEPSPEEDS_FOLDER]
    if kind == FSDP and present.intersection(_FSDP_OPTIMIZER):
        present.add("optimizer.pt")
    absent = [path for path in wanted if path not in present]
    has_weights = kind == FSDP or any(path in WEIGHTS or _matches(path, _NAMED_ADAPTER) for path in present)
    return absent if has_weights else ["the weights", *absent]


def why_refused(unlisted: Iterable[str]) -> dict[str, str]:
    """Returns those files that the manifest does not list and that a Trainer would read if it met them.

    Args:
        unlisted: The paths of the files that the manifest does not list.

    Returns:
        For each such file a line that says why a checkpoint that holds it cannot be resumed from.
    """
    return {
        path: f"it holds {shown(path)}, which its manifest does not list and a Trainer would read"
        for path in unlisted
        if any(_matches(path, pattern) for pattern in _LOOKED_FOR)
    }


def leave_weights(report: Report, checkpoint: Folder, target: Folder) -> None:
    """Copies the model's files of a good checkpoint into another directory; none that the manifest does not list.

    Args:
        report: The checkpoint, verified and good.
        checkpoint: It, open.
        target: The directory, open; nothing in it has the name of a model's file.
    """
    manifest = report.entry.manifest
    assert manifest is not None
    copy_model(checkpoint, target, [file.path for file in manifest.files])


def has_model(folder: Path) -> bool:
    """Returns whether a folder itself holds the weights of a model."""
    return any((folder / name).is_file() for name in WEIGHTS)


def copy_saved_model(checkpoint: Path, digest: str, target: Folder) -> None:
    """Copies the model's files from a checkpoint that this process has saved.

    Args:
        checkpoint: The checkpoint.
        digest: The digest of its manifest.
        target: The directory.

    Raises:
        DamagedCheckpointError: It has gone, or another one has its name.
    """
    try:
        with Folder.open(checkpoint) as folder:
            manifest = catalog.read(folder).manifest
            if manifest is None or manifest.sha256 != digest:
                raise OSError(f"{checkpoint} is not what was saved there: somebody has exchanged it")
            copy_model(folder, target, [file.path for file in manifest.files])
    except OSError as error:
        raise DamagedCheckpointError(f"the model was not left in {target}: {error}") from error


def copy_model(source: Folder, target: Folder, paths: Iterable[str]) -> None:
    """Copies the model's files, each by write and rename, so that none is ever half there.

    Args:
        source: A directory in the transformers layout.
        target: The directory that gets them. Files of the same names are replaced, others left alone.
        paths: The paths of all files in `source`; those that only a training needs are left there.
    """
    wanted: dict[str, list[str]] = {"": []}
    for path in paths:
        above, _, name = path.rpartition("/")
        if name not in _TRAINING and not name.startswith("rng_state"):
            wanted.setdefault(above, []).append(name)
    for above in sorted(wanted, reverse=True):
        with files.below(source, above) as origin, files.below(target, above, make=True) as destination:
            for name in sorted(wanted[above]):
                files.copy(origin / name, destination / name)
            files.sync_directory(destination)


def _matches(path: str, pattern: str) -> bool:
    # Folder by folder: fnmatch's own `*` goes over `/`, and a model that a callback merged into a folder is never read.
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))
