"""The conditions of a bit-exact continuation besides the state: versions, threads, devices."""

import os
import platform
from collections.abc import Mapping

import numpy as np
import torch


def record() -> dict[str, str]:
    """Returns the versions and the machine that training runs on, each as text."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "") if cuda else "",
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names what is no longer as it was: `torch 2.12.0 -> 2.13.0`."""
    keys = sorted(then.keys() & now.keys())
    return [f"{key} {then[key]} -> {now[key]}" for key in keys if then[key] != now[key]]
