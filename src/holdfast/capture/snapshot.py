"""Snapshots of the last boundary: what is saved, and how it is taken from live tensors while training goes on."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.device_stream import DeviceStream, follow
from holdfast.capture.gate import Gate
from holdfast.capture.hold import Hold, naming_loss
from holdfast.capture.nonfinite import TensorRanges
from holdfast.capture.replicas import Replicas
from holdfast.capture.staging import Pool
from holdfast.capture.stream import Stream
from holdfast.capture.subject import Subject
from holdfast.capture.throttle import Throttle
from holdfast.capture.tripwire import Fingerprint, Lanes, WriteDetector
from holdfast.devices.device import Device
from holdfast.errors import DeviceLostError, SaveError, TornError
from holdfast.state import environment
from holdfast.store.blocks import BlockFile, takes_direct_writes
from holdfast.store.folder import Folder


@dataclass(frozen=True)
class Snapshot:
    """The state of one boundary, ready to be written.

    Args:
        boundary: The boundary.
        write: Fills a directory with the files of the layout. Gives the digests of those that it took them of while it
            wrote.
        layout: The layout's name.
        estimated_bytes: About how many bytes it will take.
        versions: The versions and the machine that a bit-exact continuation depends on.
        protected: Checkpoints that retention must not touch.
        world_size: The number of processes that train together.
        tensors: Gives, once all is written, the pieces of tensors that the files hold; several ranks share them.
        others: Gives then what the manifest says of the boundaries of the ranks from 1 up.
        not_finite: Gives then the names of tensors that hold NaN or infinity and should not, in any order.
        requires: Gives then what a reader must know beyond version 1 of the format, in any order.
        settings: The settings of the training as its user gave them.
        not_carried: Gives then a text for each thing that the files should hold and do not.
    """

    boundary: Boundary
    write: Callable[[Folder], Mapping[str, str]]
    layout: str
    estimated_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    protected: Iterable[Path] = ()
    world_size: int = 1
    tensors: Callable[[], Mapping[str, Any]] = dict
    others: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    not_finite: Callable[[], Sequence[str]] = tuple
    requires: Callable[[], Sequence[str]] = tuple
    settings: Mapping[str, Any] = field(default_factory=dict)
    not_carried: Callable[[], Sequence[str]] = tuple


class Snapshots:
    """Takes fingerprints of a subject's state at boundaries, and snapshots of it.

    Args:
        subject: The state that is saved.
        gate: The gate between training and the thread that takes snapshots.
        pool: The staging memory.
        throttle: The limits to the writers.
        device: The device that some of the state is on; None where all is with the host.
    """

    def __init__(
        self, subject: Subject, gate: Gate, pool: Pool, throttle: Throttle | None = None, device: Device | None = None
    ) -> None:
        self._subject = subject
        self._live = subject.as_live()
        self._gate = gate
        self._pool = pool
        self.device = device
        """The device that some of the state is on; None where all is with the host."""
        self.state_bytes = 0
        """The size of the tensors that are read live, as of the last fingerprint."""
        self._lanes: Lanes = {}
        self.lost = ""
        """The reason why nothing on the device is touched any more; empty while it is there."""
        self.throttle = throttle or Throttle()
        """May be changed from save to save."""
        # What only a writer of its own can gather is that writer's to tell apart.
        self._incomparable = Replicas()
        self._direct: bool | None = None
        self._structure: Hashable = None
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._detector = WriteDetector({})
        self._ranges: tuple[list[int], TensorRanges] | None = None
        self.unreadable = subject.unreadable() if self._live is None else ""
        """The reason why the state can be read only while training stands still; empty if it can be at any time."""
        self.copied_buffers: Mapping[str, int] = {}
        """Large buffers that are copied at every boundary, each with its bytes."""
        self.streamed = False
        """True if the last snapshot did not fit into the staging memory while training waited."""
        self.not_finite: Sequence[str] = ()
        """The tensors in which the last snapshot that was written has NaN or infinity and should not."""

    @property
    def writes(self) -> str:
        """The way of writing files: `direct`, past the page cache, or `buffered`; empty before the first was."""
        return "" if self._direct is None else "direct" if self._direct else "buffered"

    def parameters(self) -> Sequence[torch.Tensor]:
        """Returns the parameters whose updates wait at the gate."""
        return self._live.parameters() if self._live is not None else ()

    def optimizers(self) -> Sequence[object]:
        """Returns the optimizers whose updates wait at the gate."""
        return self._live.optimizers() if self._live is not None else ()

    def fingerprint(self, lanes: Lanes | None = None) -> Fingerprint:
        """Takes the fingerprint of the state at a boundary. Called by training.

        Args:
            lanes: The lanes of cards that training is known to use, beside those that it is in.
        """
        if self._live is not None and (structure := self._live.structure()) != self._structure:
            self._tensors = self._live.live()
            parameters, weights = len(self._live.parameters()), self._live.to_be_finite()
            also = [] if self.device is None else [name for name in self._tensors if name not in weights]
            self._detector = WriteDetector(self._tensors, parameters, self.device, also)
            self._ranges = None
            self._structure = structure
            self.state_bytes = sum(t.nbytes for t in self._tensors.values() if t.layout == torch.strided)
            self.unreadable = self._live.unreadable() or self._why_not_on_cards()
            self.copied_buffers = self._live.copied_buffers()
        if self.device is not None:
            here, used = self.device.lane, lanes or {}
            self._lanes = {card: {here(card), *used.get(card, ())} for card in self._detector.cards}
        return self._detector.fingerprint(self._lanes)

    def fingerprint_of_blocked(self) -> Fingerprint:
        """Takes the fingerprint of the state while training stands still. Called by the thread that takes snapshots."""
        device = self.device
        if device is None:
            return self.fingerprint()
        lanes = self._lanes
        with naming_loss(device):
            device.enter_thread()
            for card, lane in ((card, lane) for card, used in lanes.items() for lane in used):
                device.follow(card, device.mark(lane))
            with device.ours():
                return self.fingerprint(lanes)

    def renewed(self, boundary: Boundary) -> Fingerprint | None:
        """Returns the fingerprint of the last boundary, or one of now where only objects have changed since.

        Weights and an optimizer's state are not written to between two updates: where they differ, they may have been
        swapped for an evaluation, and are not what training goes on from. On a card only the save itself will see it.
        """
        then = boundary.fingerprint
        if self._live is None or then is None or self._live.structure() != self._structure:
            return then
        if self.device is not None:
            self._lanes = {card: {self.device.lane(card), *lanes} for card, lanes in self._lanes.items()}
        now = self._detector.fingerprint(self._lanes)
        changed = self._detector.changed(then, now)
        if not changed or self._live.to_be_finite().keys() & set(changed):
            return then
        return now._replace(earlier_card_samples=then.card_samples)

    def moved(self) -> Sequence[str]:
        """Returns what training has changed since the last boundary, where it may: it can be saved no more."""
        return self._live.moved() if self._live is not None else ()

    def changed(self, then: Fingerprint) -> Sequence[str]:
        """Names what is seen to have changed since a fingerprint of this structure."""
        return list(dict.fromkeys([*self._detector.changed(then, self._detector.fingerprint()), *self.moved()]))

    def is_still_valid(self, boundary: Boundary) -> bool:
        """Tells if the state still consists of the tensors of a boundary's fingerprint."""
        same = self._live is None or self._live.structure() == self._structure
        return same and boundary.fingerprint is not None

    def of(self, boundary: Boundary) -> Snapshot:
        """Returns the snapshot of a boundary, which is taken when it is written. The gate must be shut."""
        subject = self._subject
        with self._behind(boundary):  # a loss that was recorded is on a card
            entry = subject.manifest_entry(boundary.recorded)
        return Snapshot(
            boundary=Boundary(boundary.step, boundary.stage, entry),
            write=partial(self._write, boundary),
            layout=subject.layout,
            estimated_bytes=subject.estimated_bytes(),
            versions=environment.record(),
            protected=subject.protected(boundary.recorded),
            tensors=self._layout_pieces,
            not_finite=lambda: self.not_finite,
            requires=lambda: subject.requires(),
            settings=subject.settings(),
            not_carried=lambda: subject.not_carried(),
        )

    @property
    def replicas(self) -> Replicas:
        """The comparison of the state with that of the other ranks, where there are some."""
        return self._live.replicas if self._live is not None else self._incomparable

    def tally(self, boundary: Boundary) -> Mapping[str, Any]:
        """Digests what this rank holds at a boundary, and returns what rank 0 tells the others. The gate is shut."""
        with self._behind(boundary):
            contents = self._live.contents(boundary) if self._live is not None else {}
            return self.replicas.tally(contents, self.device)

    def _layout_pieces(self) -> Mapping[str, Any]:
        return self._live.layout_pieces() if self._live is not None else {}

    @contextmanager
    def _torn_by_training(self, boundary: Boundary) -> Iterator[None]:
        """Turns what was torn because training went on into a save that failed: nothing wrote past the gate."""
        try:
            yield
        except TornError as torn:
            if self._gate.holds(boundary.number):
                raise
            raise _went_on() from torn

    def _write(self, boundary: Boundary, folder: Folder) -> dict[str, str]:
        """Streams the files of a boundary into a directory; returns the digests by their paths."""
        try:
            with ExitStack() as opened:
                with self._torn_by_training(boundary), self._behind(boundary):
                    self._require_untouched(boundary)
                    images = self._subject.file_images(boundary, folder)
                if self._live is not None:
                    self.copied_buffers = self._live.copied_buffers()
                stream = self._stream_from_host if self.device is None else self._stream_from_cards
                sinks = stream(boundary, images, folder, opened)
        except DeviceLostError as lost:
            self.lost = str(lost)
            raise
        return {image.path: sink.digests() for image, sink in zip(images, sinks, strict=True)}

    def _stream_from_host(
        self, boundary: Boundary, images: Sequence[Image], folder: Folder, opened: ExitStack
    ) -> Sequence[BlockFile]:
        """Streams files from the memory of the host: all is read twice before the gate opens."""
        with self._torn_by_training(boundary):
            sinks = self._open_files(images, folder, opened)
            stream = Stream(
                images,
                sinks,
                self._pool,
                self._gate.training_waits,
                self._name_of,
                self.throttle,
                self._ranges_at(boundary),
            )
            try:
                stream.read()
                self._let_go(boundary)
                self.streamed = stream.streamed
                stream.finish()
                self.not_finite = stream.not_finite
            finally:
                stream.close()
        return sinks

    def _stream_from_cards(
        self, boundary: Boundary, images: Sequence[Image], folder: Folder, opened: ExitStack
    ) -> Sequence[BlockFile]:
        """Streams files from cards: the gate opens when all copies are enqueued. Before that nothing else is done."""
        assert self.device is not None and self._live is not None and boundary.fingerprint is not None
        stream = DeviceStream(
            images,
            self.device,
            self._pool,
            self._gate.training_waits,
            boundary.fingerprint,
            self._detector,
            self._live.to_be_finite(),
            self._name_of,
            self.throttle,
        )
        try:
            with self._torn_by_training(boundary):
                if stream.enqueue(waits=False):
                    self._let_go(boundary, stream.hold())
            sinks = self._open_files(images, folder, opened)
            stream.start(sinks)
            with self._torn_by_training(boundary):
                if not stream.is_enqueued:
                    stream.enqueue(waits=True)
                    self._let_go(boundary, stream.hold())
            self.streamed = stream.streamed
            stream.finish()
            self.not_finite = stream.not_finite
        finally:
            stream.close()
        return sinks

    def _open_files(self, images: Sequence[Image], folder: Folder, opened: ExitStack) -> Sequence[BlockFile]:
        if self._direct is None:
            self._direct = takes_direct_writes(folder.through)
        return [
            opened.enter_context(BlockFile(folder.through / image.path, image.size, direct=self._direct))
            for image in images
        ]

    def _let_go(self, boundary: Boundary, hold: Hold | None = None) -> None:
        """Lets training go on: all is read, or what is still being read is held on its card."""
        if hold is not None and self._gate.only_when_blocked and self.device is not None:
            with naming_loss(self.device):
                hold.wait()
        self._require_untouched(boundary)
        if not self._gate.open(boundary.number, hold):
            raise _went_on()

    @contextmanager
    def _behind(self, boundary: Boundary) -> Iterator[None]:
        """Encloses work of this thread that reads the state of a boundary: on cards it comes behind its update."""
        if self.lost:
            raise DeviceLostError(self.lost)
        if self.device is None or boundary.fingerprint is None:
            yield
            return
        with naming_loss(self.device):
            self.device.enter_thread()
            follow(self.device, boundary.fingerprint)
            with self.device.ours():
                yield

    def _why_not_on_cards(self) -> str:
        if self.device is not None and self._detector.cards:
            return self.device.why_not_live()
        elsewhere = [name for name, tensor in self._tensors.items() if tensor.device.type not in ("cpu", "meta")]
        if not elsewhere or self.device is not None:
            return ""
        return f"{elsewhere[0]} was not on {self._tensors[elsewhere[0]].device} when training began"

    def _require_untouched(self, boundary: Boundary) -> None:
        then = boundary.fingerprint
        if then is not None and (changed := self.changed(then)):
            raise TornError(changed)

    def _ranges_at(self, boundary: Boundary) -> TensorRanges:
        """Returns the ranges of the last save, unless weights have been given other memory."""
        pointers = boundary.fingerprint.pointers if boundary.fingerprint is not None else []
        if self._ranges is None or self._ranges[0] != pointers:
            self._ranges = (pointers, TensorRanges(self._live.to_be_finite() if self._live is not None else {}))
        return self._ranges[1]

    def _name_of(self, tensor: torch.Tensor) -> str:
        plain = ((name, other) for name, other in self._tensors.items() if other.layout == torch.strided)
        return next((name for name, other in plain if other.data_ptr() == tensor.data_ptr()), "a tensor")


def _went_on() -> SaveError:
    return SaveError("the storage hung for so long that training went on before the snapshot was whole")
