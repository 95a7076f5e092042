"""torch.distributed.checkpoint: `save`, and `async_save` with its own stager and with one that keeps its memory."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from benchmarks.peers.saver import Saver
from benchmarks.states import State


class Dcp(Saver):
    """`save` of what `get_state_dict` gives."""

    title = "DCP save"
    package = "torch"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._options = StateDictOptions(ignore_frozen_params=state.saved is not state.model, strict=False)

    def _dictionary(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.state.model, self.state.optimizer, options=self._options)
        return {"model": model, "optimizer": optimizer}

    def save(self, number: int) -> Path:
        """Writes a directory."""
        path = self.folder / str(number)
        save(self._dictionary(), checkpoint_id=path, no_dist=True)
        return path

    def load(self, path: Path) -> None:
        """Reads into what `get_state_dict` gives, and sets that."""
        found = self._dictionary()
        load(found, checkpoint_id=path, no_dist=True)
        set_state_dict(
            self.state.model,
            self.state.optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
            options=self._options,
        )


class DcpAsync(Dcp):
    """`async_save` as it comes: copies first, writes in a thread."""

    title = "DCP async_save"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._stager: DefaultStager | None = None
        self._writing: Future[Any] | None = None

    def save(self, number: int) -> Path:
        """Copies, and begins to write."""
        path = self.folder / str(number)
        found = async_save(self._dictionary(), checkpoint_id=path, async_stager=self._stager, no_dist=True)
        assert isinstance(found, Future)
        self._writing = found
        return path

    def wait(self) -> None:
        """Waits for the thread."""
        assert self._writing is not None
        self._writing.result()
        self._writing = None  # it would keep the copy


class DcpAsyncCached(DcpAsync):
    """`async_save` with a stager that keeps its copy between saves."""

    title = "DCP async_save, cached stager"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        on_device = state.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(on_device, False, False, on_device))

    def close(self) -> None:
        """Gives the copy back."""
        assert self._stager is not None
        self._stager.close()
