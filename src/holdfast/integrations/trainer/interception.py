"""The places where transformers and peft write, replaced while a training runs.

In the thread that saves, large files are not written by them but become files-to-be, which the engine fills from the
live tensors. Every other thread writes as ever.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from holdfast.layouts.image import Image
from holdfast.layouts.safetensors import writing as safetensors_writing
from holdfast.store import names

_thread = threading.local()


@contextmanager
def interceptors() -> Iterator[None]:
    """Makes the writers of safetensors interceptable, as long as the context is open.

    Where peft is there, its model card is rendered once.
    """
    import safetensors.torch
    from transformers import modeling_utils

    replacements: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (safetensors.torch, "save_file", _interceptable),
        (modeling_utils, "safe_save_file", _interceptable),
    ]
    try:
        from peft import peft_model
    except ImportError:
        pass
    else:
        from holdfast.integrations.trainer.peft_card import BlankCard

        replacements.append((peft_model, "safe_save_file", _interceptable))
        if hasattr(peft_model, "ModelCard"):
            replacements.append((peft_model, "ModelCard", lambda original: BlankCard))
    originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    for module, name, replacement in replacements:
        setattr(module, name, replacement(getattr(module, name)))
    quiet = _Quiet()
    log = logging.getLogger("transformers.trainer")
    log.addFilter(quiet)
    try:
        yield
    finally:
        log.removeFilter(quiet)
        for module, name, original in originals:
            setattr(module, name, original)


@contextmanager
def intercepted(images: list[Image], replaced: Mapping[int, torch.Tensor], directory: Path) -> Iterator[None]:
    """Collects what this thread gives to the writers of safetensors, instead of writing it.

    Args:
        images: Gets the files-to-be.
        replaced: Tensors that stand for others, by the data pointers of those.
        directory: The directory that the files are for.
    """
    _thread.interception = (images, replaced, directory)
    try:
        yield
    finally:
        _thread.interception = None


@contextmanager
def quietly(stand_in: Any, root: Path) -> Iterator[None]:
    """Has the trainer's log name the checkpoint that is to be, and not the directory where it is staged.

    Args:
        stand_in: The trainer's stand-in.
        root: The run directory.
    """
    final = root / names.checkpoint(stand_in.state.global_step)
    if stand_in.args.should_save:
        logging.getLogger("transformers.trainer").info(f"Saving model checkpoint to {final}")
    _thread.quiet = True
    try:
        yield
    finally:
        _thread.quiet = False


def _interceptable(original: Any) -> Any:
    def save_file(tensors: dict[str, torch.Tensor], filename: Any, metadata: dict[str, str] | None = None) -> None:
        interception = getattr(_thread, "interception", None)
        if interception is None:
            original(tensors, filename, metadata)
            return
        images, replaced, directory = interception
        content = {name: replaced.get(tensor.data_ptr(), tensor) for name, tensor in tensors.items()}
        path = Path(filename).relative_to(directory).as_posix()
        images.append(safetensors_writing.image(path, content, metadata or {}))

    return save_file


class _Quiet(logging.Filter):
    """Keeps out of the log what is not so.

    The staging directory's name: the final one is said when the checkpoint is there. That the best checkpoint does not
    exist: it is looked for beside the one that is resumed, where it is if the run was moved.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_thread, "quiet", False) and not str(record.msg).startswith("The best checkpoint ")
