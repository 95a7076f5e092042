import json
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.parts import same
from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state import values
from holdfast.state.part import LoadedTensors

fuzzed = settings(max_examples=150, deadline=None)

TENSORS = st.builds(
    lambda values, dtype: torch.tensor(values).to(dtype),
    st.lists(st.floats(-100, 100), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.complex128, torch.bool]),
)
ARRAYS = st.builds(
    lambda values, kind: np.array(values).astype(kind),
    st.lists(st.integers(0, 100), max_size=3) | st.integers(0, 100),
    st.sampled_from(["<f8", ">i4", "u1", "?", "c16", "M8[s]"]),
)
KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
LEAVES = (
    KEYS
    | st.floats()
    | st.complex_numbers()
    | TENSORS
    | ARRAYS
    | st.sampled_from([np.float32(0.1), np.int8(-3), np.bool_(True), np.complex64(1j), np.datetime64(5, "s")])
    | st.sampled_from([torch.bfloat16, torch.device("cuda", 1), torch.device("cpu"), torch.Size([2, 3])])
    | st.sets(st.integers() | st.text())
    | st.frozensets(st.integers())
    | st.dictionaries(st.text(), st.integers(1)).map(Counter)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, 5))
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(st.text("$ab/", max_size=2), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


def equal(value: Any, other: Any) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        keys = all(equal(a, b) for a, b in zip(value, other, strict=False))
        return len(value) == len(other) and keys and all(equal(value[key], other[key]) for key in value)
    if isinstance(value, deque):
        return value.maxlen == other.maxlen and equal(list(value), list(other))
    if type(value) in (list, tuple):
        return len(value) == len(other) and all(map(equal, value, other))
    if isinstance(value, np.ndarray | np.generic):
        return (value.dtype, value.shape, value.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return same(value, other)


def there_and_back(value: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    return values.decode(json.loads(json.dumps(values.encode(value, "x", tensors), allow_nan=False)), tensors)


@fuzzed
@given(VALUES)
def test_any_value_comes_back_exactly(value: Any) -> None:
    with suppress(UnsupportedError):  # keys that differ in their type alone may name two tensors
        assert equal(there_and_back(value), value)


@fuzzed
@given(VALUES)
def test_tensors_are_named_as_they_are_when_they_are_only_looked_for(value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    with suppress(UnsupportedError):
        values.encode(value, "x", tensors)
        pointers = {name: tensor.data_ptr() for name, tensor in values.tensors_in(value, "x")}
        assert pointers.items() <= {name: tensor.data_ptr() for name, tensor in tensors.items()}.items()


@fuzzed
@given(VALUES)
def test_a_snapshot_is_the_same(value: Any) -> None:
    assert equal(values.snapshot(value, values.cloned), value)


def test_later_changes_do_not_show_in_a_snapshot() -> None:
    small, large = torch.zeros(2), torch.zeros(3)
    value: Any = {"list": [1, {"a": [small]}], "deque": deque([[0]]), "set": {1}, "array": np.zeros(2), "large": large}
    value["ordered"] = OrderedDict(a=[1])
    value["counter"] = Counter("a")
    copy = values.snapshot(value, lambda t: values.cloned(t) if t.numel() < 3 else values.live(t))
    before = there_and_back(copy)
    value["list"][1]["a"].append(2)
    value["deque"][0].append(1)
    value["set"].add(2)
    value["array"][0] = 1
    value["ordered"]["a"].append(2)
    value["counter"]["b"] = 1
    small.add_(1)
    assert equal(there_and_back(copy), before)
    large.add_(1)
    assert copy["large"].sum() == 3


def test_the_forms_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert set(values._FORMS) == set(re.findall(r'{"(\$[a-z]+)"', page))


def test_numbers_keep_what_decimal_text_would_lose() -> None:
    numbers = there_and_back(
        [0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324, 2**64, -(2**63), 16**4096 - 1, True, 1, 1.0]
    )
    assert [repr(number) for number in numbers[:8]] == [
        "0.1",
        "-0.0",
        "inf",
        "-inf",
        "nan",
        "5e-324",
        str(2**64),
        str(-(2**63)),
    ]
    assert numbers[8] == 16**4096 - 1 and [type(number) for number in numbers[9:]] == [bool, int, float]


def test_what_comes_back_shares_no_memory() -> None:
    tensors = {"t": torch.zeros(2), "a": torch.zeros(2, dtype=torch.uint8)}
    values.decode({"$tensor": "t"}, tensors).add_(1)
    values.decode({"$array": "a", "numpy": "u1", "shape": [2]}, tensors)[:] = 1
    assert not tensors["t"].any() and not tensors["a"].any()


def test_a_tensor_that_is_given_away_goes_to_the_first_who_asks_and_others_get_copies() -> None:
    loaded = LoadedTensors()
    loaded["t"], loaded["live"] = torch.zeros(2), torch.zeros(2)
    loaded.free.add("t")
    first, second, live = (values.decode({"$tensor": name}, loaded) for name in ("t", "t", "live"))
    assert first is loaded["t"] and same(second, first)
    assert second.data_ptr() != first.data_ptr() and live.data_ptr() != loaded["live"].data_ptr()


def test_a_tensor_whose_device_is_not_here_goes_where_it_is_expected() -> None:
    tensor = values.decode({"$tensor": "t", "device": "cuda:7"}, {"t": torch.zeros(2)})
    assert tensor.device.type == "cpu"
    tensor = values.decode({"$tensor": "t", "device": "cpu"}, {"t": torch.zeros(2)}, torch.device("meta"))
    assert tensor.device.type == "cpu"


class Own:
    pass


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [Own()]}, r"^state/a/0 is a .*Own, which a checkpoint without pickle cannot hold"),
        ({"f": len}, r"^state/f is a builtins\.builtin_function_or_method"),
        (defaultdict(list), r"^state is a collections\.defaultdict"),
        (SimpleNamespace(), r"^state is a types\.SimpleNamespace"),
        (np.array([Own()], dtype=object), r"^state is a numpy ndarray of object"),
        ({1: torch.zeros(1), "1": torch.zeros(1)}, r"^state/1 would name two tensors"),
        (deep(), r"^state is too deep"),
        ({"seed": [16**4096]}, r"^state/seed/0 is a whole number of 4,097 hexadecimal digits"),
        ({-(16**4096): 1}, r"^state/\(key\) is a whole number of 4,097 hexadecimal digits"),
        ({1, 16**4096}, r"^state/[01] is a whole number of 4,097 hexadecimal digits"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_security_s27_what_has_no_form_is_refused_by_path_and_type(value: Any, message: str) -> None:
    """Values without a form: deep ones, and numbers of 4,097 digits, among others."""
    with pytest.raises(UnsupportedError, match=message):
        values.encode(value, "state", {})


@pytest.mark.parametrize(
    "text",
    [
        '{"$pickle": "gASV"}',
        '{"$tensor": "gone"}',
        '{"$tensor": ["t"]}',
        '{"$tensor": "t", "device": "moon"}',
        '{"$tensor": "t", "device": 3.5}',
        '{"$float": "one"}',
        '{"$float": 1}',
        '{"$int": "0xz"}',
        '{"$int": "12"}',
        '{"$int": "0x1' + "0" * 4096 + '"}',
        '{"$bytes": "0"}',
        '{"$complex": ["0x1p0", "0x1p0", "0x1p0"]}',
        '{"$dtype": "load"}',
        '{"$dtype": "nothing"}',
        '{"$device": "moon"}',
        '{"$size": ["a"]}',
        '{"$set": [[]]}',
        '{"$deque": []}',
        '{"$deque": [1, -1]}',
        '{"$dict": [[1]]}',
        '{"$dict": [[{"$dict": []}, 1]]}',
        '{"$counter": 5}',
        '{"$array": "t", "numpy": "O", "shape": [2]}',
        '{"$array": "t", "numpy": "<f8", "shape": [9]}',
        '{"$array": "t", "numpy": "<f3", "shape": [1]}',
        '{"$scalar": "", "numpy": "<f8"}',
        '{"$scalar": "00", "numpy": "|V1"}',
        '{"$scalar": "00"}',
        "1.5",
        "[" * 50_000 + "]" * 50_000,
    ],
    ids=lambda text: text[:40],
)
def test_security_s27_what_nobody_wrote_raises_an_error_of_ours(text: str) -> None:
    """Trees that are none: deep ones, and numbers of 4,097 digits, among others."""
    try:
        encoded = json.loads(text)
    except RecursionError:
        encoded = deep()
    with pytest.raises(CheckpointError):
        values.decode(encoded, {"t": torch.zeros(2)})


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["t", "<f8", "0x1p0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$tensor", "$array", "$scalar", "numpy", "shape", "device", "$dict", "$deque", "$size", "$int"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@fuzzed
@given(ANY_JSON)
def test_any_json_raises_nothing_but_an_error_of_ours(value: Any) -> None:
    with suppress(CheckpointError):
        values.decode(value, {"t": torch.zeros(2)})


def test_a_number_that_python_does_not_write_out_may_be_a_key() -> None:
    huge, tensor = 16**4096 - 1, torch.ones(1)
    back = there_and_back({"a": {huge: tensor}, "b": {huge, 1}})
    assert back["b"] == {huge, 1} and same(back["a"][huge], tensor)
    assert [name for name, _ in values.tensors_in({huge: tensor}, "state")] == ["state/(number)"]
