"""The state of a mirror, as its process writes it down for the training and for `holdfast status`."""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from holdfast.run.directory import RunDirectory
from holdfast.store import files
from holdfast.store.folder import Place


@dataclass(frozen=True)
class State:
    """One look at a mirror. Times are seconds since the epoch.

    Args:
        url: The address of the place.
        term: The term of the start.
        mirrored: The newest checkpoint that is there: its `term`, `sequence`, `step`, `attempt`, and since when (`at`);
            None as long as there is none.
        uploading: The one that is on its way: `step`, `bytes` that are there by now, `of` how many.
        failing_since: The time of the first try that failed and that no good one has followed.
        why: The reason of the last failure.
        next_try_at: The time of the next try.
        taken_over: The words of the refusal, once another start has the run: nothing is sent any more.
        not_deleted: The reason why what should go from the mirror could not; empty while it can.
        not_pinned: The steps of those that are pinned here and cannot be there: they had been deleted there before.
        not_sent: The steps of those that are pinned here, and neither are there nor wait to be sent.
        endpoint: The address of the server; None: the cloud's own.
        region: The region of the bucket; None: as the environment has it.
    """

    url: str
    term: int
    mirrored: dict[str, Any] | None = None
    uploading: dict[str, Any] | None = None
    failing_since: float | None = None
    why: str = ""
    next_try_at: float | None = None
    taken_over: str = ""
    not_deleted: str = ""
    not_pinned: tuple[int, ...] = ()
    not_sent: tuple[int, ...] = ()
    endpoint: str | None = None
    region: str | None = None
    written_at: float = 0.0


_NUMBER, _NONE = (int, float), type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    "url": (str,),
    "term": (int,),
    "mirrored": (dict, _NONE),
    "uploading": (dict, _NONE),
    "failing_since": (*_NUMBER, _NONE),
    "why": (str,),
    "next_try_at": (*_NUMBER, _NONE),
    "taken_over": (str,),
    "not_deleted": (str,),
    "not_pinned": (list,),
    "not_sent": (list,),
    "endpoint": (str, _NONE),
    "region": (str, _NONE),
    "written_at": _NUMBER,
}
_PARTS: dict[str, dict[str, tuple[type, ...]]] = {
    "mirrored": {"term": (int,), "sequence": (int,), "step": (int,), "attempt": (str,), "at": _NUMBER},
    "uploading": {"step": (int,), "bytes": (int,), "of": (int,)},
}


def write(directory: RunDirectory, state: State) -> None:
    """Writes it down. Not synced: after a power cut nobody asks what a dead process was doing.

    Raises:
        OSError: The disk does not take it.
    """
    content = asdict(replace(state, written_at=time.time()))
    files.replace(_place(directory), json.dumps(content).encode(), durable=False)


def read(directory: RunDirectory) -> dict[str, Any]:
    """Returns what the mirror's process last said; nothing where that cannot be read, or is damaged."""
    content = directory.read_json(_place(directory))
    return content if isinstance(content, dict) and _is_one_of(content, _KINDS) else {}


def _is_one_of(content: dict[str, Any], kinds: dict[str, tuple[type, ...]]) -> bool:
    """Returns whether an object has these fields, each of one of its kinds, and so on in the objects in it."""
    if set(content) != set(kinds):
        return False
    for name, value in content.items():
        if type(value) not in kinds[name] or (isinstance(value, dict) and not _is_one_of(value, _PARTS[name])):
            return False
        if isinstance(value, list) and any(type(each) is not int for each in value):
            return False
    return True


def _place(directory: RunDirectory) -> Place:
    return directory.control / "mirror.json"
