"""A classifier with ignite: an engine, its events, metrics and a schedule that is a handler.

    pip install '.[examples]'
    python examples/ignite_loop.py [RUN] [--steps N]

The images are random, so nothing is downloaded. The lines that make it a run that can be saved and resumed at any
moment end in `# holdfast`.
"""

import argparse
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers.param_scheduler import CosineAnnealingScheduler
from ignite.metrics import RunningAverage
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Checkpointer  # holdfast

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?", default="outputs/ignite")
parser.add_argument("--steps", type=int, default=500)
asked = parser.parse_args()

torch.manual_seed(12)
images = TensorDataset(torch.randn(100, 1, 8, 8), torch.randint(4, (100,)))
data = DataLoader(images, batch_size=8, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 36, 4)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def update(_: Engine, batch: Any) -> float:
    """Takes one step, and returns its loss."""
    model.train()
    optimizer.zero_grad()
    inputs, labels = batch
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


engine = Engine(update)
RunningAverage(output_transform=lambda loss: loss).attach(engine, "loss")
rate = CosineAnnealingScheduler(optimizer, "lr", 1e-2, 1e-4, asked.steps)
engine.add_event_handler(Events.ITERATION_STARTED, rate)
at_the_end = Events.ITERATION_COMPLETED


@engine.on(Events.EPOCH_COMPLETED)
def show(_: Engine) -> None:
    """Prints the average of the loss."""
    print(f"epoch {engine.state.epoch}: loss {engine.state.metrics['loss']:.3f}")


with Checkpointer(asked.run, model=model, optimizer=optimizer, rate=rate, engine=engine, data=data) as ckpt:  # holdfast
    engine.add_event_handler(at_the_end, lambda _: ckpt.step(loss=engine.state.output))  # holdfast
    engine.add_event_handler(at_the_end, lambda _: ckpt.stop_requested and engine.terminate())  # holdfast
    ckpt.resume()  # holdfast
    batches = ckpt.batches(until=asked.steps)  # holdfast
    engine.run(batches, max_epochs=-(-asked.steps // len(data)), epoch_length=len(data))
