"""The model of a checkpoint, left in another directory for `from_pretrained` to load."""

from pathlib import Path

from holdfast.store import files, names

# What is of use to the training alone.
_TRAINING = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin", names.MANIFEST)


def copy_model(source: Path, target: Path) -> None:
    """Copies the model's files from a checkpoint, each by write and rename, so that none is ever half there.

    Args:
        source: A directory in the transformers layout.
        target: An existing directory. Files of the same names are replaced, others left alone.
    """
    folders = {target}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in _TRAINING and not path.name.startswith("rng_state"):
            destination = target / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            files.copy(path, destination)
            folders.add(destination.parent)
    for folder in sorted(folders, reverse=True):
        files.sync_directory(folder)
