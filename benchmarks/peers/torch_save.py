"""`torch.save` of one dictionary."""

from pathlib import Path

import torch

from benchmarks.peers.saver import Saver


class TorchSave(Saver):
    """The plain way of most loops."""

    title = "torch.save"
    package = "torch"

    def save(self, number: int) -> Path:
        """Writes one file."""
        state, path = self.state, self.folder / f"{number}.pt"
        torch.save({"model": state.saved.state_dict(), "optimizer": state.optimizer.state_dict()}, path)
        return path

    def load(self, path: Path) -> None:
        """Reads it whole, then copies."""
        found = torch.load(path, weights_only=True)
        self.state.saved.load_state_dict(found["model"])
        self.state.optimizer.load_state_dict(found["optimizer"])
