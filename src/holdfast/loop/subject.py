"""The state of a plain loop, as the engine saves it: its parts, the random generators, the position in the data."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.snapshot import LiveSubject, why_not_live
from holdfast.layouts import native
from holdfast.state.buffers import differing_from_rank0, digests
from holdfast.state.data.cursor import DataCursor
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.part import Part, Stored
from holdfast.state.rng import state as random_state
from holdfast.state.sharding import ShardRange, local_of, range_of, written_by


class LoopState:
    """What a `Checkpointer` was given, and where its loop stands.

    Args:
        parts: Models, optimizers and the rest.
        generators: Random generators of the user's, by name.
        data: The position in the data; None where the loop has its own.
        protected: Checkpoints that retention must not touch.
        rank: Which of the processes that train together this is.
        world_size: How many there are.
    """

    layout = native.NAME

    def __init__(
        self,
        parts: Sequence[Part],
        generators: Mapping[str, torch.Generator],
        data: DataCursor | None,
        protected: Sequence[Path],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # Models first: their parameters are what may be swapped behind our back.
        self.parts = sorted(parts, key=lambda part: not isinstance(part, ModelPart))
        self.generators = generators
        self.data = data
        self.rank = rank
        self.world_size = world_size
        self._spared = protected
        # As of the last boundary at which they were looked up: while a forward runs, a module may show other ones.
        self._held: dict[str, Mapping[str, torch.Tensor]] = {}
        self._is_local = False
        self._bytes = 0
        self._written: list[tuple[str, Mapping[str, torch.Tensor], Stored]] = []

    def as_live(self) -> LiveSubject:
        """Returns itself: its tensors are read from live memory."""
        return self

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizers update."""
        return [tensor for part in self.parts if isinstance(part, ModelPart) for tensor in part.live().values()]

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors."""
        return tuple(part.structure() for part in self.parts)

    def live(self) -> dict[str, torch.Tensor]:
        """All tensors that stand still between updates, by `part.name`: what this process has of them."""
        self._held = {part.name: part.live() for part in self.parts}
        held = [(f"{part}.{name}", one) for part, held in self._held.items() for name, one in held.items()]
        found = {name: local_of(one) for name, one in held}
        # Both are asked for at every save, and take milliseconds where there are many tensors.
        self._is_local = all(found[name] is one for name, one in held)
        self._bytes = sum(tensor.nbytes for tensor in found.values() if tensor.layout == torch.strided)
        return found

    def to_be_finite(self) -> dict[str, torch.Tensor]:
        """The models' weights and the optimizers' state. What other objects keep may begin with infinity."""
        found = {}
        for part in self.parts:
            if isinstance(part, ModelPart | OptimizerPart):
                held = self._held.get(part.name, {})
                every = isinstance(part, OptimizerPart)
                weights = {name: one for name, one in held.items() if every or isinstance(one, torch.nn.Parameter)}
                found.update({f"{part.name}.{name}": local_of(one) for name, one in weights.items()})
        return found

    def place(self, part: str, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Which range of a whole tensor of a checkpoint this process needs; None where it needs all."""
        found = next((one for one in self.parts if one.name == part), None)
        return None if found is None else found.shard_range(name, shape)

    def memory(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """The live memory that tensors of a checkpoint may be read into, by part and name."""
        return {part.name: part.memory() for part in self.parts}

    def spare(self, path: Path) -> None:
        """Has retention spare another checkpoint than before: the one that was resumed from in the end."""
        self._spared = [path]

    def unreadable(self) -> str:
        """Why the state can be read only while training stands still."""
        held = self._held.items()
        return why_not_live({f"{part}.{name}": local_of(one) for part, all_ in held for name, one in all_.items()})

    def copied_buffers(self) -> dict[str, int]:
        """Large buffers of the models that were seen to change."""
        models = (part for part in self.parts if isinstance(part, ModelPart))
        return {f"{model.name}.{name}": size for model in models for name, size in model.moving_buffers.items()}

    def record(self) -> Any:
        """The small state, as of now."""
        return (
            [part.record() for part in self.parts],
            random_state.record(self.generators),
            self.data.record() if self.data is not None else None,
        )

    def manifest_entry(self, recorded: Any) -> Mapping[str, Any]:
        """Nothing: the layout's own files hold all of it."""
        return {}

    def rank0_digests(self, recorded: Any) -> Mapping[str, Any]:
        """Digests of the buffers that rank 0 writes."""
        models = self._buffers(recorded)
        return {name: digests(buffers) for name, buffers in models.items()}

    def file_images(self, boundary: Boundary, directory: Path) -> Sequence[Image]:
        """The files to be, of this process."""
        records, random, data = boundary.recorded
        self._written = [
            (part.name, self._own(part), part.encode(record)) for part, record in zip(self.parts, records, strict=True)
        ]
        extra: dict[str, Any] = {"training": {"step": boundary.step}, "random": random.encode()}
        if self.data is not None:
            extra["data"] = self.data.encode(data)
        return native.images(self._written, extra, self.rank, self.world_size, self._own_buffers(boundary))

    def layout_pieces(self) -> Mapping[str, Any]:
        """What those files hold of whole tensors, where several processes write them."""
        if self.world_size == 1:
            return {}
        places = {
            part: {name: range_of(one, f"{part}.{name}") for name, one in held.items()}
            for part, held in self._held.items()
        }
        return native.pieces(self._written, places, self.rank, self.world_size)

    def estimated_bytes(self) -> int:
        """The bytes of the tensors that this process has, and some for the rest."""
        return self._bytes + (1 << 20)

    def _buffers(self, recorded: Any) -> dict[str, dict[str, torch.Tensor]]:
        """The buffers of each model that may change, as of a boundary."""
        pairs = zip(self.parts, recorded[0], strict=True)
        return {part.name: part.buffers(record) for part, record in pairs if isinstance(part, ModelPart)}

    def _own_buffers(self, boundary: Boundary) -> dict[str, dict[str, torch.Tensor]]:
        """Those of which this process has other values than rank 0."""
        found = {}
        for name, buffers in self._buffers(boundary.recorded).items() if self.rank else ():
            common, held = boundary.rank0_digests.get(name, {}), self._held[name]
            # Large ones that were seen to change in rank 0, and were not here.
            still = {key: local_of(held[key]) for key in common.keys() & held.keys() - buffers.keys()}
            found[name] = differing_from_rank0({**buffers, **still}, common)
        return found

    def _own(self, part: Part) -> Mapping[str, torch.Tensor]:
        """What this process writes of a part. All of them have the models and optimizers alike, or shards of them."""
        held = self._held[part.name]
        if self.world_size == 1 and self._is_local:
            return held
        shared = held if isinstance(part, OptimizerPart) else {}
        if isinstance(part, ModelPart):
            # Each process finds out by itself which large buffers stand still, so they may disagree about those.
            shared = {name: one for name, one in held.items() if isinstance(one, torch.nn.Parameter)}
        names = written_by(shared, self.rank, self.world_size)
        if self.rank == 0:
            names |= held.keys() - shared.keys()
        return {name: local_of(one) for name, one in held.items() if name in names}

    def protected(self, recorded: Any) -> Sequence[Path]:
        """The checkpoint that was resumed from."""
        return self._spared
