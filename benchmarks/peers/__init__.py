"""Other ways to save, each behind the same few methods."""

import importlib
from collections.abc import Sequence

from benchmarks.peers.saver import Saver

_WHERE = {
    "hf": ("trainer", ["TrainerSave"]),
    "torch": ("torch_save", ["TorchSave"]),
    "safetensors": ("safetensors_file", ["SafetensorsFile"]),
    "dcp": ("dcp", ["Dcp"]),
    "dcp_async": ("dcp", ["DcpAsync", "DcpAsyncCached"]),
    "lightning": ("lightning_io", ["LightningAsync"]),
    "accelerate": ("accelerate_state", ["AccelerateState"]),
    "torch_checkpointing": ("meta_checkpointing", ["TorchCheckpointing"]),
}

NAMES = tuple(_WHERE)


def found(names: Sequence[str]) -> tuple[dict[str, type[Saver]], list[str]]:
    """The savers of some peers, by class name, and a line for each peer that is not installed."""
    savers: dict[str, type[Saver]] = {}
    missing = []
    for name in names:
        module, classes = _WHERE[name]
        try:
            loaded = importlib.import_module(f"benchmarks.peers.{module}")
        except ImportError as error:
            missing.append(f"{name}: left out, {error.name} is not installed (pip install -e '.[bench]')")
            continue
        savers |= {classname: getattr(loaded, classname) for classname in classes}
    return savers, missing
