import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.errors import UnsupportedError
from holdfast.layouts.loadable import require_loadable
from holdfast.layouts.torch_zip import OptimizerFile


class Projector:
    """Something that an optimizer keeps and no weights are."""


def state(kept: Any) -> dict[str, Any]:
    return {"state": {0: {"moment": torch.ones(4), "kept": kept}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def test_an_optimizers_file_with_an_object_in_it_is_refused_by_its_name(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "scratch"
    assert OptimizerFile().image("optimizer.pt", state((1, 2.0, "text", None)), scratch).size
    line = f"optimizer.pt would hold {__name__}.Projector, which transformers refuses to load"
    with pytest.raises(UnsupportedError, match=re.escape(line)):
        OptimizerFile().image("optimizer.pt", state(Projector()), scratch)
    assert not scratch.exists()


def test_a_file_is_seen_through_without_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    with torch.serialization.skip_data():
        torch.save({"large": torch.empty(1 << 20)}, path)
    require_loadable(path, "whole.pt")


def test_what_its_reader_allows_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    torch.save({"own": Projector()}, path)
    require_loadable(path, "own.pt", lambda: torch.serialization.safe_globals([Projector]))
    with pytest.raises(UnsupportedError, match=r"own\.pt would hold"):
        require_loadable(path, "own.pt", nullcontext)
