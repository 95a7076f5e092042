import gc
import io
import weakref
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.parts import raw
from holdfast.layouts.image import Image
from holdfast.layouts.torch_zip import OptimizerFile


def content_of(image: Image) -> bytes:
    return b"".join(piece if isinstance(piece, bytes) else raw(piece) for piece in image.pieces)


def optimizer(kind: Any = torch.optim.AdamW, **settings: Any) -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(7))]
    made: torch.optim.Optimizer = kind([{"params": [one]} for one in weights], lr=0.125, **settings)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    made.step()
    return made


class Torchs:
    """How often torch has made a skeleton."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        save = torch.save

        def counted(*args: Any, **kwargs: Any) -> None:
            self.calls += 1
            save(*args, **kwargs)

        monkeypatch.setattr(torch, "save", counted)


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> Torchs:
    return Torchs(monkeypatch)


def is_as_torch_saves_it(file: OptimizerFile, content: Any, folder: Path) -> bool:
    """Whether the file to be is that of `torch.save`, but for the checksums of storages and what follows from them."""
    made = content_of(file.image("optimizer.pt", content, folder / "optimizer.pt"))
    assert not list(folder.iterdir()), "the scratch file is gone"
    torch.serialization.save(content, folder / "optimizer.pt")
    own = (folder / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").unlink()
    with zipfile.ZipFile(io.BytesIO(made)) as ours, zipfile.ZipFile(io.BytesIO(own)) as theirs:
        assert ours.read("optimizer/data.pkl") == theirs.read("optimizer/data.pkl")
        assert [(i.filename, i.header_offset) for i in ours.infolist()] == [
            (i.filename, i.header_offset) for i in theirs.infolist()
        ]
    assert str(torch.load(io.BytesIO(made), weights_only=True)) == str(content)
    return len(made) == len(own)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.5}),
        (torch.optim.SGD, {}),
        (torch.optim.Adafactor, {}),
        (torch.optim.Rprop, {}),
    ],
)
def test_the_file_is_torchs_own_at_every_save(tmp_path: Path, kind: Any, settings: dict[str, Any]) -> None:
    file, one = OptimizerFile(), optimizer(kind, **settings)
    for turn in range(3):
        one.param_groups[0]["lr"] = 0.1 / (turn + 3)
        one.step()
        assert is_as_torch_saves_it(file, one.state_dict(), tmp_path)


def test_numbers_that_change_need_no_new_skeleton(tmp_path: Path, torchs: Torchs) -> None:
    file, one = OptimizerFile(), optimizer()
    for turn in range(4):
        one.param_groups[1]["lr"] = 0.1 / (turn + 3)
        one.step()
        content_of(file.image("optimizer.pt", one.state_dict(), tmp_path / "x.pt"))
    assert torchs.calls == 1


def longer(content: Any) -> None:
    content["param_groups"][0]["note"] = "text"


def of_another_type(content: Any) -> None:
    content["param_groups"][0]["lr"] = 1


def a_tensor_in_a_group(content: Any) -> None:
    content["param_groups"][0]["lr"] = torch.tensor(0.125)


def another_shape(content: Any) -> None:
    content["state"][0]["exp_avg"] = torch.ones(5, 3)


def another_dtype(content: Any) -> None:
    content["state"][0]["exp_avg"] = torch.ones(3, 5, dtype=torch.int32)


def another_view(content: Any) -> None:
    content["state"][0]["exp_avg"] = content["state"][0]["exp_avg"].t()


def a_part_of_more(content: Any) -> None:
    content["state"][0]["exp_avg"] = torch.ones(6, 5)[2:5]


def one_for_two(content: Any) -> None:
    content["state"][0]["exp_avg_sq"] = content["state"][0]["exp_avg"]


def another_name(content: Any) -> None:
    content["state"][0]["exp_max"] = content["state"][0].pop("exp_avg")


def a_number_in_the_state(content: Any) -> None:
    content["state"][0]["step"] = 7


def nothing_in_a_tensor(content: Any) -> None:
    content["state"][0]["exp_avg"] = torch.ones(0)


def one_less(content: Any) -> None:
    del content["state"][1]


def one_that_learns(content: Any) -> None:
    content["state"][0]["exp_avg"].requires_grad_()


CHANGES = [
    longer,
    of_another_type,
    a_tensor_in_a_group,
    another_shape,
    another_dtype,
    another_view,
    a_part_of_more,
    one_for_two,
    another_name,
    a_number_in_the_state,
    nothing_in_a_tensor,
    one_less,
    one_that_learns,
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_changes_shows(tmp_path: Path, change: Any) -> None:
    file, one = OptimizerFile(), optimizer()
    assert is_as_torch_saves_it(file, one.state_dict(), tmp_path)
    content = one.state_dict()
    content = {
        "state": {key: dict(held) for key, held in content["state"].items()},
        "param_groups": [dict(group) for group in content["param_groups"]],
    }
    change(content)
    for _ in range(2):
        assert is_as_torch_saves_it(file, content, tmp_path)
    assert is_as_torch_saves_it(file, one.state_dict(), tmp_path)


def test_it_keeps_no_state_in_memory(tmp_path: Path) -> None:
    file, one = OptimizerFile(), optimizer()
    file.image("optimizer.pt", one.state_dict(), tmp_path / "x.pt")
    held = [weakref.ref(value) for state in one.state.values() for value in state.values()]
    one.state.clear()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
