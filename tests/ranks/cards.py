"""What each rank of a test runs whose tensors are taken for a card's: rank 1 has some weights otherwise than rank 0."""

import os

import torch
import torch.distributed as dist

from helpers.paper import Paper
from holdfast import Checkpointer
from holdfast.engine import capturing


class Tables(torch.nn.Module):
    """Weights that nobody updates, and a layer that is trained; all alike in all ranks."""

    element: torch.Tensor
    exchanged: torch.Tensor
    blocks: torch.Tensor
    turned: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(3)
        for name in ("alike", "element", "exchanged", "blocks", "turned"):
            table = torch.nn.Parameter(torch.randn(200, 96, generator=drawn), requires_grad=False)
            self.register_parameter(name, table)
        self.layer = torch.nn.Linear(96, 96)


def change(model: Tables) -> None:
    """Makes those of one rank others, as little as can be."""
    element, exchanged, blocks = model.element.view(-1), model.exchanged.view(-1), model.blocks
    element[12_345] = torch.nextafter(element[12_345], torch.tensor(9.0))
    exchanged[[77, 12_000]] = exchanged[[12_000, 77]]
    model.blocks.data = torch.cat([blocks[100:], blocks[:100]])
    model.turned.data = model.turned.T.contiguous().T  # the same values, in another order in memory


def run() -> None:
    """Trains two steps, and saves both."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    # The cards of the ranks have other numbers, and other orders of work.
    paper = Paper(("lazy", "random")[rank], rank, cards=1 + rank, in_step=True)
    vars(capturing)["device_in_use"] = lambda: paper
    torch.manual_seed(7)
    model = Tables()
    if rank:
        change(model)
    optimizer = torch.optim.AdamW(model.layer.parameters(), 0.01)
    with Checkpointer(os.environ["RUN"], model=model, optimizer=optimizer, save_steps=1) as checkpointer:
        for step in range(checkpointer.resume(), 2):
            model.layer(torch.full((4, 96), float(step))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            checkpointer.step()
    print(f"rank {rank} ends", flush=True)
    dist.destroy_process_group()
