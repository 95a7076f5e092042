"""A small GPT, trained as nanoGPT trains one: random windows of a text, accumulation, a learning rate by hand.

    python examples/nanogpt_loop.py [RUN] [--steps N]

It learns the standard library's own source, byte by byte; nothing is downloaded. The lines that make it a run that can
be saved and resumed at any moment end in `# holdfast`.
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from holdfast import Checkpointer  # holdfast

BATCH, ACCUMULATE, WINDOW, WIDTH, HEADS, LAYERS, DROPOUT = 8, 2, 64, 64, 4, 2, 0.1
RATE, WARM_UP = 1e-3, 20

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?", default="outputs/nanogpt")
parser.add_argument("--steps", type=int, default=500)
asked = parser.parse_args()

torch.manual_seed(1337)
sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)


class Block(nn.Module):
    """Attention to what came before, and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the input, and what this block adds to it."""
        query, key, value = self.attend(self.norms[0](x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.drop(self.project(seen.transpose(1, 2).flatten(2)))
        x = x + self.drop(self.think(self.norms[1](x)))
        return x


class GPT(nn.Module):
    """Says how likely each byte is to come next."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)], nn.LayerNorm(WIDTH))
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns the loss."""
        hidden = self.blocks(self.bytes(x) + self.places.weight)
        return functional.cross_entropy((hidden @ self.bytes.weight.T).flatten(0, 1), y.flatten())


def random_windows() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns windows of the text, and the same one byte on."""
    rows = torch.stack([text[at : at + WINDOW + 1] for at in torch.randint(len(text) - WINDOW - 1, (BATCH,)).tolist()])
    return rows[:, :-1].long(), rows[:, 1:].long()


def rate_at(step: int) -> float:
    """Returns the learning rate of a step: a warm-up, then half a cosine."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    return RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, asked.steps - WARM_UP))))


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)

with Checkpointer(asked.run, model=model, optimizer=optimizer) as ckpt:  # holdfast
    for step in range(ckpt.resume(), asked.steps):  # holdfast
        optimizer.param_groups[0]["lr"] = rate_at(step)
        for _ in range(ACCUMULATE):
            # Drawn here, and not ahead as nanoGPT does: then the random state at a boundary says what comes next.
            loss = model(*random_windows())
            (loss / ACCUMULATE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ckpt.step(loss=loss)  # holdfast
        if ckpt.stop_requested:  # holdfast
            break  # holdfast
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
