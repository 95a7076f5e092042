import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from helpers.parts import move, same, save, save_recorded
from holdfast.errors import CheckpointError, ConfigError, UnsupportedError
from holdfast.state.layered_optimizer import LayeredOptimizerPart
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.part import Part, Stored
from holdfast.state.registry import parts_of

Make = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


def net(seed: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, **kwargs), nn.Tanh(), nn.Linear(4, 2, **kwargs))


def train(model: nn.Module, optimizer: Any, steps: int = 3, seed: int = 9) -> None:
    data = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(batch).square().mean().abs()
        loss.backward()
        return loss

    for _ in range(steps):
        batch = torch.randn(5, 3, generator=data).to(dtype)
        if type(optimizer) is optim.LBFGS:
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        else:
            closure()
            optimizer.step()


def registered(model: nn.Module, optimizer: optim.Optimizer) -> tuple[ModelPart, Any]:
    first, second = parts_of({"model": model, "optimizer": optimizer})
    assert isinstance(first, ModelPart) and isinstance(second, OptimizerPart | LayeredOptimizerPart)
    return first, second


def state_of(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    """All of an optimizer's state, by name."""
    return {
        name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter in optimizer.state
    }


def settings_of(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


class Kept(optim.Optimizer):
    """Somebody's own: numbers in its state, new tensors at every step, state of no parameter."""

    state: Any

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "schedule": [1, 2]})

    def step(self, closure: Any = None) -> Any:
        self.state["all"]["steps"] = self.state["all"].get("steps", 0) + 1
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["mean"] = state.get("mean", 0) * 0.9 + parameter.grad
                state["history"] = [*state.get("history", []), (state["step"], 0.1)]
                state["none"] = None
                parameter.data -= group["lr"] * state["mean"]


class Queued(optim.Optimizer):
    """Keeps the last gradients of each parameter in a queue that grows, and those of the first in one of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.norms: deque[torch.Tensor] = deque(maxlen=6)

    def step(self, closure: Any = None) -> Any:
        parameters = self.param_groups[0]["params"]
        self.norms.append(parameters[0].grad.norm())
        for parameter in parameters:
            queue = self.state[parameter].setdefault("queue", deque(maxlen=5))
            queue.append(parameter.grad.clone())
            parameter.data -= 0.1 * sum(queue) / sum(self.norms)


MAKERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, 0.1),
    "adamw": lambda p: optim.AdamW(p, 0.1, amsgrad=True),
    "fused": lambda p: optim.AdamW(p, 0.1, fused=True),
    "tensor lr": lambda p: optim.AdamW(p, torch.tensor(0.1)),
    "adamax": lambda p: optim.Adamax(p, 0.1),
    "nadam": lambda p: optim.NAdam(p, 0.1),
    "radam": lambda p: optim.RAdam(p, 0.1),
    "rmsprop": lambda p: optim.RMSprop(p, 0.1, momentum=0.1, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.1),
    "adadelta": lambda p: optim.Adadelta(p),
    "asgd": lambda p: optim.ASGD(p),
    "rprop": lambda p: optim.Rprop(p),
    "adafactor": lambda p: optim.Adafactor(p),
    "lbfgs": lambda p: optim.LBFGS(p, 0.1, max_iter=3, history_size=3),
    "kept": Kept,
    "queued": Queued,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path, kind: str) -> None:
    old, new = net(), net(1)
    first: Any = MAKERS[kind](old.parameters())
    second: Any = MAKERS[kind](new.parameters())
    train(old, first)
    for group in first.param_groups:
        group["lr"] *= 0.7
    notes = move(registered(old, first), registered(new, second), tmp_path)
    assert notes == []
    assert same(state_of(new, second), state_of(old, first)) or kind == "kept"
    assert same(settings_of(second), settings_of(first))
    train(old, first, seed=5)
    train(new, second, seed=5)
    assert same(dict(new.named_parameters()), dict(old.named_parameters()))
    if kind == "kept":
        assert second.state["all"] == first.state["all"] == {"steps": 6}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_capture_of_a_boundary_finds_all_state_that_there_is(kind: str) -> None:
    model = net()
    optimizer = MAKERS[kind](model.parameters())
    _, part = registered(model, optimizer)
    before, there = part.structure(), bool(part.live())
    train(model, optimizer, 1)
    part.look()
    if optimizer.state and not there:
        assert part.structure() != before
    kept = {id(tensor) for tensor in part.live().values()}
    tensors = [
        tensor for state in optimizer.state.values() for tensor in state.values() if isinstance(tensor, torch.Tensor)
    ]
    if kind == "queued":
        tensors += [tensor for state in optimizer.state.values() for tensor in state["queue"]]
        in_state = part.structure()[0]
        train(model, optimizer, 1)
        part.look()
        assert part.structure()[0] != in_state
    assert kept >= {id(tensor) for tensor in tensors}


def test_state_that_is_updated_in_place_keeps_the_structure() -> None:
    model = net()
    optimizer = optim.AdamW(model.parameters())
    _, part = registered(model, optimizer)
    train(model, optimizer, 1)
    part.look()
    before = part.structure()
    train(model, optimizer, 1)
    part.look()
    assert part.structure() is before


@pytest.mark.parametrize("what", ["all of it", "one tensor", "a parameter", "none of it"])
def test_state_that_the_user_replaces_is_the_state_from_the_next_look_on(what: str) -> None:
    """The optimizer is torch's, which never does so itself."""
    model = net()
    optimizer = optim.AdamW(model.parameters())
    _, part = registered(model, optimizer)
    train(model, optimizer, 1)
    part.look()
    before, first = part.structure(), next(iter(optimizer.state))
    if what == "all of it":
        optimizer.state.clear()
        train(model, optimizer, 1)
    elif what == "one tensor":
        optimizer.state[first]["exp_avg"] = torch.zeros_like(first)
    elif what == "a parameter":
        name = next(name for name, parameter in model.named_parameters() if parameter is first)
        new = torch.nn.Parameter(torch.zeros_like(first))
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, new)
        optimizer.param_groups[0]["params"][0] = new
        optimizer.state = defaultdict(dict, {new if key is first else key: v for key, v in optimizer.state.items()})
    assert part.structure() is before
    there = {id(tensor) for state in optimizer.state.values() for tensor in state.values()}
    part.look()
    assert (part.structure() == before) == (what == "none of it")
    assert {id(tensor) for tensor in part.live().values()} == there


def test_state_that_is_replaced_changes_the_structure() -> None:
    model = net()
    optimizer = Kept(model.parameters())
    _, part = registered(model, optimizer)
    seen = set()
    for _ in range(20):
        train(model, optimizer, 1)
        part.record()
        seen.add(part.structure())
    assert len(seen) == 20


def test_fault_44_bf16_weights_keep_their_fp32_moments(tmp_path: Path) -> None:
    """Moments in another dtype than their weights, which torch casts when it loads them."""
    old, new = net(dtype=torch.bfloat16), net(1, dtype=torch.bfloat16)
    first, second = optim.AdamW(old.parameters(), 0.1), optim.AdamW(new.parameters(), 0.1)
    train(old, first)
    for state in first.state.values():
        state.update({key: value.float() + 1e-4 for key, value in state.items() if key != "step"})
    move(registered(old, first), registered(new, second), tmp_path)
    assert same(state_of(new, second), state_of(old, first))
    assert second.state[next(new.parameters())]["exp_avg"].dtype == torch.float32


def test_the_tensors_of_a_new_state_are_those_that_were_read_if_they_are_given_away_and_copies_otherwise(
    tmp_path: Path,
) -> None:
    model = net()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer)
    parts = registered(model, optimizer)
    loaded = save(parts, tmp_path)["optimizer"]
    copied = Stored(dict(loaded.tensors), loaded.rest)
    for stored, is_shared in ((copied, False), (loaded, True), (loaded, False)):  # what is given is given once
        new = optim.AdamW(model.parameters())
        registered(model, new)[1].restore(stored, strict=True)
        (value,) = (state["exp_avg"] for parameter, state in new.state.items() if parameter is next(model.parameters()))
        assert (value.data_ptr() == stored.tensors["model.0.weight/exp_avg"].data_ptr()) is is_shared


def test_sparse_gradients(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[nn.Module, optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Embedding(5, 3, sparse=True)
        return model, optim.SparseAdam(model.parameters(), 0.1)

    def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.tensor([1, 3])).square().sum().backward()
        optimizer.step()

    old, new = make(0), make(1)
    step(*old)
    move(registered(*old), registered(*new), tmp_path)
    for trained in (old, new):
        step(*trained)
    assert same(dict(new[0].named_parameters()), dict(old[0].named_parameters()))
    assert same(state_of(*new), state_of(*old))


def test_complex_weights(tmp_path: Path) -> None:
    old, new = nn.ParameterDict(), nn.ParameterDict()
    for module, value in ((old, 1 + 2j), (new, 0j)):
        module["w"] = nn.Parameter(torch.full((3,), value, dtype=torch.complex128))
    first, second = optim.Adam(old.parameters()), optim.Adam(new.parameters())
    old["w"].abs().sum().backward()
    first.step()
    move(registered(old, first), registered(new, second), tmp_path)
    assert same(state_of(new, second), state_of(old, first)) and same(new["w"], old["w"])


def test_what_is_recorded_is_of_that_moment(tmp_path: Path) -> None:
    model = net()
    optimizer = Kept(model.parameters())
    train(model, optimizer)
    _, part = registered(model, optimizer)
    recorded = part.record()
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.param_groups[0]["schedule"].append(3)
    for state in optimizer.state.values():
        state.update({key: 99 for key in ("step", "steps") if key in state})
        state.get("history", []).clear()
    rest = save_recorded([part], [recorded], tmp_path)["optimizer"].rest
    assert rest["groups"][0]["settings"] == {"lr": {"$float": (0.1).hex()}, "schedule": [1, 2]}
    assert rest["state"]["model.0.weight"]["values"]["step"] == 3
    assert len(rest["state"]["model.0.weight"]["values"]["history"]) == 3
    assert rest["shared"] == {"all": {"steps": 3}}


def test_a_group_that_was_added_later_is_added_again(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = optim.AdamW(old[2].parameters(), 0.1), optim.AdamW(new[2].parameters(), 0.1)  # type: ignore[index]
    for trained in (old, new):
        trained[0].requires_grad_(False)  # type: ignore[index]
    train(old, first)
    old[0].requires_grad_(True)  # type: ignore[index]
    first.add_param_group({"params": list(old[0].parameters()), "lr": 0.01})  # type: ignore[index]
    train(old, first)
    notes = move(registered(old, first), registered(new, second), tmp_path)
    assert notes == [
        "model: 2 weights were frozen or not otherwise than in the checkpoint; now as there",
        "optimizer: a group of 2 parameters was added, as the checkpoint has it",
    ]
    train(old, first, seed=5)
    train(new, second, seed=5)
    assert same(dict(new.named_parameters()), dict(old.named_parameters()))
    assert same(settings_of(second), settings_of(first))


def test_named_parameters_are_added_with_their_names(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first = optim.AdamW(old[2].named_parameters(), 0.1)  # type: ignore[index]
    second = optim.AdamW(new[2].named_parameters(), 0.1)  # type: ignore[index]
    first.add_param_group({"params": [("a", old[0].weight), ("b", old[0].bias)]})  # type: ignore[index]
    move(registered(old, first), registered(new, second), tmp_path)
    assert len(second.param_groups) == 2


def test_fault_44_state_goes_by_name_and_never_by_position(tmp_path: Path) -> None:
    """The optimizer is given the same parameters in another order and in other groups."""
    old, new = net(), net(1)
    first = optim.AdamW(
        [{"params": old[0].parameters(), "lr": 0.1}, {"params": old[2].parameters(), "lr": 0.2}]  # type: ignore[index]
    )
    second = optim.AdamW(
        [{"params": [*new[2].parameters()][::-1]}, {"params": [*new[0].parameters()][::-1]}]  # type: ignore[index]
    )
    train(old, first)
    move(registered(old, first), registered(new, second), tmp_path)
    assert same(state_of(new, second), state_of(old, first))
    assert [group["lr"] for group in second.param_groups] == [0.2, 0.1]


def test_several_models_and_optimizers(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        a, b = net(seed), net(seed + 1)
        both = optim.SGD([*a[0].parameters(), *b[0].parameters()], 0.1, momentum=0.9)  # type: ignore[index]
        rest = optim.AdamW([*a[2].parameters(), *b[2].parameters()], 0.1)  # type: ignore[index]
        return {"a": a, "b": b, "both": both, "rest": rest}

    def step(all_of: dict[str, Any]) -> None:
        all_of["both"].zero_grad()
        all_of["rest"].zero_grad()
        loss = all_of["b"](torch.ones(1, 3)).sum() + all_of["a"](torch.ones(1, 3)).sum()
        loss.backward()
        all_of["both"].step()
        all_of["rest"].step()

    old, new = make(0), make(5)
    step(old)
    parts: list[Part] = parts_of(old)
    move(parts, parts_of(new), tmp_path)
    step(old)
    step(new)
    for name in "ab":
        assert same(dict(new[name].named_parameters()), dict(old[name].named_parameters()))
    assert "b.0.weight/momentum_buffer" in parts[2].live()


def test_names_stay_when_another_model_is_registered(tmp_path: Path) -> None:
    model = net()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer)
    alone = registered(model, optimizer)[1]
    with_average = parts_of({"ema": optim.swa_utils.AveragedModel(model), "model": model, "optimizer": optimizer})
    assert with_average[2].live().keys() == alone.live().keys()


def test_how_a_group_computes_is_not_taken_over(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = optim.AdamW(old.parameters(), fused=True), optim.AdamW(new.parameters(), foreach=True)
    train(old, first)
    move(registered(old, first), registered(new, second), tmp_path)
    assert (second.param_groups[0]["fused"], second.param_groups[0]["foreach"]) == (None, True)


def test_state_that_only_the_new_optimizer_has_goes_away(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = optim.AdamW(old.parameters()), optim.AdamW(new.parameters())
    train(new, second)
    move(registered(old, first), registered(new, second), tmp_path)
    assert not second.state


@pytest.mark.cuda
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_state_goes_where_its_parameter_is_and_counters_where_they_are_read(
    tmp_path: Path, settings: dict[str, Any], there: str
) -> None:
    old, new = net(device=there), net(1, device="cuda")
    first = optim.AdamW(old.parameters(), **(settings if there == "cuda" else {}))
    second = optim.AdamW(new.parameters(), **settings)
    for parameter in old.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.step()
    move(registered(old, first), registered(new, second), tmp_path)
    for parameter in new.parameters():
        parameter.grad = torch.ones_like(parameter)
        state = second.state[parameter]
        assert state["exp_avg"].device == parameter.device and state["step"].is_cuda == bool(settings)
    second.step()


def problems(tmp_path: Path, first: Any, second: Any, change: Any = None) -> tuple[list[str], Part, Stored]:
    old, new = net(), net(1)
    if change:
        change(new)
    optimizer = first(old)
    train(old, optimizer)
    stored = save(registered(old, optimizer), tmp_path)["optimizer"]
    part = registered(new, second(new))[1]
    return part.problems(stored), part, stored


def adamw(model: Any) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), 0.1)


def test_another_class_is_a_mismatch(tmp_path: Path) -> None:
    problem_lines, part, stored = problems(tmp_path, adamw, lambda m: optim.SGD(m.parameters(), 0.1))
    assert problem_lines == ["optimizer: is of class AdamW in the checkpoint and of class SGD here"]
    with pytest.raises(CheckpointError, match="of class AdamW"):
        part.restore(stored, strict=True)
    assert part.restore(stored, strict=False) == [f"{problem_lines[0]}: left out"]


def test_parameters_on_one_side_alone_are_a_mismatch(tmp_path: Path) -> None:
    part_of = lambda m: optim.AdamW(m[0].parameters(), 0.1)  # noqa: E731
    problem_lines, _, _ = problems(tmp_path, part_of, adamw)
    assert problem_lines == [
        "optimizer: 'model.2.weight' is updated here and not in the checkpoint",
        "optimizer: 'model.2.bias' is updated here and not in the checkpoint",
        "optimizer: the parameters of group 0 of the checkpoint are divided otherwise here (1 groups there, 1 here)",
    ]
    problem_lines, _, _ = problems(tmp_path, adamw, part_of)
    assert problem_lines == [
        "optimizer: 'model.2.weight' is updated in the checkpoint and not here",
        "optimizer: 'model.2.bias' is updated in the checkpoint and not here",
    ]


def test_other_groups_of_the_same_parameters_are_a_mismatch(tmp_path: Path) -> None:
    two = lambda m: optim.AdamW([{"params": m[0].parameters()}, {"params": m[2].parameters()}])  # noqa: E731
    problem_lines, _, _ = problems(tmp_path, adamw, two)
    assert problem_lines == [
        "optimizer: the parameters of group 0 of the checkpoint are divided otherwise here (1 groups there, 2 here)"
    ]


def test_state_of_another_shape_is_left_out(tmp_path: Path) -> None:
    def widen(model: Any) -> None:
        model[2] = nn.Linear(4, 3)

    problem_lines, part, stored = problems(tmp_path, adamw, adamw, widen)
    assert problem_lines == [
        "optimizer: the state of 'model.2.weight' is for [2, 4], and it is [3, 4] here",
        "optimizer: the state of 'model.2.bias' is for [2], and it is [3] here",
    ]
    assert part.restore(stored, strict=False) == [f"{problem}: left out" for problem in problem_lines]
    assert sorted(part.live()) == sorted(
        f"model.0.{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    )


def test_the_state_of_lbfgs_goes_by_order(tmp_path: Path) -> None:
    problem_lines, _, _ = problems(
        tmp_path, lambda m: optim.LBFGS(m.parameters()), lambda m: optim.LBFGS([*m.parameters()][::-1])
    )
    assert problem_lines == ["optimizer: its parameters are in another order, on which the state of LBFGS depends"]


@pytest.mark.parametrize(
    "rest",
    [
        None,
        {"kind": "model"},
        {"kind": "optimizer", "class": "AdamW"},
        {"kind": "optimizer", "class": "AdamW", "groups": [7], "state": {}},
        {"kind": "optimizer", "class": "AdamW", "groups": [{"parameters": 7, "settings": {}}], "state": {}},
        {"kind": "optimizer", "class": "AdamW", "groups": [], "state": {"model.0.weight": {}}},
        {"kind": "optimizer", "class": "AdamW", "groups": [], "state": []},
        "settings that are a list",
        "settings with parameters",
        "state that is a number",
        "state without its tensor",
        "shared state that is a list",
    ],
    ids=lambda rest: json.dumps(rest)[:60],
)
def test_what_nobody_wrote_raises_an_error_of_ours_and_changes_nothing(tmp_path: Path, rest: Any) -> None:
    model = net()
    optimizer = adamw(model)
    train(model, optimizer)
    parts = registered(model, optimizer)
    stored = save(parts, tmp_path)["optimizer"]
    if isinstance(rest, str):
        whole = json.loads(json.dumps(stored.rest))
        if rest == "settings that are a list":
            whole["groups"][0]["settings"] = []
        elif rest == "settings with parameters":
            whole["groups"][0]["settings"]["params"] = []
        elif rest == "state that is a number":
            whole["state"]["model.0.weight"]["values"] = 5
        elif rest == "state without its tensor":
            whole["state"]["model.0.weight"]["values"]["step"] = {"$tensor": "gone"}
        else:
            whole["shared"] = []
        rest = whole
    before = [state_of(model, optimizer), settings_of(optimizer)]
    with pytest.raises(CheckpointError):
        parts[1].restore(Stored(stored.tensors, rest), strict=False)
    assert same([state_of(model, optimizer), settings_of(optimizer)], before)


def test_parameters_of_no_registered_model_are_refused_now_or_when_they_come_to_be_saved() -> None:
    model, other = net(), net(1)
    with pytest.raises(ConfigError, match=r"optimizer: 4 of its parameters \(the first: \[4, 3\]\) are of no model"):
        registered(model, optim.SGD(other.parameters(), 0.1))
    optimizer = optim.SGD(model.parameters(), 0.1)
    _, part = registered(model, optimizer)
    optimizer.add_param_group({"params": other.parameters()})
    recorded = part.record()
    with pytest.raises(UnsupportedError, match="4 of its parameters"):
        part.encode(recorded)


def test_settings_that_have_no_form_are_named_at_once_or_when_they_come_to_be_saved() -> None:
    model = net()
    optimizer = adamw(model)
    _, part = registered(model, optimizer)
    optimizer.param_groups[0]["own"] = len
    recorded = part.record()
    with pytest.raises(UnsupportedError, match=r"groups/0/own is a builtins"):
        part.encode(recorded)
    with pytest.raises(UnsupportedError, match=r"optimizer: groups/0/own is a builtins"):
        registered(model, optimizer)


def test_state_keeps_the_order_of_its_elements_in_memory(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = Kept(old.parameters()), Kept(new.parameters())
    for parameter in old.parameters():
        turned = torch.randn(6, 4, dtype=torch.float64).T
        first.state[parameter].update(turned=turned, gaps=turned[::2])
    move(registered(old, first), registered(new, second), tmp_path)
    assert same(state_of(new, second), state_of(old, first))
    for state in second.state.values():
        assert state["turned"].stride() == (1, 4) and state["gaps"].stride() == (6, 1)


def test_tensors_that_are_there_stay_and_have_other_values(tmp_path: Path) -> None:
    """What a graph was captured with, in the steps before a resume."""
    there, here = net(), net(1)
    optimizer = optim.AdamW(there.parameters(), lr=torch.tensor(0.01))
    other = optim.AdamW(here.parameters(), lr=torch.tensor(0.5))
    train(there, optimizer)
    train(here, other, steps=1, seed=1)
    before = {name: dict(state) for name, state in state_of(here, other).items()}
    rate = other.param_groups[0]["lr"]
    move(registered(there, optimizer), registered(here, other), tmp_path)
    after = state_of(here, other)
    assert all(after[name][key] is tensor for name, state in before.items() for key, tensor in state.items())
    assert same(after, state_of(there, optimizer))
    assert other.param_groups[0]["lr"] is rate and rate == torch.tensor(0.01)


def test_groups_that_begin_with_one_tensor_get_their_own_values(tmp_path: Path) -> None:
    """A rate that is a tensor is in all groups, until the loop gives one of them another, after the resume."""

    def grouped(model: nn.Module) -> optim.Optimizer:
        return optim.AdamW([{"params": [parameter]} for parameter in model.parameters()], lr=torch.tensor(0.01))

    there, here = net(), net(1)
    optimizer, other = grouped(there), grouped(here)
    optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
    move(registered(there, optimizer), registered(here, other), tmp_path)
    rates = [group["lr"] for group in other.param_groups]
    assert [float(rate) for rate in rates] == pytest.approx([0.01, 0.5, 0.01, 0.01])
    assert rates[0] is rates[2] and rates[0] is rates[3]


def test_state_of_inference_mode_is_replaced(tmp_path: Path) -> None:
    there, here = net(), net(1)
    optimizer, other = optim.AdamW(there.parameters()), optim.AdamW(here.parameters())
    train(there, optimizer)
    train(here, other, steps=1)
    with torch.inference_mode():
        for state in state_of(here, other).values():
            state["exp_avg"] = state["exp_avg"].clone()
    move(registered(there, optimizer), registered(here, other), tmp_path)
    assert same(state_of(here, other), state_of(there, optimizer))


def test_a_tensor_that_is_of_another_kind_there_is_replaced(tmp_path: Path) -> None:
    there, here = net(), net(1)
    optimizer, other = optim.AdamW(there.parameters()), optim.AdamW(here.parameters())
    train(there, optimizer)
    train(here, other, steps=1)
    for state in state_of(here, other).values():
        state["exp_avg"] = state["exp_avg"].double()
        state["exp_avg_sq"] = state["exp_avg_sq"].flatten()[:1].expand(state["exp_avg_sq"].numel())
    move(registered(there, optimizer), registered(here, other), tmp_path)
    assert same(state_of(here, other), state_of(there, optimizer))
