"""The names that may appear on disk. Nothing that comes from outside becomes part of a path without passing here.

Standard library alone: the commit core stands on this.
"""

import re

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# The files that torch.distributed.checkpoint writes: `.metadata` and `__<rank>_<n>.distcp`.
_DISTRIBUTED = re.compile(r"\.metadata|__[0-9]{1,6}_[0-9]{1,6}\.distcp")
# Not `\d`: it takes the digits of every script.
# Longer than any number of ours: a directory that has such a name is a damaged checkpoint, and not overlooked.
_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]{0,99})")
_SUPERSEDED = re.compile(r"superseded-(0|[1-9][0-9]{0,99})-[0-9a-f]{32}")
_STAGING = re.compile(r"\.tmp-[0-9a-f]{32}-[0-9]{1,18}-[0-9a-f]{32}")
_TRASH = re.compile(r"\.trash-[0-9a-f]{32}")
_TEMPORARY = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.[0-9]{1,10}\.new")
_TOKEN = re.compile(r"[0-9a-f]{32}")

# What a finished model leaves in a run directory ends so, and so do our own files.
_OF_MODELS = (".json", ".jsonl", ".safetensors", ".bin", ".pt", ".pth", ".model", ".jinja", ".md")

MANIFEST = "MANIFEST.json"
CONTROL = ".holdfast"
JOURNAL = "events.jsonl"

NUMBERS_END = 10**15
"""Steps and the numbers of commits are below this."""


def is_component(name: str) -> bool:
    """Tells whether `name` may be part of a path: letters, digits, `.`, `_`, `-`; at most 100; no leading dot."""
    return _COMPONENT.fullmatch(name) is not None


def is_relative_path(path: str) -> bool:
    """Tells whether `path` may name a file inside a checkpoint: components joined by `/`, at most four of them."""
    *folders, last = path.split("/")
    if len(folders) > 3:
        return False
    for folder in folders:
        if not is_component(folder):
            return False
    return is_component(last) or (bool(folders) and _DISTRIBUTED.fullmatch(last) is not None)


def is_token(text: str) -> bool:
    """Tells whether `text` is an identity as we make them: 32 lower-case hexadecimal digits."""
    return _TOKEN.fullmatch(text) is not None


def is_reserved(name: str) -> bool:
    """Tells whether `name` has a meaning of its own in a run directory, so that no user may give it to a file."""
    return name.startswith(("checkpoint-", "superseded-", ".", f"{JOURNAL}.")) or name.endswith(_OF_MODELS)


def checkpoint(step: int) -> str:
    """Returns the final name of a checkpoint of `step`, as transformers has it."""
    return f"checkpoint-{step}"


def superseded(step: int, attempt: str) -> str:
    """Returns the name that a checkpoint takes when another of the same step needs its place."""
    return f"superseded-{step}-{attempt}"


def staging(run: str, step: int, attempt: str) -> str:
    """Returns the name of a directory that is being written. No tool takes it for a checkpoint."""
    return f".tmp-{run}-{step}-{attempt}"


def trash(token: str) -> str:
    """Returns the name that a directory takes when it is about to be deleted."""
    return f".trash-{token}"


def set_aside(name: str, token: str) -> str:
    """Returns the name that what lies in the place of something of ours, and is not ours, gets beside it."""
    return f"{name}.set-aside-{token}"


def temporary(name: str, thread: int) -> str:
    """Returns the name under which a thread writes what is to replace the file `name`: two may do so at once."""
    return f".{name}.{thread}.new"


def is_staging(name: str) -> bool:
    """Tells whether `name` is one that `staging` made."""
    return _STAGING.fullmatch(name) is not None


def is_trash(name: str) -> bool:
    """Tells whether `name` is one that `trash` made."""
    return _TRASH.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Tells whether `name` is one that `temporary` made."""
    return _TEMPORARY.fullmatch(name) is not None


def step_of(name: str) -> int | None:
    """Returns the step that a checkpoint's directory name speaks of; None where it is no such name."""
    if _CHECKPOINT.fullmatch(name) or _SUPERSEDED.fullmatch(name):
        return int(name.split("-")[1])
    return None
