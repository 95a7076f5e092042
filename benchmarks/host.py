"""What figures were measured on."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil
import torch


def describe(folder: Path, device: str) -> dict[str, str | int]:
    """The machine, as far as it decides about figures.

    Args:
        folder: Where was written.
        device: Where the state was.
    """
    cores, gigabytes, disk = os.cpu_count() or 1, round(psutil.virtual_memory().total / 2**30), _file_system(folder)
    accelerator = f"-{torch.cuda.get_device_name().replace(' ', '-').lower()}" if device == "cuda" else ""
    return {
        "class": f"{cores}-cores-{gigabytes}-gib-{disk}{accelerator}",
        "cores": cores,
        "memory in GiB": gigabytes,
        "file system": disk,
        "device": device,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What of each was installed."""
    return {package: metadata.version(package) for package in sorted(set(packages))}


def _file_system(folder: Path) -> str:
    folder = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
