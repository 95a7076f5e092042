"""Which values have a form in trees, and how it is marked. Format: `docs/format.md`, "Trees"."""

import re
from collections import Counter, OrderedDict

import torch

CPU = torch.device("cpu")
"""Where tensors are of whose device nothing is said."""

NUMPY = re.compile(r"[<>|]?(?:[biufc][0-9]{1,2}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)")
"""The kinds of numpy's that are their bytes and nothing else."""
SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", torch.Size: "$size"}
MAPPINGS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
"""The containers that have a form of their own, and how it is marked."""
