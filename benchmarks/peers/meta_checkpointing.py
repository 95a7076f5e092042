"""Meta's torch_checkpointing: a copy into shared memory, and a process that writes."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointManager
from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from benchmarks.peers.saver import Saver
from benchmarks.states import State


class TorchCheckpointing(Saver):
    """`CheckpointManager.save`, asynchronous."""

    title = "torch_checkpointing"
    package = "torch_checkpointing"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        # Its direct writes are not aligned, and fail with EINVAL on ext4.
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        saving = AsyncCheckpointSaverConfig(process_config=CheckpointProcessConfig(subprocess_init_timeout_secs=120))
        self._manager = CheckpointManager(CheckpointManager.Config(save=saving, storage_config=storage))
        self._staging: Future[Any] | None = None
        self._writing: Future[Any] | None = None

    def _items(self) -> dict[str, Any]:
        return {"model": self.state.saved.state_dict(), "optimizer": self.state.optimizer.state_dict()}

    def save(self, number: int) -> Path:
        """Begins to copy."""
        path = self.folder / str(number)
        self._writing = self._manager.save(str(path), self._items())
        self._staging = self._manager._staging_future
        return path

    def gate(self) -> None:
        """Waits for the copy, as its `lock` does."""
        if self._staging is not None:
            self._staging.result()
            self._staging = None

    def wait(self) -> None:
        """Waits for the process."""
        assert self._writing is not None
        self._writing.result()

    def load(self, path: Path) -> None:
        """Reads into the live model; the optimizer takes a copy."""
        found = self._manager.load(str(path), into=self._items())
        self.state.optimizer.load_state_dict(found["optimizer"])

    def close(self) -> None:
        """Ends the process."""
        self._manager.close()
