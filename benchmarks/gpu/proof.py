"""One training of a proof, as a process of its own: python -m benchmarks.gpu.proof VARIANT DEVICE RUN FATE."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNTIL = 24
AT = 11


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        autocast: The dtype of autocast; None for none.
        scaled: Whether a GradScaler scales the loss.
        compiled: The mode of `torch.compile`; None for none.
        optimizer: Settings of AdamW.
        workers: Data-loading workers, whose batches are in locked memory.
        sharded: Whether FSDP2 shards it, in a group of one rank.
    """

    autocast: str | None = None
    scaled: bool = False
    compiled: str | None = None
    optimizer: tuple[str, ...] = ()
    workers: int = 0
    sharded: bool = False


VARIANTS = {
    "fp32": Variant(),
    "bf16 autocast": Variant(autocast="bfloat16"),
    "fp16 GradScaler": Variant(autocast="float16", scaled=True),
    "torch.compile": Variant(compiled="default"),
    "torch.compile, reduce-overhead": Variant(compiled="reduce-overhead"),
    "capturable AdamW": Variant(optimizer=("capturable",)),
    "fused AdamW": Variant(optimizer=("fused",)),
    "data workers, pinned": Variant(workers=2),
    "FSDP2, one rank": Variant(sharded=True),
}


def main() -> None:
    """Trains to the end, or dies after a save, and prints what training left."""
    name, device, run, fate = sys.argv[1:]
    import torch

    torch.use_deterministic_algorithms(True)
    with _device(device):
        print(_train(VARIANTS[name], device, Path(run), fate), flush=True)


def _device(device: str) -> AbstractContextManager[object]:
    if device != "cpu":
        return nullcontext()
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.shadow import card_of_paper

    return card_of_paper(Bench(device, Path(), Path()))


def _train(variant: Variant, device: str, run: Path, fate: str) -> str:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from holdfast import Checkpointer

    torch.manual_seed(7)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.BatchNorm1d(256), torch.nn.Dropout(0.2), torch.nn.Linear(256, 64)
    ).to(device)
    if variant.sharded:
        _shard(model, device)
    settings = {name: True for name in variant.optimizer if device == "cuda" or name != "capturable"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **settings)  # type: ignore[arg-type]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    # A scale that overflows at first: some steps are skipped.
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24, growth_interval=4, enabled=variant.scaled)
    rows = TensorDataset(torch.randn(96, 64), torch.randn(96, 64))
    locked = variant.workers > 0 and device == "cuda"
    data = DataLoader(rows, batch_size=8, shuffle=True, num_workers=variant.workers, pin_memory=locked)
    forward: Callable[..., Any] = model
    if variant.compiled:
        # The CPU's compiler takes longer than the proof, and reduce-overhead is of graphs.
        how = {"mode": variant.compiled} if device == "cuda" else {"backend": "eager"}
        forward = torch.compile(model, **how)  # type: ignore[call-overload]
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if variant.scaled:
        parts["scaler"] = scaler
    losses = []
    with Checkpointer(run, data=data, save_at_end=False, say=_silent, **parts) as checkpointer:
        for batch in checkpointer.batches(until=UNTIL):
            given, wanted = (tensor.to(device, non_blocking=locked) for tensor in batch)
            dtype = getattr(torch, variant.autocast) if variant.autocast else torch.float32
            with torch.autocast(device, dtype, enabled=variant.autocast is not None):
                loss = (forward(given) - wanted).square().mean()
            scaler.scale(loss).backward()
            _meet_fate(checkpointer, fate)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item().hex())
            checkpointer.step(loss=loss)
            if fate != "lives":
                checkpointer.save()  # at every step, and nobody waits
    return f"{losses[-1]} {_digest(model, optimizer, scaler, device)}"


def _shard(model: Any, device: str) -> None:
    import socket

    import torch
    from torch.distributed.fsdp import fully_shard

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    fully_shard(model)


def _meet_fate(checkpointer: Any, fate: str) -> None:
    if fate == "dies" and checkpointer.step_count == AT:
        checkpointer.save().wait()
        os.kill(os.getpid(), signal.SIGKILL)


def _digest(model: Any, optimizer: Any, scaler: Any, device: str) -> str:
    import hashlib

    import torch

    digest = hashlib.sha256()
    optimizers = [tensor for state in optimizer.state_dict()["state"].values() for tensor in state.values()]
    for tensor in [*model.state_dict().values(), *optimizers]:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(local.detach().cpu().numpy().tobytes())
    digest.update(repr(scaler.state_dict()).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    if device == "cuda":
        digest.update(torch.cuda.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


def _silent(text: str) -> None:
    pass


if __name__ == "__main__":
    main()
