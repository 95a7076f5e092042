"""The state of a plain loop, as the engine saves it: its parts, the random generators, the position in the data."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.capture import random_state, readable
from holdfast.capture.boundary import Boundary
from holdfast.capture.data_position import DataPosition
from holdfast.capture.model_part import ModelPart
from holdfast.capture.state import Part
from holdfast.capture.stream import Image
from holdfast.layouts import native


class LoopState:
    """What a `Checkpointer` was given, and where its loop stands.

    Args:
        parts: Models, optimizers and the rest.
        generators: Random generators of the user's, by name.
        data: The position in the data; None where the loop has its own.
        spared: Checkpoints that retention must not touch.
    """

    layout = native.NAME

    def __init__(
        self,
        parts: Sequence[Part],
        generators: Mapping[str, torch.Generator],
        data: DataPosition | None,
        spared: Sequence[Path],
    ) -> None:
        # Models first: their parameters are what may be swapped behind our back.
        self.parts = sorted(parts, key=lambda part: not isinstance(part, ModelPart))
        self.generators = generators
        self.data = data
        self._spared = spared

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizers update."""
        return [tensor for part in self.parts if isinstance(part, ModelPart) for tensor in part.live().values()]

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors."""
        return tuple(part.structure() for part in self.parts)

    def live(self) -> dict[str, torch.Tensor]:
        """All tensors that stand still between updates, by `part.name`."""
        return {f"{part.name}.{name}": tensor for part in self.parts for name, tensor in part.live().items()}

    def unreadable(self) -> str:
        """Why the state can be read only while training stands still."""
        return readable.why_not(self.live())

    def record(self) -> Any:
        """The small state, as of now."""
        return (
            [part.record() for part in self.parts],
            random_state.record(self.generators),
            self.data.record() if self.data is not None else None,
        )

    def small(self, recorded: Any) -> Mapping[str, Any]:
        """Nothing: the layout's own files hold all of it."""
        return {}

    def images(self, boundary: Boundary, directory: Path) -> Sequence[Image]:
        """The files to be."""
        records, random, data = boundary.recorded
        parts = [
            (part.name, part.live(), part.encode(record)) for part, record in zip(self.parts, records, strict=True)
        ]
        extra: dict[str, Any] = {"training": {"step": boundary.step}, "random": random.encode()}
        if self.data is not None:
            extra["data"] = self.data.encode(data)
        return native.images(parts, extra)

    def estimate(self) -> int:
        """The bytes of the tensors, and some for the rest."""
        plain = (tensor for tensor in self.live().values() if tensor.layout == torch.strided)
        return sum(tensor.nbytes for tensor in plain) + (1 << 20)

    def spared(self) -> Sequence[Path]:
        """The checkpoint that was resumed from."""
        return self._spared
