"""A plain dict as a part: saved as it is, and put back into the very objects that are there."""

import json
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.loops import Loop
from holdfast.errors import CheckpointError, ConfigError, UnsupportedError
from holdfast.state.part import Stored
from holdfast.state.plain_dict import DictPart
from holdfast.state.registry import parts_of


def stored(content: dict[Any, Any], name: str = "mine") -> Stored:
    """What a checkpoint has of a dict, through JSON."""
    part = DictPart(name, content)
    written = part.encode(part.record())
    tensors = {key: tensor.clone() for key, tensor in (*written.tensors.items(), *part.live().items())}
    return Stored(tensors, json.loads(json.dumps(written.rest)))


def everything() -> dict[Any, Any]:
    return {
        "best": 0.1 + 0.2,
        "nan": float("inf"),
        "step": 10**30,
        "flag": True,
        "name": "für später",
        "none": None,
        "bytes": b"\x00\xff",
        "shape": (1, "two"),
        "history": [1, 2.5, {"loss": torch.tensor([3.0])}],
        7: "a number for a key",
        "seen": {1, 2},
        "last": deque([1, 2, 3], 3),
        "counts": Counter("aab"),
        "nested": {"weights": torch.arange(6.0).reshape(2, 3).t(), "large": torch.randn(300, 100)},
        "array": np.arange(3, dtype=np.int16),
        "scalar": np.float32(0.1),
        "$odd": OrderedDict(b=1, a=2),
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype and first.stride() == second.stride()
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second)) and first.dtype == second.dtype
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple | deque):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and bool(first == second)


def test_it_comes_back_as_it_was_in_kind_value_and_order_into_an_empty_one_too() -> None:
    wanted = everything()
    for present in ({}, {"best": 1, "nested": 3, "history": []}, dict(reversed(everything().items()))):
        assert DictPart("mine", present).restore(stored(wanted), strict=True) == []
        assert same(present, wanted)


def test_it_is_the_same_dict_with_the_same_lists_tensors_and_arrays_in_it() -> None:
    present = everything()
    inside = [present["history"], present["history"][2]["loss"], present["nested"], present["nested"]["weights"]]
    inside += [present["nested"]["large"], present["array"], present["seen"], present["last"], present["counts"]]
    changed = everything()
    changed["history"][2]["loss"] += 1
    changed["history"] += [4]
    changed["nested"]["weights"].mul_(2)
    changed["nested"]["new"] = 1
    changed["array"] += 1
    changed["counts"]["a"] = 1
    parameter = torch.nn.Parameter(torch.zeros(1))
    present["history"][2]["loss"] = inside[1] = parameter
    assert DictPart("mine", present).restore(stored(changed), strict=True) == []
    assert same(present | {"history": 0}, changed | {"history": 0}) and parameter.item() == 4.0
    after = [present["history"], present["history"][2]["loss"], present["nested"], present["nested"]["weights"]]
    after += [present["nested"]["large"], present["array"], present["seen"], present["last"], present["counts"]]
    assert all(first is second for first, second in zip(inside, after, strict=True))


@pytest.mark.parametrize(
    "there", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(1).expand(2, 3), None, "text"]
)
def test_a_tensor_that_does_not_fit_what_is_there_takes_its_place(there: Any) -> None:
    wanted = {"t": torch.arange(6.0).reshape(2, 3)}
    present = {"t": there}
    DictPart("mine", present).restore(stored(wanted), strict=True)
    assert same(present, wanted)


def test_what_the_script_has_begun_to_put_in_stays_and_is_named_and_what_training_took_out_is_gone() -> None:
    trained = {"left": 1, "popped": 2}
    part = DictPart("mine", trained)
    del trained["popped"]
    written = part.encode(part.record())
    present = {"left": 0, "popped": 2, "new": 3, "newer": 4}
    lines = DictPart("mine", present).restore(written, strict=True)
    assert present == {"left": 1, "new": 3, "newer": 4}
    assert lines == ["mine: the checkpoint has no new, newer: as the script makes it"]


@pytest.mark.parametrize("made_with", [None, 3, "left", [1, ["left"]], {"left": 1}])
def test_what_others_wrote_into_the_checkpoint_breaks_nothing(made_with: Any) -> None:
    written = stored({"left": 1})
    present = {"left": 0, "new": 3}
    DictPart("mine", present).restore(Stored({}, {**written.rest, "made_with": made_with}), strict=True)
    assert present == {"left": 1, "new": 3}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "mine: model is a torch.nn.modules.linear.Linear"),
        ({"a": {"b": [0, open]}}, "mine: a/b/1 is a builtins.builtin_function_or_method"),
        ({"path": Path("/tmp")}, "mine: path is a pathlib.PosixPath"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name_at_once(content: dict[str, Any], place: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        parts_of({"mine": content})
    assert str(refused.value).startswith(place) and refused.value.hint is not None


@pytest.mark.parametrize("state", [None, 3, [1], {"$ordered": []}, "text"])
def test_a_checkpoint_that_has_no_dict_is_refused(state: Any) -> None:
    present = {"left": 0}
    with pytest.raises(CheckpointError, match="mine does not take the checkpoint's state"):
        DictPart("mine", present).restore(Stored({}, {**stored({}).rest, "state": state}), strict=True)
    assert present == {"left": 0}


def test_one_of_another_class_is_refused_or_left_out() -> None:
    present = {"left": 0}
    part = DictPart("mine", present)
    written = stored(Counter(left=1))
    with pytest.raises(CheckpointError, match="mine: is a Counter in the checkpoint and a dict here"):
        part.restore(written, strict=True)
    assert part.restore(written, strict=False) == ["mine: is a Counter in the checkpoint and a dict here: left out"]
    assert present == {"left": 0}


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, lambda content: defaultdict(list, content)])
def test_each_kind_of_dict_is_put_back_into_itself(kind: Any) -> None:
    wanted, present = kind({"b": 1, 3: 2}), kind({"b": 0})
    (part,) = parts_of({"mine": present})
    content = stored(wanted)
    part.restore(content, strict=True)
    assert type(present) is type(wanted) and present == wanted and list(present) == ["b", 3]
    if isinstance(present, defaultdict):
        assert present["new"] == [] and part.record() == {"b": 1, 3: 2, "new": []}
        plain: dict[Any, Any] = {}
        DictPart("mine", plain).restore(content, strict=True)
        assert plain == wanted, "a script may have made it a plain one since"


def test_a_dict_of_ones_own_kind_is_refused_with_those_that_are_taken() -> None:
    with pytest.raises(ConfigError, match="a dict, OrderedDict, Counter or defaultdict is saved as it is"):
        parts_of({"mine": type("Own", (dict,), {})()})


def test_a_dict_that_holds_itself_is_refused() -> None:
    content: dict[str, Any] = {}
    content["me"] = content
    with pytest.raises((UnsupportedError, RecursionError)):
        parts_of({"mine": content})


def test_a_setting_that_is_misspelt_is_no_part(tmp_path: Path) -> None:
    for wrong in ("dynamic_checkpoints", "dynamic_chekpoint"):
        settings: dict[str, Any] = {wrong: {"keep": 2}}
        with pytest.raises(ConfigError, match="did you mean dynamic_checkpoint"):
            Loop(tmp_path / "run", **settings)
    assert [type(part) for part in parts_of({"state": {}, "stats": {}, "checkpoint": {}}, ["dynamic_checkpoint"])] == [
        DictPart
    ] * 3


def counting(run: Path, until: int, stop_at: int = 0) -> dict[str, Any]:
    """A loop that goes by what is in a dict of its own."""
    mine: dict[str, Any] = {"best": 1e9, "history": [], "mean": torch.zeros(300, 100), "epoch": {"count": 0}}
    loop = Loop(run, on_stop="return", mine=mine)
    history = mine["history"]
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=until):
            mine["epoch"]["count"] += 1
            mine["mean"].mul_(0.9).add_(batch[0].mean())
            loop.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + len(history))
            loop.update(batch)
            loss = float.fromhex(loop.losses[-1])
            if loss < mine["best"]:
                mine["best"] = loss
                history.append(loss)
            if loop.ckpt.step_count == stop_at:
                loop.ckpt.save(stop=True)
    return {**mine, "digest": loop.digest()}


def test_a_loop_that_goes_by_a_dict_of_its_own_goes_on_exactly(tmp_path: Path) -> None:
    whole = counting(tmp_path / "whole", 20)
    counting(tmp_path / "run", 20, stop_at=9)
    assert same(counting(tmp_path / "run", 20), whole)
