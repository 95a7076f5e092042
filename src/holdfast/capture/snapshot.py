"""A snapshot of the last boundary, taken from live tensors while training goes on."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.gate import Gate
from holdfast.capture.nonfinite import TensorRanges
from holdfast.capture.staging import Pool
from holdfast.capture.stream import Stream
from holdfast.capture.throttle import Throttle
from holdfast.capture.tripwire import Fingerprint, WriteDetector
from holdfast.errors import SaveError, TornError
from holdfast.state import environment
from holdfast.store.blocks import BlockFile, takes_direct_writes


@dataclass(frozen=True)
class Snapshot:
    """The state of one boundary, ready to be written.

    Args:
        boundary: Which boundary.
        write: Fills a directory with the files of the layout. Gives the digests of those that it took them of while it
            wrote.
        layout: The layout's name.
        estimate: About how many bytes it will take.
        versions: What a bit-exact continuation depends on.
        protected: Checkpoints that retention must not touch.
        world_size: How many processes train together.
        tensors: Gives, once all is written, which pieces of which tensors the files hold; several ranks share them.
        others: Gives then what the manifest says of the boundaries of the ranks from 1 up.
        not_finite: Gives then the names of tensors that hold NaN or infinity and should not, in any order.
    """

    boundary: Boundary
    write: Callable[[Path], Mapping[str, str]]
    layout: str
    estimate: int
    versions: Mapping[str, str] = field(default_factory=dict)
    protected: Iterable[Path] = ()
    world_size: int = 1
    tensors: Callable[[], Mapping[str, Any]] = dict
    others: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    not_finite: Callable[[], Sequence[str]] = tuple


class Subject(Protocol):
    """What is saved: the parts of a loop, or a trainer."""

    layout: str

    def parameters(self) -> Sequence[torch.Tensor]:
        """What the optimizers update."""

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors. Asked at every boundary, so it is cheap."""

    def live(self) -> Mapping[str, torch.Tensor]:
        """The tensors that stand still from a boundary to the next update, by name; the parameters first."""

    def to_be_finite(self) -> Mapping[str, torch.Tensor]:
        """Those of `live` in which NaN or infinity is a training that went wrong: not buffers, such as masks."""

    def unreadable(self) -> str:
        """Why the state can be read only while training stands still; empty when it can be read at any time."""

    def copied_buffers(self) -> Mapping[str, int]:
        """Large buffers that were seen to change, each with the bytes that copying it takes at every boundary."""

    def record(self) -> Any:
        """The small state, as of now. Called by training at every boundary."""

    def manifest_entry(self, recorded: Any) -> Mapping[str, Any]:
        """What the manifest says of the boundary."""

    def file_images(self, boundary: Boundary, directory: Path) -> Sequence[Image]:
        """The files to be; small ones may be written into the directory right away. Called with the gate shut."""

    def layout_pieces(self) -> Mapping[str, Any]:
        """Which pieces of which tensors the files of `file_images` hold; empty where they hold whole ones."""

    def rank0_digests(self, recorded: Any) -> Mapping[str, Any]:
        """Digests of what rank 0 writes for all ranks though each may have its own: who has another writes it too."""

    def estimated_bytes(self) -> int:
        """About how many bytes a checkpoint takes."""

    def protected(self, recorded: Any) -> Sequence[Path]:
        """Checkpoints that retention must not touch after the save of a boundary."""


class Snapshots:
    """Marks a subject's state at boundaries, and takes snapshots of it.

    Args:
        subject: What is saved.
        gate: Between training and the thread that takes snapshots.
        pool: The staging memory.
        pace: How fast, and how modestly, snapshots are written.
    """

    def __init__(self, subject: Subject, gate: Gate, pool: Pool, pace: Throttle | None = None) -> None:
        self._subject = subject
        self._gate = gate
        self._pool = pool
        self.pace = pace or Throttle()
        """May be changed from save to save."""
        self._direct: bool | None = None
        self._structure: Hashable = None
        self._live: Mapping[str, torch.Tensor] = {}
        self._net = WriteDetector({})
        self._places: tuple[list[int], TensorRanges] | None = None
        self.unreadable = ""
        """Why the state can be read only while training stands still; empty when it can be read at any time."""
        self.copied_buffers: Mapping[str, int] = {}
        """Large buffers that are copied at every boundary, each with its bytes."""
        self.streamed = False
        """Whether the last snapshot did not fit into the staging memory while training waited."""
        self.not_finite: Sequence[str] = ()
        """The tensors in which the last snapshot that was written has NaN or infinity and should not."""

    @property
    def writes(self) -> str:
        """How files are written: `direct`, past the page cache, or `buffered`; empty before the first was."""
        return "" if self._direct is None else "direct" if self._direct else "buffered"

    def mark(self) -> Fingerprint:
        """Marks how the state looks at a boundary. Called by training, or while it stands still."""
        structure = self._subject.structure()
        if structure != self._structure:
            self._live = self._subject.live()
            self._net = WriteDetector(self._live, len(self._subject.parameters()))
            self._places = None
            self._structure = structure
            self.unreadable = self._subject.unreadable()
            self.copied_buffers = self._subject.copied_buffers()
        return self._net.mark()

    def is_still_valid(self, boundary: Boundary) -> bool:
        """Whether the state still consists of the tensors that were marked at the boundary."""
        return boundary.mark is not None and self._subject.structure() == self._structure

    def of(self, boundary: Boundary) -> Snapshot:
        """The snapshot of a boundary, to be taken when it is written. The gate must be shut."""
        subject = self._subject
        small = subject.manifest_entry(boundary.recorded)
        return Snapshot(
            boundary=Boundary(boundary.step, boundary.face, small),
            write=lambda directory: self._write(boundary, directory),
            layout=subject.layout,
            estimate=subject.estimated_bytes(),
            versions=environment.record(),
            protected=subject.protected(boundary.recorded),
            tensors=subject.layout_pieces,
            not_finite=lambda: self.not_finite,
        )

    def rank0_digests(self, boundary: Boundary) -> Mapping[str, Any]:
        """What rank 0 tells the other ranks of a boundary before they write."""
        return self._subject.rank0_digests(boundary.recorded)

    def _write(self, boundary: Boundary, directory: Path) -> dict[str, str]:
        try:
            return self._stream(boundary, directory)
        except TornError as torn:
            if self._gate.holds(boundary.number):
                raise
            raise _left() from torn

    def _stream(self, boundary: Boundary, directory: Path) -> dict[str, str]:
        self._require_untouched(boundary)
        images = self._subject.file_images(boundary, directory)
        if self._direct is None:
            self._direct = takes_direct_writes(directory)
        after = boundary.mark.event if boundary.mark is not None else None
        with ExitStack() as opened:
            sinks = [
                opened.enter_context(BlockFile(directory / image.path, image.size, direct=self._direct))
                for image in images
            ]
            places = self._places_at(boundary)
            stream = Stream(
                images, sinks, self._pool, self._gate.training_waits, self._name_of, after, self.pace, places
            )
            try:
                stream.read()
                self._require_untouched(boundary)
                if not self._gate.open(boundary.number):
                    raise _left()
                self.streamed = stream.streamed
                stream.finish()
                self.not_finite = stream.not_finite
            finally:
                stream.close()
        return {image.path: sink.digests() for image, sink in zip(images, sinks, strict=True)}

    def _require_untouched(self, boundary: Boundary) -> None:
        if boundary.mark is not None and (changed := self._net.changed(boundary.mark, self._net.mark())):
            raise TornError(changed)

    def _places_at(self, boundary: Boundary) -> TensorRanges:
        """Where all is that is to be finite: as for the last save, unless weights have been given other memory."""
        pointers = boundary.mark.pointers if boundary.mark is not None else []
        if self._places is None or self._places[0] != pointers:
            self._places = (pointers, TensorRanges(self._subject.to_be_finite()))
        return self._places[1]

    def _name_of(self, tensor: torch.Tensor) -> str:
        plain = ((name, one) for name, one in self._live.items() if one.layout == torch.strided)
        return next((name for name, one in plain if one.data_ptr() == tensor.data_ptr()), "a tensor")


def _left() -> SaveError:
    return SaveError("the storage hung for so long that training went on before the snapshot was whole")


def why_not_live(live: Mapping[str, torch.Tensor]) -> str:
    """Why a state can be read only while training stands still; empty when it can be read at any time."""
    for name, tensor in live.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda"):
            return f"{name} is a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}"
    return ""
