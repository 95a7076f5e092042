"""accelerate's `save_state`."""

from pathlib import Path

from accelerate import Accelerator

from benchmarks.peers.saver import Saver
from benchmarks.states import State


class AccelerateState(Saver):
    """A directory with model, optimizer, schedule and random state."""

    title = "accelerate save_state"
    package = "accelerate"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._accelerator = Accelerator(cpu=state.device.type == "cpu")
        self._accelerator.prepare(state.model, state.optimizer, state.scheduler)

    def save(self, number: int) -> Path:
        """Writes the directory."""
        path = self.folder / str(number)
        self._accelerator.save_state(str(path))
        return path

    def load(self, path: Path) -> None:
        """Reads the directory."""
        self._accelerator.load_state(str(path))
