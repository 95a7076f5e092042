"""What another number of processes takes of a part of which each rank had its own."""

from typing import Any

import pytest

from holdfast.errors import CheckpointError
from holdfast.layouts.native_resized import resized
from holdfast.layouts.ownership import Note

GROUPS = [{"parameters": ["m.a", "m.b"], "settings": {"lr": 1}}]


def state(name: str, shape: list[int], **numbers: Any) -> dict[str, Any]:
    tensors = {key: {"$tensor": f"{name}/{key}"} for key in ("moment", "step")}
    return {"shape": shape, "values": {**tensors, **numbers}}


def optimizer(groups: Any = GROUPS, **states: Any) -> dict[str, Any]:
    return {"kind": "optimizer", "groups": groups, "state": {f"m.{k}": v for k, v in states.items()}, "shared": {}}


A, B = state("m.a", [4, 2]), state("m.b", [3])
OF_A = {"m.a/moment": (4, 2), "m.a/step": ()}
OF_B = {"m.b/moment": (3,), "m.b/step": ()}
EACH_ONE = Note(partial=frozenset({*OF_A, *OF_B}))


def test_state_that_one_rank_has_whole_is_read_from_there() -> None:
    taken = resized(EACH_ONE, [optimizer(a=A), optimizer(b=B)], [OF_A, OF_B])
    assert taken.refused == [] and not taken.differs
    assert taken.rest == optimizer(a=A, b=B)
    assert taken.source == {**dict.fromkeys(OF_A, 0), **dict.fromkeys(OF_B, 1)}


def test_state_that_all_have_alike_stays_where_it_is() -> None:
    note = Note(partial=frozenset(OF_B))
    taken = resized(note, [optimizer(a=A), optimizer(a=A, b=B)], [{}, OF_B])
    assert taken.refused == [] and taken.rest == optimizer(a=A, b=B) and taken.source.keys() == OF_B.keys()


def test_slices_are_refused_by_name() -> None:
    note = Note(differing=frozenset({"m.a/moment"}))
    taken = resized(note, [optimizer(a=A), optimizer(a=A)], [{}, {"m.a/moment": (2, 2)}])
    assert taken.refused == ["m.a/moment"]
    alone = resized(Note(partial=frozenset(OF_A)), [optimizer(a=A), optimizer()], [{**OF_A, "m.a/moment": (2, 2)}, {}])
    assert alone.refused == sorted(OF_A)


def test_state_that_several_have_or_that_has_other_numbers_is_refused() -> None:
    three = [optimizer(a=A), optimizer(a=A), optimizer()]
    assert resized(Note(partial=frozenset(OF_A)), three, [OF_A, OF_A, {}]).refused == sorted(OF_A)
    other = state("m.a", [4, 2], count=3)
    assert resized(Note(rest=True), [optimizer(a=A), optimizer(a=other)], [{}, {}]).refused == ["m.a"]


def test_tensors_that_belong_to_no_parameter_are_refused_and_other_settings_are_told() -> None:
    note = Note(differing=frozenset({"groups/0/lr"}))
    assert resized(note, [optimizer(a=A), optimizer(a=A)], [{}, {}]).refused == ["groups/0/lr"]
    slower = optimizer([{"parameters": ["m.a", "m.b"], "settings": {"lr": 2}}])
    taken = resized(Note(rest=True), [optimizer(), slower], [{}, {}])
    assert taken.differs and taken.rest == optimizer() and taken.refused == []


def test_weights_are_refused_and_objects_are_rank_0s() -> None:
    note = Note(differing=frozenset({"w"}), partial=frozenset({"v"}))
    assert resized(note, [{"kind": "model"}] * 2, [{}, {}]).refused == ["v", "w"]
    queue = resized(note, [{"kind": "object"}] * 2, [{"v": (2,)}, {}])
    assert queue.differs and queue.refused == [] and queue.source == {"v": 0}
    assert not resized(Note(), [{"kind": "model"}] * 2, [{}, {"mean": (2,)}]).differs


def test_what_cannot_be_read_is_said() -> None:
    for broken in ({"kind": "optimizer"}, {**optimizer(a=A), "state": {"m.a": 3}}):
        with pytest.raises(CheckpointError, match="cannot be read"):
            resized(EACH_ONE, [broken, broken], [OF_A, OF_B])
