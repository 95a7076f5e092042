"""File systems of a test's own in a file: small, of any kind, and with a power switch."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.harness import copy_of_base, needs
from helpers.waiting import wait_until

# Stops the file system as a power cut would: what its journal has not taken to the disk is gone.
_SHUTDOWN, _WITHOUT_THE_LOG = 0x8004587D, 2
_LEAST = {"ext4": 64 << 20, "xfs": 320 << 20}
KINDS = tuple(_LEAST)


class Disk:
    """A mounted file system."""

    def __init__(self, image: Path, mount: Path, options: str) -> None:
        self._image = image
        self._options = options
        self.root = mount

    def mount(self) -> None:
        """Mounts it; a second time after a cut, which replays its journal."""
        command = ["mount", "-o", f"loop,{self._options}", str(self._image), str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"SKIPPED, NOT PASSED: this kernel mounts no such file system: {done.stderr.strip()}")

    def unmount(self) -> None:
        """Unmounts it, and waits until nobody has it mounted: the copies of all mounts that some tests make count."""
        subprocess.run(["umount", str(self.root)], check=True)
        wait_until(lambda: not self._is_in_use(), 60, "the end of the last mount")

    def _is_in_use(self) -> bool:
        command = ["losetup", "--noheadings", "--associated", str(self._image)]
        return bool(subprocess.run(command, check=True, capture_output=True).stdout.strip())

    def with_base(self, name: str = "run") -> Path:
        """A run with one checkpoint on it, all of which has reached the disk."""
        run = copy_of_base(self.root / name)
        subprocess.run(["sync", "-f", str(self.root)], check=True)
        return run

    def cut_the_power(self) -> None:
        """Loses what was not synced, and mounts again."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
        finally:
            os.close(fd)
        self.unmount()
        self.mount()

    @property
    def device(self) -> str:
        """The name of the device below it, as /sys has it."""
        found = subprocess.run(["findmnt", "-no", "SOURCE", str(self.root)], check=True, capture_output=True, text=True)
        return Path(found.stdout.strip()).name


@contextmanager
def disk(folder: Path, kind: str = "ext4", *, options: str = "rw", made_with: tuple[str, ...] = ()) -> Iterator[Disk]:
    """A mounted file system that is gone at the end. Only root may; skips elsewhere."""
    needs("mount", "findmnt", "losetup", f"mkfs.{kind}", root=True)
    image, mount = folder / f"{kind}.image", folder / kind
    with image.open("wb") as file:
        file.truncate(_LEAST[kind])
    mount.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", *made_with, str(image)], check=True, capture_output=True)
    made = Disk(image, mount, options)
    made.mount()
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)
