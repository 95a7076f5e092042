"""Runs a part of the program on a real directory, and writes down all that it does to the disk.

Nothing is really synced: what a sync is worth is up to the model. The program's changes are taken where it makes them,
at the functions of `os`, so what goes past the layer of `holdfast.store.files` is seen too; and what goes past `os` (a
built-in `open`) is found in the end, because the directory is compared with the model.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import holdfast
from crash.disk import TOP, Disk, Named, Synced, Told, Written
from holdfast.store import files
from holdfast.store.folder import Where, at

_SOURCE = str(Path(holdfast.__file__).parent) + os.sep
_real_open, _real_write, _real_pwrite, _real_rename = os.open, os.write, os.pwrite, os.rename
_real_unlink, _real_rmdir, _real_mkdir, _real_truncate = os.unlink, os.rmdir, os.mkdir, os.ftruncate
_real_rename_new = files.rename_new

# The path of a directory by its descriptor, and a name in it.
_THROUGH = re.compile("/proc/self/fd/([0-9]+)/(.+)")

Spot = tuple[int, str]
"""A name in a directory."""


class Recorder:
    """Adds to a disk's events what is done below a directory.

    Args:
        top: The directory, which holds what the disk shows.
        disk: The disk as it is; None: all that the directory holds is durable.
    """

    def __init__(self, top: Path, disk: Disk | None = None) -> None:
        self.top = top
        self.disk = disk if disk is not None else Disk.of(top)
        self._open: dict[int, int] = {}
        self._items: dict[Spot, int] = {(folder, name): item for item, (folder, name) in self.disk.names.items()}
        for event in self.disk.events:
            if isinstance(event, Named):
                self._forget(event.item)
                if event.folder is not None:
                    self._items[event.folder, event.name] = event.item

    @contextmanager
    def recording(self) -> Iterator[None]:
        """All that happens in the context is recorded."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "pwrite", "fsync", "rename", "unlink", "rmdir", "mkdir", "ftruncate"):
                patch.setattr(os, name, getattr(self, f"_{name}_seen"))
            patch.setattr(os, "fdatasync", self._fsync_seen)
            patch.setattr(os, "replace", self._rename_seen)
            patch.setattr(os, "remove", self._unlink_seen)
            patch.setattr(files, "rename_new", self._rename_new_seen)
            yield
        held = {path.relative_to(self.top).as_posix(): path for path in self.top.rglob("*")}
        seen = dict(self.disk.visible())
        assert set(held) == set(seen), "something was made or removed past the recorder"
        for name, path in held.items():
            assert path.is_dir() or path.read_bytes() == seen[name], f"{name} was written past the recorder"

    def tell(self, kind: str, value: str) -> None:
        """The program has let somebody know something."""
        self.disk.events.append(Told(kind, value))

    def _spot(self, path: Any, folder: int | None) -> Spot | None:
        """Where a path leads; None for one that is not below the directory."""
        text = os.fsdecode(path)
        if folder is None and (through := _THROUGH.fullmatch(text)):
            folder, text = int(through[1]), through[2]
        if folder is not None:
            if folder not in self._open or text == ".":  # a directory that is open, to be listed
                return None
            item = self._open[folder]
        elif text.startswith(f"{self.top}{os.sep}"):
            item, text = TOP, text.removeprefix(f"{self.top}{os.sep}")
        else:
            return None
        *above, name = Path(text).parts
        for part in above:
            item = self._items[item, part]
        return item, name

    def _new(self, spot: Spot, *, folder: bool) -> int:
        item = len(self.disk.folders) + len(self.disk.contents)
        if folder:
            self.disk.folders.add(item)
        else:
            self.disk.contents[item] = b""
        self._name(item, spot)
        return item

    def _name(self, item: int, spot: Spot) -> None:
        self._forget(item)
        self._items[spot] = item
        self.disk.events.append(Named(item, *spot, synced_by=spot[0]))

    def _forget(self, item: int) -> None:
        for spot in [spot for spot, other in self._items.items() if other == item]:
            del self._items[spot]

    def _lose_name(self, spot: Spot) -> None:
        item = self._items.pop(spot)
        self.disk.events.append(Named(item, None, "", synced_by=spot[0]))

    def _open_seen(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        spot = self._spot(path, dir_fd)
        fd = _real_open(path, flags, mode, dir_fd=dir_fd)
        self._open.pop(fd, None)
        if os.fsdecode(path) == str(self.top):
            self._open[fd] = TOP
        elif spot is not None:
            self._open[fd] = self._items[spot] if spot in self._items else self._new(spot, folder=False)
            assert not flags & os.O_TRUNC, "the model knows no truncation"
        return fd

    def _changed(self, fd: int) -> None:
        if fd in self._open:
            content = Path(f"/proc/self/fd/{fd}").read_bytes()
            self.disk.events.append(Written(self._open[fd], content))

    def _write_seen(self, fd: int, data: Any) -> int:
        written = _real_write(fd, data)
        self._changed(fd)
        return written

    def _pwrite_seen(self, fd: int, data: Any, offset: int) -> int:
        written = _real_pwrite(fd, data, offset)
        self._changed(fd)
        return written

    def _ftruncate_seen(self, fd: int, length: int) -> None:
        _real_truncate(fd, length)
        self._changed(fd)

    def _fsync_seen(self, fd: int) -> None:
        if fd in self._open:
            self.disk.events.append(Synced(self._open[fd], _place()))

    def _rename_seen(self, source: Any, target: Any, **folders: Any) -> None:
        _real_rename(source, target, **folders)
        self._renamed((source, folders.get("src_dir_fd")), (target, folders.get("dst_dir_fd")))

    def _rename_new_seen(self, source: Where, target: Where) -> None:
        _real_rename_new(source, target)
        self._renamed(at(source), at(target))

    def _renamed(self, source: tuple[Any, int | None], target: tuple[Any, int | None]) -> None:
        old, new = self._spot(*source), self._spot(*target)
        if old is not None and new is not None:
            self._name(self._items[old], new)

    def _unlink_seen(self, path: Any, *, dir_fd: int | None = None) -> None:
        spot = self._spot(path, dir_fd)
        _real_unlink(path, dir_fd=dir_fd)
        if spot is not None:
            self._lose_name(spot)

    def _rmdir_seen(self, path: Any, *, dir_fd: int | None = None) -> None:
        spot = self._spot(path, dir_fd)
        _real_rmdir(path, dir_fd=dir_fd)
        if spot is not None:
            self._lose_name(spot)

    def _mkdir_seen(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        _real_mkdir(path, mode, dir_fd=dir_fd)
        if (spot := self._spot(path, dir_fd)) is not None:
            self._new(spot, folder=True)


def _place() -> tuple[str, ...]:
    """The functions of the program that are running, the innermost first."""
    found = []
    frame = sys._getframe(2)
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(_SOURCE):
            module = frame.f_code.co_filename.removeprefix(_SOURCE)
            found.append(f"{module}:{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(found)
