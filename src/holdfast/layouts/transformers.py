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
# What a checkpoint's large files are in. Trainers read their own form alone.
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


def random_files(world_size: int) -> list[str]:
    """The files of the random state, in the order of the processes that train together."""
    return ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]


def form(found: Iterable[str]) -> str:
    """Which of the forms a checkpoint with these files has."""
    names = set(found)
    if _DEEPSPEED_LATEST in names and any(_matches(name, "global_step*/*") for name in names):
        return DEEPSPEED
    return FSDP if names.intersection(_FSDP_WEIGHTS) else PLAIN


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
    kind = form(names)
    if kind == DEEPSPEED:
        return [name for name in wanted if name not in names and name not in _IN_DEEPSPEEDS_FOLDER]
    if kind == FSDP and names.intersection(_FSDP_OPTIMIZER):
        names.add("optimizer.pt")
    absent = [name for name in wanted if name not in names]
    return absent if kind == FSDP or names.intersection(WEIGHTS) else ["the weights", *absent]


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
