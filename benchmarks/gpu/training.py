"""What is saved in the tables: a GPT of a billion parameters in fp32 with AdamW, 12 GB, in a loop of steps."""

import time
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu.bench import Bench
from benchmarks.states import State

_WORDS = 50_304
_HEAD = 64


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = max(1, width // _HEAD)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        batch, length, width = rows.shape
        joined = self.attention(self.before(rows)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        rows = rows + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        ahead: torch.Tensor = rows + self.down(functional.gelu(self.up(self.after(rows))))
        return ahead


class Gpt(nn.Module):
    """A decoder that gives its loss.

    Args:
        layers: Its depth.
        width: Its width.
        words: Its vocabulary.
        length: The longest sequence.
    """

    def __init__(self, layers: int, width: int, words: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of the next word."""
        rows = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.blocks:
            rows = block(rows)
        logits = self.head(self.norm(rows))
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())


@dataclass
class Training(State):
    """The state that is saved, with a loop around it."""

    rounds: int = 1
    """Forward and backward passes for one update."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of a step and of its forward and backward passes, as `fit` has found them."""

    @classmethod
    def make(cls, bench: Bench) -> "Training":
        """Returns a new one on the card, after two steps."""
        torch.manual_seed(0)
        layers, width = bench.size(16, 1), bench.size(2048, 64)
        length, words = bench.size(1024, 16), bench.size(_WORDS, 256)
        with torch.device(bench.device):
            model = Gpt(layers, width, words, length)
            batch = torch.randint(0, words, (bench.size(8, 2), length))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _constant)
        training = cls(model, model, optimizer, scheduler, batch)
        for _ in range(2):
            training.forward_backward()
            training.update()
        training.settle()
        return training

    def forward_backward(self) -> torch.Tensor:
        """Comes to the gate."""
        loss = torch.zeros((), device=self.device)
        for _ in range(self.rounds):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.model(self.batch)
            loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Makes the update, and lets the gradients go."""
        super().update()
        self.drop_gradients()

    def fit(self, wanted: float) -> None:
        """Makes a step about as long as wanted, and notes what it takes."""
        self.seconds = self._time()
        one = self.seconds["forward and backward"] / self.rounds
        rest = self.seconds["step"] - self.seconds["forward and backward"]
        self.rounds = max(1, round((wanted - rest) / one))
        self.seconds = self._time()

    def _time(self) -> dict[str, float]:
        steps, passes = [], []
        for _ in range(4):
            self.settle()
            begun = time.perf_counter()
            self.forward_backward()
            self.settle()
            passes.append(time.perf_counter() - begun)
            self.update()
            self.settle()
            steps.append(time.perf_counter() - begun)
        # The first one may still allocate.
        return {"step": min(steps[1:]), "forward and backward": min(passes[1:])}


def _constant(step: int) -> float:
    return 1.0
