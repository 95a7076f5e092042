"""CUDA, as `device.Device` wants it: every line of the program that only a GPU can run, and no decision.

ROCm answers to the same names in torch. It was not run.
"""

import ctypes
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch

# Older ones were not run: their snapshots are taken while training stands still.
_OLDEST_LIVE = (2, 11)
_PORTABLE = 1  # cudaHostRegisterPortable: locked for every card of the process
_NON_BLOCKING = 1  # cudaStreamNonBlocking: it waits for no default stream, nor that for it
_RELAXED = 2  # cudaStreamCaptureModeRelaxed
# Errors of one call, after which a card goes on: a value, memory, the capture of a graph (cudaErrorStreamCapture...).
_LEAVE_THE_CARD = frozenset([1, 2, *range(900, 909)])


class Cuda:
    """The CUDA devices of this process. Made where CUDA is in use already, and never before."""

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._lanes: dict[tuple[int, int], torch.cuda.Stream] = {}
        self._runtime = _runtime()

    def card_of(self, tensor: torch.Tensor) -> int | None:
        return tensor.device.index if tensor.device.type == "cuda" else None

    def why_not_live(self) -> str:
        version = tuple(int(number) for number in torch.__version__.split(".")[:2])
        if version >= _OLDEST_LIVE:
            return ""
        return f"torch {torch.__version__} is older than 2.11, from which on CUDA is read while training goes on"

    def enter_thread(self, card: int | None = None) -> None:
        for number in [*self._streams] if card is None else [card]:
            torch.cuda.set_device(number)  # a thread that has none makes a context on card 0
            break
        if self._runtime is not None:
            self._runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(_RELAXED)))

    def is_capturing(self) -> bool:
        return bool(torch.cuda.is_current_stream_capturing())

    def graph_class(self) -> type:
        return torch.cuda.CUDAGraph

    def lane(self, card: int) -> Hashable:
        # The object is made once for each stream: a training may ask here after each of three hundred optimizers.
        key = card, torch._C._cuda_getCurrentRawStream(card)
        if key not in self._lanes:
            self._lanes[key] = torch.cuda.current_stream(card)
        return self._lanes[key]

    def mark(self, lane: Any) -> torch.cuda.Event:
        return _record(lane)

    def hold(self, card: int, event: Any) -> None:
        torch.cuda.current_stream(card).wait_event(event)

    def join(self, lane: Any, event: Any) -> None:
        lane.wait_event(event)

    @contextmanager
    def ours(self) -> Iterator[None]:
        with ExitStack() as streams:
            for stream in (*self._streams.values(),):  # another thread may come to a further card meanwhile
                streams.enter_context(torch.cuda.stream(stream))
            yield

    def follow(self, card: int, event: Any) -> None:
        self._stream(card).wait_event(event)

    def copy(self, card: int, source: torch.Tensor, target: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream(card)):
            target.copy_(source, non_blocking=True)

    def enqueue(self, card: int, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream(card)):
            work()

    def event(self, card: int) -> torch.cuda.Event:
        return _record(self._stream(card))

    def wait(self, event: Any) -> None:
        event.synchronize()

    def is_over(self, event: Any) -> bool:
        return bool(event.query())

    def is_loss(self, error: BaseException) -> bool:
        kind = getattr(torch, "AcceleratorError", None)  # before torch 2.8 its words alone tell it from others
        if kind is None:
            return isinstance(error, RuntimeError) and "CUDA error" in str(error)
        return isinstance(error, kind) and getattr(error, "error_code", None) not in _LEAVE_THE_CARD

    def register(self, address: int, size: int) -> str:
        code = torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE)  # type: ignore[no-untyped-call]
        if int(code) == 0:
            return ""
        if self._runtime is not None:
            self._runtime.cudaGetLastError()  # else torch reports it at a kernel that has nothing to do with it
        return f"cudaHostRegister of {size:,} bytes: {torch.cuda.CudaError(int(code))}"

    def bus_address(self, card: int) -> str:
        address = ctypes.create_string_buffer(32)
        if self._runtime is None or self._runtime.cudaDeviceGetPCIBusId(address, len(address), card):
            return ""
        return address.value.decode().lower()

    def unregister(self, address: int) -> None:
        if int(torch.cuda.cudart().cudaHostUnregister(address)) and self._runtime is not None:  # type: ignore[no-untyped-call]
            self._runtime.cudaGetLastError()

    def free_bytes(self, card: int) -> int:
        return int(torch.cuda.mem_get_info(card)[0])

    def _stream(self, card: int) -> torch.cuda.Stream:
        # Two threads that come here at once must get the same one.
        return self._streams.get(card) or self._streams.setdefault(card, self._own_stream(card))

    def _own_stream(self, card: int) -> torch.cuda.Stream:
        """Makes a stream. Those of `torch.cuda.Stream` are 32 that go round: training may capture a graph in each."""
        handle = ctypes.c_void_p()
        with torch.cuda.device(card):
            if self._runtime is None or self._runtime.cudaStreamCreateWithFlags(ctypes.byref(handle), _NON_BLOCKING):
                return torch.cuda.Stream(card)  # type: ignore[no-untyped-call]
        return torch.cuda.ExternalStream(handle.value, card)  # type: ignore[no-untyped-call]


def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # who waits for it sleeps
    event.record(stream)
    return event


def _runtime() -> Any:
    """Returns CUDA's runtime library, which torch has loaded; None where it has another name."""
    major = (torch.version.cuda or "0").split(".")[0]
    try:
        return ctypes.CDLL(f"libcudart.so.{major}")
    except OSError:
        return None


def device_in_use() -> Cuda | None:
    """Returns the device of this process; None where CUDA is not in use."""
    return _cuda() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


@cache
def _cuda() -> Cuda:
    return Cuda()
