"""The contract between a snapshot and what it is taken of: a plain loop's state, or a trainer's."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.replicas import Content, Replicas
from holdfast.devices.late import LateNumbers
from holdfast.store.folder import Folder


class Subject(Protocol):
    """The state that is saved: the parts of a loop, or a trainer."""

    layout: str

    def as_live(self) -> "LiveSubject | None":
        """Returns this subject if its tensors are read from live memory; None if a writer of its own gathers them."""

    def unreadable(self) -> str:
        """Returns why the state can be read only while training stands still; empty if it can be at any time."""

    def begin(self, late: LateNumbers | None) -> None:
        """Takes in that training begins, and how numbers of cards are read without waiting, if there are cards."""

    def record(self) -> Any:
        """Returns the small state, as of now. Called by training at every boundary."""

    def renewed(self, recorded: Any) -> Any:
        """Returns the small state as training goes on from it now, where no update was begun since it was recorded.

        Args:
            recorded: The record of the last boundary; returned itself where nothing has changed.
        """

    def manifest_entry(self, recorded: Any) -> Mapping[str, Any]:
        """Returns what the manifest says of a boundary."""

    def file_images(self, boundary: Boundary, folder: Folder) -> Sequence[Image]:
        """Returns the files to be; small ones may be written into the directory right away. The gate is shut."""

    def estimated_bytes(self) -> int:
        """Returns about how many bytes a checkpoint takes."""

    def requires(self) -> Sequence[str]:
        """Returns what the files of the last `file_images` have that a reader of format version 1 would get wrong."""

    def not_carried(self) -> Sequence[str]:
        """Returns a text for each thing that the files of the last `file_images` should hold and do not."""

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings of the training as its user gave them, as JSON."""

    def protected(self, recorded: Any) -> Sequence[Path]:
        """Returns the checkpoints that retention must not touch after the save of a boundary."""


class LiveSubject(Subject, Protocol):
    """A subject whose tensors are read from live memory, beside training."""

    replicas: Replicas
    """The comparison with the other ranks."""

    def parameters(self) -> Sequence[torch.Tensor]:
        """Returns the parameters that the optimizers update."""

    def optimizers(self) -> Sequence[object]:
        """Returns the optimizers, wrappers and those inside of them too."""

    def moved(self) -> Sequence[str]:
        """Returns the names of what training has changed since the last boundary, as it may in places."""

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors. Asked at every boundary: it is cheap."""

    def live(self) -> Mapping[str, torch.Tensor]:
        """Returns the tensors that stand still from a boundary to the next update, by name; the parameters first."""

    def to_be_finite(self) -> Mapping[str, torch.Tensor]:
        """Returns those of `live` in which NaN or infinity is a training gone wrong: not buffers, such as masks."""

    def copied_buffers(self) -> Mapping[str, int]:
        """Returns large buffers that were seen to change, and the bytes that copying each takes at every boundary."""

    def layout_pieces(self) -> Mapping[str, Any]:
        """Returns the pieces of tensors that the files of `file_images` hold; empty where they hold whole ones."""

    def contents(self, boundary: Boundary) -> Mapping[str, Content]:
        """Returns what is compared with the other ranks before anything is written, by part. The gate is shut."""
