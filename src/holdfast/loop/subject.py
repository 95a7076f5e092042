"""The state of a plain loop, as the engine saves it: its parts, the random generators, the position in the data."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.copying import why_not_live
from holdfast.capture.replicas import Content, Replicas
from holdfast.capture.subject import LiveSubject
from holdfast.devices.late import LateNumbers
from holdfast.layouts import native
from holdfast.loop.bodies import BodyTensors
from holdfast.loop.settings import LoopSettings
from holdfast.loop.shares import Share, content_of, parameters_of, share_of, share_of_gradients
from holdfast.state.data.position import EPOCHS, Position, is_past
from holdfast.state.data.position import WORD as DATA
from holdfast.state.gradients import Gradients
from holdfast.state.layered_optimizer import OptimizerPartOfAnyKind
from holdfast.state.likeness import alike
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_layers import with_inner
from holdfast.state.outside import Carried, Outside, OutsideRecord, carried_rest, owner_of
from holdfast.state.part import CARRIED, GRADIENTS, Stored
from holdfast.state.registry import Parts
from holdfast.state.rng import state as rng_state
from holdfast.state.sharding import ShardRange, local_of, range_of
from holdfast.store.folder import Folder


class LoopRecord(NamedTuple):
    """The small state of a plain loop at one boundary."""

    parts: list[Any]
    """The record of each part, in their order."""
    random: rng_state.RngRecord
    data: Any
    """The record of the position in the data; None where the loop has its own."""
    outside: OutsideRecord | None = None
    """The state in no part; None in ranks but the first, which carries it for all."""
    gradients: Mapping[str, torch.Tensor] | None = None
    """The gradients, by parameter; None where they do not go over boundaries."""
    epoch: int | None = None
    """The epoch whose body is to be gone on with; None where the loop does not count its epochs."""


class LoopData(Protocol):
    """The position of a loop in its data, as `state.data.cursor.DataCursor` has it."""

    redistribution: str

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0."""

    @property
    def consumed(self) -> int:
        """The number of its batches that were taken."""

    @property
    def where(self) -> str:
        """The position, for people."""

    def record(self) -> Position:
        """Records the position."""

    def encode(self, recorded: Position) -> dict[str, Any]:
        """Returns a position as JSON."""

    def restore(
        self,
        encoded: Mapping[str, Any],
        *,
        after_skip: Callable[[], object],
        replay: bool = False,
        saved_by: int = 1,
        processes: int = 1,
    ) -> list[str]:
        """Goes to a position; returns lines for the user."""

    def other_order(self, encoded: Any, saved_by: int, processes: int) -> str:
        """Returns a line where the rest of an epoch cannot be gone through in the order that it had."""


class LoopState:
    """The state of a plain loop: the parts that a `Checkpointer` was given, and the position of its loop.

    Args:
        parts: Models, optimizers and the rest.
        outside: The tensors that can be reached from those and are in none of them.
        generators: Random generators of the user's, by name.
        data: The position in the data; None where the loop has its own.
        protected: Checkpoints that retention must not touch.
        rank: The rank of this process.
        world_size: The number of processes that train together.
    """

    layout = native.NAME

    def __init__(
        self,
        parts: Parts,
        outside: Outside,
        generators: Mapping[str, torch.Generator],
        data: LoopData | None,
        protected: Sequence[Path],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.parts = parts
        self.outside = outside
        self.gradients = Gradients(parts.models)
        self.generators = generators
        self.data = data
        self.rank = rank
        self.world_size = world_size
        self.bodies = BodyTensors(parts)
        self.step: int | None = None
        """The optimizer steps taken, over all resumes; None before it is resumed."""
        self.epoch: int | None = None
        """The epoch whose body is being run, or comes next; None where the loop does not count its epochs."""
        self.begins_past_batches = False
        """True where it was resumed with all batches of that epoch taken."""
        self.given: LoopSettings | None = None
        """The settings that the script gives; there from the beginning of training on."""
        self._protected = protected
        self._recorded_at = (0, 0)
        # As of the last boundary at which they were looked up: while a forward runs, a module may show other ones.
        self._live: Mapping[str, Mapping[str, torch.Tensor]] = {}
        self._bytes = 0
        self._position_requires = self._body_requires = False
        self._last_outside: OutsideRecord | None = None
        self._carried = Carried()
        self._gradient_ranges: Mapping[str, ShardRange] = {}
        self._encoded: tuple[Any, dict[str, Stored]] = (None, {})
        self._shares: list[Share] = []
        self.replicas = Replicas()

    @property
    def has_parts(self) -> bool:
        """True where there is any state to save beside the step, the random state and the position in the data."""
        return bool(self.generators) or any(True for _ in self.parts)

    def as_live(self) -> LiveSubject:
        """Returns itself: its tensors are read from live memory."""
        return self

    def begin(self, late: LateNumbers | None) -> None:
        """Takes in that training begins, and how it reads numbers of cards."""
        self.gradients.begin(late)

    def parameters(self) -> list[torch.Tensor]:
        """Returns what the optimizers update."""
        return self.parts.parameters()

    def optimizers(self) -> list[object]:
        """Returns the optimizers, wrappers and those inside of them too."""
        parts = (part for part in self.parts if isinstance(part, OptimizerPartOfAnyKind))
        return [optimizer for part in parts for optimizer in with_inner(part.registered)]

    def structure(self) -> Hashable:
        """Returns something that differs when `live` would return other tensors."""
        return self.parts.structure(), self.bodies.number

    def live(self) -> dict[str, torch.Tensor]:
        """Returns all tensors that stand still between updates, by `part.name`: what this process has of them."""
        self._live = self.bodies.in_place(self.parts.live())
        whole = self._live_by_path()
        local = {path: local_of(tensor) for path, tensor in whole.items()}
        # Asked for at every save, and takes milliseconds where there are many tensors.
        self._bytes = sum(tensor.nbytes for tensor in local.values() if tensor.layout == torch.strided)
        return local

    def to_be_finite(self) -> dict[str, torch.Tensor]:
        """Returns the models' weights and the optimizers' state. What other objects keep may begin with infinity."""
        tensors = {}
        for part in self.parts:
            live = self._live.get(part.name, {})
            if isinstance(part, ModelPart):
                live = parameters_of(live)
            if isinstance(part, ModelPart | OptimizerPartOfAnyKind):
                tensors.update({f"{part.name}.{name}": local_of(tensor) for name, tensor in live.items()})
        return tensors

    def protect(self, path: Path) -> None:
        """Protects another checkpoint than before from retention: the one that was resumed from in the end."""
        self._protected = [path]

    def unreadable(self) -> str:
        """Says why the state can be read only while training stands still; empty where it can be read live."""
        return why_not_live({path: local_of(tensor) for path, tensor in self._live_by_path().items()})

    def copied_buffers(self) -> dict[str, int]:
        """Returns the large buffers of the models that were seen to change, and what else is copied like them."""
        gradients = {GRADIENTS: self.gradients.bytes} if self.gradients.bytes else {}
        return {**self.parts.moving_buffers(), **self.outside.copied, **gradients}

    @property
    def has_moving(self) -> bool:
        """True once something outside of all parts was seen to change."""
        return self._last_outside is not None and self.outside.has_moving

    def changed_since_boundary(self) -> list[str]:
        """Returns what has changed outside of all parts since the last boundary, in short."""
        if self._last_outside is None or not self.outside.has_moving:
            return []
        return sorted({owner_of(name) for name in self.outside.changed_since(self._last_outside)})

    def moved(self) -> Sequence[str]:
        """Returns what an epoch's body has changed since its last step, of what was not copied there."""
        return self.bodies.moved()

    def not_stepped(self) -> dict[str, torch.Tensor]:
        """Returns the large tensors that the rest of an epoch's body may change, by part and name."""
        return self.bodies.now(self.optimizers(), self._live)

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies such tensors: until the next boundary the copies are in their place in all that is saved."""
        self.bodies.copy(tensors, self._live)
        self._encoded = (None, {})

    def record(self) -> LoopRecord:
        """Records the small state, as of now."""
        self.bodies.release()
        if self.data is not None:
            self._recorded_at = self.data.epoch, self.data.consumed
        return self._record_now()

    def renewed(self, recorded: LoopRecord) -> LoopRecord:
        """Returns the small state as of now, unless the loop has its next batch already: that is to come once more."""
        if self.data is not None:
            epoch, consumed = self._recorded_at
            if (self.data.epoch, self.data.consumed) not in ((epoch, consumed), (epoch + 1, 0)):
                return recorded
        now = self._record_now()
        return recorded if alike(now, recorded) else now

    def _record_now(self) -> LoopRecord:
        self._last_outside = self.outside.record() if self.rank == 0 else None
        return LoopRecord(
            self.parts.record(),
            rng_state.record(self.generators),
            self.data.record() if self.data is not None else None,
            self._last_outside,
            self.gradients.record(),
            self.epoch,
        )

    def manifest_entry(self, recorded: LoopRecord) -> Mapping[str, Any]:
        """Returns none: the layout's own files hold all of it."""
        return {}

    def contents(self, boundary: Boundary) -> Mapping[str, Content]:
        """Returns what of each part is compared with the other ranks."""
        stored = self._encode(boundary)
        contents = {part.name: content_of(part, self._live[part.name], stored[part.name]) for part in self.parts}
        if (copies := boundary.recorded.gradients) is not None:
            contents[GRADIENTS] = Content(None, self.gradients.plain(copies), {})
        return contents

    def requires(self) -> Sequence[str]:
        """Returns the words for what is each rank's own, for what is in no part, and for what the position holds."""
        own = [word for share in self._shares for word in share.requires]
        carried = [CARRIED] if self._carried.tensors else []
        position = [*([DATA] if self._position_requires else []), *([EPOCHS] if self._body_requires else [])]
        return [*own, *carried, *position]

    def not_carried(self) -> Sequence[str]:
        """Returns a text for what changed outside of all parts and is in none of those files."""
        return self._carried.left_out

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings that the script gives."""
        return self.given.record() if self.given is not None else {}

    def protected(self, recorded: LoopRecord) -> Sequence[Path]:
        """Returns the checkpoint that was resumed from."""
        return self._protected

    def file_images(self, boundary: Boundary, folder: Folder) -> Sequence[Image]:
        """Returns the files-to-be of this process."""
        recorded: LoopRecord = boundary.recorded
        stored, rank, size = self._encode(boundary), self.rank, self.world_size
        self._shares = [
            share_of(part, self._live[part.name], stored[part.name], self.replicas.of(part.name), rank, size)
            for part in self.parts
        ]
        if recorded.outside is not None:
            self._carried = self.outside.at_save(recorded.outside)
        if recorded.gradients is None:
            self.gradients.saved_without(boundary.step)
        else:
            owned = self.replicas.of(GRADIENTS)
            self._shares.append(share_of_gradients(self.gradients, recorded.gradients, owned, rank, size))
            self._gradient_ranges = self.gradients.ranges(recorded.gradients) if size > 1 else {}
        extra: dict[str, Any] = {"training": {"step": boundary.step}, "random": recorded.random.encode()}
        if self.data is not None:
            extra["data"] = self.data.encode(recorded.data)
            if recorded.epoch is not None:
                extra["training"]["epoch"] = recorded.epoch
            self._body_requires = recorded.epoch is not None and is_past(extra["data"], recorded.epoch) is not False
            self._position_requires = recorded.data.requires
        return native.images(self._for_all(), extra, rank, size, {share.part: share.own for share in self._shares})

    def shard_range(self, part: str, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of a whole tensor of a checkpoint that this process needs; None where it needs all."""
        if part == GRADIENTS:
            return self.gradients.shard_range(name, shape)
        return self.parts.shard_range(part, name, shape)

    def neighbors(self, part: str, rest: Any) -> Mapping[str, torch.Tensor]:
        """Returns live tensors beside which tensors of a checkpoint will be that have no memory here yet."""
        if part == GRADIENTS:
            return self.gradients.neighbors()
        return self.parts.neighbors(part, rest)

    def layout_pieces(self) -> Mapping[str, Any]:
        """Returns what those files hold of whole tensors, where several processes write them."""
        if self.world_size == 1:
            return {}
        ranges: dict[str, Mapping[str, ShardRange]] = {}
        for share in self._shares:
            live = self._live.get(share.part, {})
            of_part = {name: range_of(tensor, f"{share.part}.{name}") for name, tensor in live.items()}
            known = self._gradient_ranges if share.part == GRADIENTS else of_part
            ranges[share.part] = {name: place for name, place in known.items() if name not in share.others}
        return native.pieces(self._for_all(), ranges, self.rank, self.world_size)

    def estimated_bytes(self) -> int:
        """Returns the bytes of the tensors that this process has, and some for the rest."""
        return self._bytes + (1 << 20)

    def _encode(self, boundary: Boundary) -> dict[str, Stored]:
        """Returns what was recorded at a boundary, encoded once: it is compared and written."""
        if self._encoded[0] is not boundary.recorded:
            self._encoded = (boundary.recorded, self.bodies.in_stored(self.parts.encode(boundary.recorded.parts)))
        return self._encoded[1]

    def _for_all(self) -> list[tuple[str, Mapping[str, torch.Tensor], Stored]]:
        """Returns what this process writes of what all have, as the layout takes it."""
        written = [(share.part, share.live, share.stored) for share in self._shares if not share.alone]
        if self._carried.tensors:
            written.append((CARRIED, self._carried.tensors, Stored({}, carried_rest())))
        return written

    def _live_by_path(self) -> dict[str, torch.Tensor]:
        return {f"{part}.{name}": tensor for part, live in self._live.items() for name, tensor in live.items()}
