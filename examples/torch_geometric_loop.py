"""A classifier of graphs with torch_geometric: its convolutions, its batches of graphs, its random edges left out.

    pip install '.[examples]'
    python examples/torch_geometric_loop.py [RUN] [--steps N]

The graphs are random, so nothing is downloaded. The lines that make it a run that can be saved and resumed at any
moment end in `# holdfast`.
"""

import argparse
from typing import Any

import torch
from torch import nn
from torch_geometric import seed_everything
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool
from torch_geometric.utils import dropout_edge

from holdfast import Checkpointer  # holdfast

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?", default="outputs/torch_geometric")
parser.add_argument("--steps", type=int, default=500)
asked = parser.parse_args()

seed_everything(5)
graphs = FakeDataset(num_graphs=60, avg_num_nodes=20, num_channels=16, num_classes=4)
loader = DataLoader(graphs, batch_size=8, shuffle=True)


class Classifier(nn.Module):
    """Two convolutions over the edges, and a vote of all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(graphs.num_features, 32), GCNConv(32, 32)
        self.vote = nn.Linear(32, graphs.num_classes)

    def forward(self, graph: Any) -> torch.Tensor:
        """Returns how much speaks for each class."""
        edges, _ = dropout_edge(graph.edge_index, p=0.2, training=self.training)
        hidden = self.first(graph.x, edges).relu()
        hidden = self.second(nn.functional.dropout(hidden, 0.2, self.training), edges).relu()
        votes: torch.Tensor = self.vote(global_mean_pool(hidden, graph.batch))
        return votes


model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

with Checkpointer(asked.run, model=model, optimizer=optimizer, data=loader) as ckpt:  # holdfast
    for graph in ckpt.batches(until=asked.steps):  # holdfast
        loss = nn.functional.cross_entropy(model(graph), graph.y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step(loss=loss)  # holdfast
        if ckpt.step_count % 50 == 0:
            print(f"step {ckpt.step_count}: loss {loss.item():.3f}")
