"""A request and its answer, and the files that they are read from and written to."""

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from holdfast.errors import ConfigError
from holdfast.store import names
from holdfast.store.manifest import in_short
from holdfast.text import quoted, shown

Door = Literal["trigger_file", "signal", "command", "python", "schedule", "exception"]

MOST_LABEL_BYTES = 4096
MOST_BYTES = 64 << 10
# What a library says of a failure can be longer than an answer may be; the beginning tells what it was.
_MOST_ERROR = 2000
_END_OF_TIME = 2.0**40  # seconds; also keeps out NaN, which cannot be sorted


Data = bytes  # `Answer` has a field of that name

IN_NO_FILE = ("note", "labels", "slots", "attempt")
"""The fields of an answer that are for its own process."""


class MalformedError(ValueError):
    """A request or an answer that is not one."""


@dataclass(frozen=True)
class Request:
    """A request for a save.

    Args:
        door: The way it came in.
        stop: True where training should end after the save; otherwise it goes on.
        label: The asker's name for the checkpoint; never part of a path.
        why: The event that set it off, for people: `SIGTERM`, `axolotl_checkpoint.save`, `holdfast save`.
        id: Its identity.
        asked_at: The time, in seconds since the epoch.
        pid: The process that asked.
        slot: The slot that the checkpoint is to have, in place of the one before it; empty for none.
        at: The number of the boundary at which training itself asked for it; None where it did not. In no file.
    """

    door: Door
    stop: bool = False
    label: str = ""
    why: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked_at: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)
    slot: str = ""
    at: int | None = None

    def encode(self) -> bytes:
        """Returns the bytes of the request's file."""
        content = asdict(self)
        del content["at"]
        if not self.slot:
            del content["slot"]
        return json.dumps(content, indent=1).encode()

    def reason(self) -> dict[str, Any]:
        """Returns the manifest's entry for the request."""
        reason = {
            "id": self.id,
            "door": self.door,
            "why": self.why,
            "label": self.label,
            "asked_at": self.asked_at,
        }
        return {**reason, "slot": self.slot} if self.slot else reason


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Args:
        saved: True where there is a durable checkpoint.
        path: The checkpoint's path, where `saved`.
        step: The step that it holds, or that the save was tried at.
        bytes: The size of its files.
        seconds: From the beginning of the save to its durable end.
        digest: The sha256 that ends its manifest.
        error: The reason, where not `saved`.
        durable: False where the file system cannot promise that names survive a power cut.
        answered_at: Seconds since the epoch.
        not_finite: Tensors that hold NaN or infinity and should not, as the manifest names them.
        finite: The name of the newest checkpoint without such, where there are any; empty if there is none.
        not_carried: A text for each thing that should be in the checkpoint and is not: its name, and why.
        claimed: The place where the trigger file that asked is kept, if there was text in it; empty otherwise.
        note: The difference between what was asked for and what was saved; for who asked in Python, and in no file.
        labels: The labels of all whom the save is for; in no file.
        slots: The slots that the checkpoint has been given; in no file.
        attempt: The attempt that has written the checkpoint, whose name it has when another takes its; in no file.
    """

    saved: bool
    path: str = ""
    step: int = 0
    bytes: int = 0
    seconds: float = 0.0
    digest: str = ""
    error: str = ""
    durable: bool = True
    answered_at: float = field(default_factory=time.time)
    not_finite: Sequence[str] = ()
    finite: str = ""
    not_carried: Sequence[str] = ()
    claimed: str = ""
    note: str = ""
    labels: Sequence[str] = ()
    slots: Sequence[str] = ()
    attempt: str = field(default="", compare=False)

    def encode(self, request: str) -> Data:
        """Returns the bytes of the answer's file, for the request of that id."""
        content = {"request": request, **asdict(self), "error": self.error[:_MOST_ERROR]}
        for name in IN_NO_FILE:
            del content[name]
        if not self.not_finite:
            del content["not_finite"], content["finite"]
        if not self.not_carried:
            del content["not_carried"]
        if not self.claimed:
            del content["claimed"]
        return json.dumps(content, indent=1).encode()

    def line(self, trigger: str) -> str:
        """Returns one line to print and to grep for."""
        if self.saved:
            return (
                f"checkpoint saved step={self.step} path={shown(self.path)} bytes={self.bytes}"
                f" seconds={self.seconds:.3f} trigger={trigger}{self._tell_of_numbers()}{self._tell_of_the_rest()}"
            )
        return f"checkpoint failed step={self.step} trigger={trigger} error={shown(_one_line(self.error))}"

    def _tell_of_numbers(self) -> str:
        if not self.not_finite:
            return ""
        beside = f"and so is {shown(self.finite)}, the newest without" if self.finite else "and there is none without"
        return f"; it holds NaN or infinity in {shown(_one_line(in_short(self.not_finite)))}: it is kept, {beside}"

    def _tell_of_the_rest(self) -> str:
        if not self.not_carried:
            return ""
        first, *others = self.not_carried
        return f"; it does not carry {shown(_one_line(first))}{f', and {len(others)} more' if others else ''}"


def clean_label(data: bytes) -> str:
    """Returns a label from bytes that anybody may have written: one printable line, of 4 KiB at most."""
    text = data[:MOST_LABEL_BYTES].decode("utf-8", errors="replace")
    return _one_line(text)


def checked_label(label: str) -> bytes:
    """Returns the bytes of a label that may be one.

    Raises:
        ConfigError: It is no text, or too long.
    """
    if not isinstance(label, str):
        raise ConfigError([f"label: {quoted(label)} is no text"])
    data = label.encode(errors="replace")
    if len(data) > MOST_LABEL_BYTES:
        raise ConfigError([f"label: has {len(data)} bytes, and a label has at most {MOST_LABEL_BYTES}"])
    return data


def checked_slot(slot: str, *, stop: bool = False) -> str:
    """Returns a slot that may be one.

    Args:
        slot: Its name; empty for none.
        stop: True where training is to end after the save.

    Raises:
        ConfigError: It is no name, or the save is that of a stop.
    """
    if slot and not (isinstance(slot, str) and names.is_component(slot)):
        raise ConfigError([f"slot: {slot!r} is no name; letters, digits, '.', '_' and '-' make one, 100 at most"])
    if slot and stop:
        raise ConfigError(["slot: the save of a stop cannot have one: it is of whichever boundary comes in time"])
    return slot


def decode_request(data: bytes) -> Request:
    """Reads a request's file, which another process wrote.

    Raises:
        MalformedError: It is not a request.
    """
    content = _object(data)
    if content.get("door") not in get_args(Door) or not names.is_token(str(content.get("id"))):
        raise MalformedError("it names no door, or no identity")
    kinds: dict[str, Any] = {"stop": bool, "label": str, "why": str, "asked_at": (int, float), "pid": int}
    if "slot" in content:
        kinds |= {"slot": str}
    _check(content, kinds | {"door": str, "id": str})
    if "slot" in content and not names.is_component(content["slot"]):
        raise MalformedError("its slot is no name")
    if not 0 <= content["asked_at"] < _END_OF_TIME:
        raise MalformedError("its asked_at is no time")
    cleaned = {key: clean_label(content[key].encode(errors="replace")) for key in ("label", "why")}
    return Request(**{**content, **cleaned})


def decode_answer(data: bytes) -> Answer:
    """Reads an answer's file.

    Raises:
        MalformedError: It is not an answer.
    """
    content = _object(data)
    content.pop("request", None)
    number = (int, float)
    kinds: dict[str, Any] = {"saved": bool, "path": str, "step": int, "bytes": int, "seconds": number}
    kinds |= {"digest": str, "error": str, "durable": bool, "answered_at": number}
    if "not_finite" in content:
        kinds |= {"not_finite": list, "finite": str}
    if "not_carried" in content:
        kinds |= {"not_carried": list}
    if "claimed" in content:
        kinds |= {"claimed": str}
    _check(content, kinds)
    if not all(isinstance(name, str) for name in content.get("not_finite", ())):
        raise MalformedError("its not_finite names something that is no tensor")
    if not all(isinstance(text, str) for text in content.get("not_carried", ())):
        raise MalformedError("its not_carried is no list of texts")
    lists = {name: tuple(content.get(name, ())) for name in ("not_finite", "not_carried")}
    return Answer(**{**content, **lists})


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError("it is not JSON") from error
    if not isinstance(content, dict):
        raise MalformedError("it is not a JSON object")
    return content


def _check(content: dict[str, Any], kinds: dict[str, Any]) -> None:
    if set(content) != set(kinds):
        raise MalformedError("it has other fields than it should have")
    for key, kind in kinds.items():
        if not isinstance(content[key], kind) or (kind is not bool and isinstance(content[key], bool)):
            raise MalformedError(f"its {key} is of the wrong kind")
