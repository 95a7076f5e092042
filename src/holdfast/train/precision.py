"""Chooses the number formats that a training computes in, on the machine at hand.

`auto` means what is fast here: bf16 where the hardware has it, fp16 on older NVIDIA cards, fp32 elsewhere. A processor
without bf16 instructions only emulates them, and is slower for it: on two such cores a matrix product took five times
as long as in fp32, and a whole step of a small model half as long again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from holdfast.train.config.load import TrainConfig

# As Linux names them: bf16 dot products on x86 (AVX-512 and AMX), and on Arm.
_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that decide about number formats."""

    name: str
    """The accelerator, as a person would call it, or `this CPU`."""

    cuda: bool
    bf16: bool
    """True where bf16 is native: neither emulated by the driver nor by the processor."""

    tf32: bool


@dataclass(frozen=True)
class Precision:
    """The formats that were chosen, and why."""

    bf16: bool
    fp16: bool
    tf32: bool | None
    """The setting of TF32. None leaves the libraries' own alone: there is nothing to set."""

    cuda: bool
    """True where the training runs on a CUDA device."""

    sentence: str
    """The choice and its reason, for a person."""

    def frozen_dtype(self) -> "torch.dtype":
        """Returns the format of weights that are not trained. Trained ones are fp32: an exact resume needs masters."""
        import torch

        if self.bf16:
            return torch.bfloat16
        return torch.float16 if self.fp16 else torch.float32


def detect() -> Machine:
    """Looks at the machine that this process runs on."""
    import torch

    if torch.cuda.is_available():
        return Machine(
            name=torch.cuda.get_device_name(),
            cuda=True,
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            tf32=torch.cuda.get_device_capability() >= (8, 0),
        )
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        words = []
    return Machine(name="this CPU", cuda=False, bf16=not _NATIVE_BF16.isdisjoint(words), tf32=False)


def choose(config: "TrainConfig", machine: Machine | None = None) -> Precision:
    """Chooses the formats for `config` on `machine`.

    Args:
        config: `bf16` and `tf32` are `auto` or a bool, `fp16` is a bool or unset.
        machine: The machine that the training will run on; by default, this one.

    Raises:
        ConfigError: The configuration asks for a format that the machine does not have, or for two at once.
    """
    machine = machine or detect()
    if config.fp16 and config.bf16 is True:
        raise ConfigError(["bf16, fp16: only one of the two can be true"])
    if config.fp16 and not machine.cuda:
        raise ConfigError(
            ["fp16: true needs a CUDA device, and there is none here"],
            hint="Take the key out; `bf16: auto` chooses what this machine computes fast.",
        )
    if config.bf16 is True and machine.cuda and not machine.bf16:
        raise ConfigError([f"bf16: true: {machine.name} has no bf16"], hint="Use `bf16: auto` or `fp16: true`.")
    bf16, fp16, reason = _format(config, machine)
    tf32 = (machine.tf32 if config.tf32 == "auto" else bool(config.tf32)) and machine.tf32
    name = "bf16" if bf16 else "fp16" if fp16 else "fp32"
    return Precision(
        bf16=bf16,
        fp16=fp16,
        tf32=tf32 if machine.cuda else None,
        cuda=machine.cuda,
        sentence=f"precision: {name}: {reason}{_about_tf32(config, machine, tf32)}",
    )


def _format(config: "TrainConfig", machine: Machine) -> tuple[bool, bool, str]:
    if config.fp16:
        return False, True, "fp16 is set"
    if config.bf16 is True:
        slow = "" if machine.bf16 else f", which {machine.name} can only emulate: fp32 would be faster"
        return True, False, f"bf16 is set{slow}"
    if config.bf16 is False:
        return False, False, "bf16 is turned off"
    if machine.bf16:
        return True, False, f"{machine.name} has it natively"
    if machine.cuda and config.fp16 is None:
        return False, True, f"{machine.name} has no bf16"
    return False, False, f"{machine.name} has no native bf16, and is slower when it emulates it"


def _about_tf32(config: "TrainConfig", machine: Machine, chosen: bool) -> str:
    if chosen:
        return "; tf32 for what stays in fp32"
    if config.tf32 is True:
        # It would only have made fp32 faster and less precise, so nothing is lost that a run depends on.
        return f"; {machine.name} has no tf32, so that key changes nothing"
    return ""
