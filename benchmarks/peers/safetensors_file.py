"""safetensors: one file of named tensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers.saver import Saver


class SafetensorsFile(Saver):
    """What a loop that avoids pickle writes by hand."""

    title = "safetensors save_file"
    package = "safetensors"

    def save(self, number: int) -> Path:
        """Writes one file."""
        path = self.folder / f"{number}.safetensors"
        save_file({name: tensor.detach() for name, tensor in self.state.tensors()}, path)
        return path

    def load(self, path: Path) -> None:
        """Reads it whole, then copies."""
        found = load_file(path, device=str(self.state.device))
        with torch.no_grad():
            for name, tensor in self.state.tensors():
                tensor.copy_(found[name])
