"""What was checked and what is used are the same, whatever is swapped in between."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.loops import Loop, train
from holdfast.errors import CheckpointError


class Swap:
    """Puts something else in the place of a file right before a file of its checkpoint is opened for the n-th time.

    Args:
        target: The file.
        other: What takes its place.
        count: How many openings, of any file of the checkpoint, it waits for.
    """

    def __init__(self, target: Path, other: Path, count: int) -> None:
        self._target = target
        self._other = other
        self._names = {path.name for path in target.parent.iterdir()}
        self._left = count
        self._lock = threading.Lock()
        self.done = False

    def saw(self, path: Any) -> None:
        """A file is about to be opened."""
        with self._lock:
            if self.done or not isinstance(path, str | Path) or Path(path).name not in self._names:
                return
            self._left -= 1
            if self._left == 0:
                self.done = True
                self._other.replace(self._target)


_swap: Swap | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _swap is not None:
        _swap.saw(arguments[0])


sys.addaudithook(_watch)


@contextmanager
def swapping(swap: Swap) -> Iterator[None]:
    global _swap
    _swap = swap
    try:
        yield
    finally:
        _swap = None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one training, an earlier and a later one."""
    root = tmp_path_factory.mktemp("races")
    train(root, 4, save_steps=2)
    return root / "checkpoint-2", root / "checkpoint-4"


def resumed(folder: Path, checkpoint: Path) -> str | None:
    """What a loop holds that is resumed from a checkpoint; None where that was refused."""
    try:
        loop = Loop(folder, resume=str(checkpoint))
        with loop.ckpt:
            loop.ckpt.resume()
    except CheckpointError:
        return None
    return loop.digest()


def as_a_file(other: Path, place: Path) -> None:
    shutil.copy(other, place)


def as_a_link(other: Path, place: Path) -> None:
    place.symlink_to(other)


NAMES = ("model.safetensors", "optimizer.safetensors", "scheduler.json", "MANIFEST.json")
LINKS = in_full("each as a file, and one as a link, stay")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, as_a_file) for name in NAMES),
        *(pytest.param(name, as_a_link, marks=() if name == "optimizer.safetensors" else LINKS) for name in NAMES),
    ],
)
def test_security_s08_a_resume_takes_what_was_checked_or_refuses_it_whenever_a_file_is_swapped(
    tmp_path: Path,
    checkpoints: tuple[Path, Path],
    name: str,
    kind: Callable[[Path, Path], None],
    record_property: Callable[[str, object], None],
) -> None:
    """A file is replaced by that of a later checkpoint before the n-th opening of any file, for each n."""
    earlier, later = checkpoints
    whole = resumed(tmp_path / "whole", earlier)
    assert whole is not None
    count, refused = 0, 0
    while True:
        count += 1
        folder = tmp_path / str(count)
        checkpoint = folder / "from" / earlier.name
        shutil.copytree(earlier, checkpoint)
        kind(later / name, folder / "other")
        swap = Swap(checkpoint / name, folder / "other", count)
        with swapping(swap):
            found = resumed(folder / "run", checkpoint)
        if not swap.done:
            break
        assert found in (None, whole), f"it was swapped before opening {count}, and used"
        refused += found is None
    assert found == whole and count > 3 and refused
    record_property("injected", count - 1)
