"""What every way to save is measured through."""

from pathlib import Path
from typing import ClassVar

from benchmarks.states import State


class Saver:
    """One way to save a state, as its documentation has it.

    Args:
        state: What is saved.
        folder: Where; it exists, and is the saver's own.
    """

    title: ClassVar[str]
    """How tables call it."""
    package: ClassVar[str]
    """The distribution that it comes from."""
    syncs: ClassVar[bool] = False
    """Whether everything is on disk, directories too, when it says that it is done."""

    def __init__(self, state: State, folder: Path) -> None:
        self.state = state
        self.folder = folder

    def prepare(self) -> None:
        """What comes before a save and is no part of it."""

    def save(self, number: int) -> Path:
        """Saves; returns as soon as it lets training go on. Gives the file or directory that will be there."""
        raise NotImplementedError

    def gate(self) -> None:
        """Waits until the tensors may be changed. Nothing for those that return only then."""

    def wait(self) -> None:
        """Waits until the saver says that it is done."""

    def boundary(self) -> None:
        """Hears that an update is done."""

    def load(self, path: Path) -> None:
        """Puts everything back into the live state."""
        raise NotImplementedError

    def after_load(self) -> None:
        """What comes after a load and is no part of it."""

    def close(self) -> None:
        """Ends threads and processes, and gives memory back."""
