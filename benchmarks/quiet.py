"""Savers that talk are asked to be quiet, so that nobody's progress bar is measured."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TALKERS = ("lightning.pytorch", "accelerate", "torch.distributed", "torch_checkpointing")


@contextmanager
def quiet() -> Iterator[None]:
    """No notices, warnings or progress bars of other libraries."""
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
