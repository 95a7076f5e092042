"""The transformers layout: the files that plain `Trainer` writes, resumes from, and would read if it found them.

Read off transformers 5.23, `trainer.py`: `_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`,
`_load_rng_state`.
"""

from collections.abc import Iterable
from fnmatch import fnmatch

from holdfast.store.names import shown

NAME = "transformers"

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
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
)


def random_files(world_size: int) -> list[str]:
    """The files of the random state, in the order of the processes that train together."""
    return ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]


def missing(found: Iterable[str], *, weights_only: bool, world_size: int = 1) -> list[str]:
    """What a checkpoint lacks that it must have to be resumed from.

    Args:
        found: The paths of its files.
        weights_only: Whether the user asked for weights alone (`save_only_model`), which cannot be resumed.
        world_size: How many processes wrote it, as its manifest says. Of many files of theirs, some are named.
    """
    names = set(found)
    several = random_files(min(world_size, len(names) + 2))  # more than there are files cannot all be there
    wanted = ["trainer_state.json"] if weights_only else [*RESUMABLE, *several]
    absent = [name for name in wanted if name not in names]
    return absent if names.intersection(WEIGHTS) else ["the weights", *absent]


def would_be_read(unlisted: Iterable[str]) -> list[str]:
    """Those files that the manifest does not list and that a Trainer would read if it met them."""
    return [name for name in unlisted if any(_matches(name, pattern) for pattern in _LOOKED_FOR)]


def strangers(unlisted: Iterable[str]) -> list[str]:
    """A line for each such file: why a checkpoint that holds it cannot be resumed from."""
    return [
        f"it holds {shown(name)}, which its manifest does not list and a Trainer would read"
        for name in would_be_read(unlisted)
    ]


def _matches(name: str, pattern: str) -> bool:
    # Folder by folder: fnmatch's own `*` goes over `/`, and a model that a callback merged into a folder is never read.
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))
