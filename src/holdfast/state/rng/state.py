"""The random generators of the process: recorded at every boundary, and put back exactly."""

import random
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator

from holdfast.errors import CheckpointError
from holdfast.state.rng import codec
from holdfast.state.rng.mt19937 import Mt19937State, NumpyReader, PythonReader

_NONE: Mapping[str, torch.Generator] = {}
_python = PythonReader()
_numpy = NumpyReader()


class RngRecord(NamedTuple):
    """The state of the generators at one moment; what is drawn later does not show in it."""

    python: Mt19937State
    numpy: Mt19937State | Mapping[str, Any]
    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    """Of each device; empty as long as the process does not use CUDA."""
    device: int
    """The current CUDA device."""
    generators: Mapping[str, torch.Tensor]

    def encode(self) -> dict[str, Any]:
        """Returns the state as JSON: bytes as hexadecimal text, floats as C99's."""
        return {
            "python": codec.encode_mt19937(self.python),
            "numpy": codec.encode_numpy(self.numpy),
            "cpu": codec.encode_torch(self.cpu),
            "cuda": [codec.encode_torch(state) for state in self.cuda],
            "generators": {name: codec.encode_torch(state) for name, state in self.generators.items()},
        }

    def check(self, generators: Mapping[str, torch.Generator] = _NONE) -> list[str]:
        """Names what `restore` would leave as it is, one line each.

        Raises:
            CheckpointError: A state does not fit its generator.
        """
        name = type(get_bit_generator()).__name__
        then = "MT19937" if isinstance(self.numpy, Mt19937State) else self.numpy["bit_generator"]
        if then != name:
            raise CheckpointError(
                f"the checkpoint's numpy.random is a {then}, and this process's a {name}",
                hint=f"call numpy.random.set_bit_generator(numpy.random.{then}()) before resuming",
            )
        for key in self.generators.keys() & generators.keys():
            sizes = self.generators[key].numel(), generators[key].get_state().numel()
            if sizes[0] != sizes[1]:
                raise CheckpointError(
                    f"the state of generator {key!r} has {sizes[0]} bytes, and the generator itself {sizes[1]}",
                    hint="register the generator on the kind of device that it was on",
                )
        notices = [
            *(
                f"the checkpoint has no state of generator {key!r}"
                for key in generators.keys() - self.generators.keys()
            ),
            *(f"there is no generator {key!r} any more" for key in self.generators.keys() - generators.keys()),
        ]
        devices = _cuda_devices(bool(self.cuda))
        if len(self.cuda) != devices:
            notices.append(f"the checkpoint has {len(self.cuda)} CUDA generators and this machine {devices}")
        return sorted(notices)

    def restore(self, generators: Mapping[str, torch.Generator] = _NONE) -> list[str]:
        """Puts everything back.

        Args:
            generators: The registered generators, by the names that they were recorded under.

        Returns:
            What was left as it is, one line each.

        Raises:
            CheckpointError: A state does not fit its generator. Nothing was changed.
        """
        notices = self.check(generators)
        random.setstate(_for_python(self.python))
        np.random.set_state(_for_numpy(self.numpy))
        torch.default_generator.set_state(self.cpu)
        for device, state in enumerate(self.cuda[: _cuda_devices(bool(self.cuda))]):
            torch.cuda.set_rng_state(state, device)
        for key in self.generators.keys() & generators.keys():
            generators[key].set_state(self.generators[key])
        return notices

    def as_transformers(self, *, every_device: bool = False) -> dict[str, Any]:
        """Returns the state in the form of `rng_state.pth`; of every device where several processes train together."""
        state: dict[str, Any] = {
            "python": _for_python(self.python),
            "numpy": _for_numpy(self.numpy),
            "cpu": self.cpu,
        }
        if self.cuda:
            state["cuda"] = list(self.cuda) if every_device else self.cuda[self.device]
        return state


def record(generators: Mapping[str, torch.Generator] = _NONE) -> RngRecord:
    """Records the state of every generator, as of now. Called by training at every boundary: a few microseconds.

    Args:
        generators: Registered ones besides the global ones of Python, numpy, torch and CUDA.
    """
    cuda = _cuda_is_used()
    return RngRecord(
        _python.read(),
        _numpy.read(),
        torch.default_generator.get_state(),
        tuple(generator.get_state() for generator in torch.cuda.default_generators) if cuda else (),
        torch.cuda.current_device() if cuda else 0,
        {name: generator.get_state() for name, generator in generators.items()} if generators else {},
    )


def decode(encoded: Mapping[str, Any]) -> RngRecord:
    """Returns the state that `encode` gave.

    Raises:
        CheckpointError: It is not one that could be put back.
    """
    member = codec.member
    generators = member(encoded, "generators", dict)
    return RngRecord(
        codec.decode_mt19937(member(encoded, "python", dict), "python"),
        codec.decode_numpy(member(encoded, "numpy", dict)),
        codec.decode_torch_cpu(member(encoded, "cpu", str), "cpu"),
        tuple(codec.decode_torch_cuda(text, "cuda") for text in member(encoded, "cuda", list)),
        0,
        {name: codec.decode_torch(text, f"generators.{name!r}") for name, text in generators.items()},
    )


def restore(encoded: Mapping[str, Any], generators: Mapping[str, torch.Generator] = _NONE) -> list[str]:
    """Puts back what `RngRecord.encode` gave; see `RngRecord.restore`."""
    return decode(encoded).restore(generators)


def reseed_for_rank(rank: int) -> None:
    """Gives this process random numbers of its own, the same at every resume, instead of those of another process.

    Args:
        rank: The number of this process, which the checkpoint does not have.
    """
    seed = zlib.crc32(torch.get_rng_state().numpy().tobytes()) + rank
    random.seed(seed)
    torch.manual_seed(seed)
    if type(get_bit_generator()).__name__ == "MT19937":  # others are of the user's making, and theirs to seed
        np.random.seed(seed % (1 << 32))


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _cuda_devices(wanted: bool) -> int:
    # Counting the devices does not initialize CUDA; whoever never used it is not told about it.
    return torch.cuda.device_count() if wanted or _cuda_is_used() else 0


def _for_python(state: Mt19937State) -> tuple[int, tuple[int, ...], float | None]:
    return 3, (*np.frombuffer(state.key, np.uint32).tolist(), state.position), state.gauss


def _for_numpy(state: Mt19937State | Mapping[str, Any]) -> Any:
    if not isinstance(state, Mt19937State):
        return dict(state)
    key = np.frombuffer(state.key, np.uint32).copy()
    return "MT19937", key, state.position, int(state.gauss is not None), state.gauss or 0.0
