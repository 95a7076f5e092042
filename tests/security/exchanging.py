"""Lets somebody act before any one call of the program to the operating system, and exchanges directories there.

One account is enough: what is told by identity, and not by owner, must be told of a directory of the same user as well.
"""

import builtins
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast.store import files

# The calls that take a name, and those whose effect another directory could have by then.
_CALLS = (
    *("open", "stat", "lstat", "rename", "replace", "unlink", "rmdir", "mkdir", "scandir", "listdir", "chmod"),
    *("fchmod", "fsync", "statvfs", "readlink", "symlink", "link", "access", "truncate", "utime"),
)


@dataclass
class Calls:
    """The calls that were made meanwhile, by their names."""

    made: list[str] = field(default_factory=list)


@contextmanager
def before_each_call(action: Callable[[int], None]) -> Iterator[Calls]:
    """Calls `action` before each call to the system, with the number of calls before it.

    Other threads make theirs too; what `action` itself calls is not counted.
    """
    calls, acting, lock = Calls(), threading.local(), threading.Lock()

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not getattr(acting, "now", False):
                acting.now = True
                try:
                    with lock:
                        calls.made.append(name)
                        number = len(calls.made) - 1
                    action(number)
                finally:
                    acting.now = False
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(files, "_rename_new", watched("renameat2", files._rename_new))
        opened = watched("open", io.open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield calls


@dataclass
class Exchange:
    """Puts something else under a name, once: before a call of a certain number.

    Args:
        number: The number of the call.
        find: Returns the directory as it is called now; None where there is none yet: then the next call is as good.
        other: What is put in its place. It keeps its content and its modes, if nobody changes them.
        link: True where a link to `other` is put there, and `other` stays where it is.
    """

    number: int
    find: Callable[[], Path | None]
    other: Path
    link: bool = False
    aside: Path | None = None
    """The place that the directory has now; None where it was not exchanged."""

    def __call__(self, number: int) -> None:
        if self.aside is not None or number < self.number:
            return
        target = self.find()
        if target is None:
            return
        self.aside = target.with_name("moved-aside")
        target.rename(self.aside)
        if self.link:
            target.symlink_to(self.other)
        else:
            self.other.rename(target)


def number_of_calls(run: Callable[[], object]) -> int:
    """Counts the calls of something that is done."""
    with before_each_call(lambda number: None) as calls:
        run()
    return len(calls.made)


def tree_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a directory: modes and contents by their paths; the directory's own mode by an empty one."""
    found = {"": (folder.stat().st_mode, b"")}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, path.read_bytes() if path.is_file() else b"")
    return found
