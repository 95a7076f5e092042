"""A disk that fails: from inside the process, at any operation that changes it or reads from it."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from holdfast.store import files

# Every operation that changes what is on the disk. The commit core makes no change by any other.
CHANGES = ("make", "write", "fsync", "sync", "rename", "unlink", "rmdir", "mkdir", "chmod")
"""`make` makes a file; `fsync` is of a file, `sync` of a directory."""
READS = ("open", "read", "list")

_NAMES = {
    "write": ("write", "pwrite"),
    "rename": ("rename",),
    "unlink": ("unlink",),
    "rmdir": ("rmdir",),
    "mkdir": ("mkdir",),
    "chmod": ("chmod", "fchmod"),
    "read": ("read", "pread", "preadv"),
    "list": ("listdir", "scandir"),
}

Fate = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""What happens instead of an operation. It is given the operation and what that was called with."""


class FailingDisk:
    """Counts operations, and has one of them meet its fate, or all from one on.

    Args:
        kinds: Which operations count.
        at: The first that fails, counted from 1.
        fate: What happens to it.
        lasting: Whether all later ones fail too.
    """

    def __init__(self, kinds: Iterable[str], at: int, fate: Fate, *, lasting: bool = False) -> None:
        self.kinds = frozenset(kinds)
        self.left = at
        self.fate = fate
        self.lasting = lasting

    @property
    def failed(self) -> bool:
        """Whether any operation has met its fate."""
        return self.left <= 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """From now on, as long as the patch holds."""
        for kind, names in _NAMES.items():
            for name in names if kind in self.kinds else ():
                patch.setattr(os, name, self._wrapped(getattr(os, name)))
        if "rename" in self.kinds:
            patch.setattr(files, "rename_new", self._wrapped(files.rename_new))
        patch.setattr(os, "open", self._wrapped_open(os.open))
        patch.setattr(os, "fsync", self._wrapped_fsync(os.fsync))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            return self.fate(real, args) if self._due() else real(*args, **kwargs)

        return operation

    def _wrapped_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def operation(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
            kind = "make" if flags & os.O_CREAT else "open"
            if kind in self.kinds and self._due():
                return self.fate(real, (path, flags, *args))
            return real(path, flags, *args, **kwargs)

        return operation

    def _wrapped_fsync(self, real: Callable[[int], None]) -> Callable[[int], Any]:
        def operation(fd: int) -> Any:
            kind = "sync" if os.path.isdir(f"/proc/self/fd/{fd}") else "fsync"  # noqa: PTH112 - a descriptor's
            return self.fate(real, (fd,)) if kind in self.kinds and self._due() else real(fd)

        return operation

    def _due(self) -> bool:
        self.left -= 1
        return self.left == 0 or (self.lasting and self.left < 0)


def fails_with(number: int) -> Fate:
    """The operation is not done, and reports this error."""

    def fate(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return fate


def is_cut_short(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Half of a write is done, and reported as no error."""
    fd, data, *rest = args
    return real(fd, bytes(data)[: max(1, len(data) // 2)], *rest)
