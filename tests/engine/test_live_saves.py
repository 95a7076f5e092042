"""Saves while training goes on: what is saved is the last boundary, whole, and training does not notice."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.loops import Loop, train
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast import Checkpointer
from holdfast.errors import CheckpointError, HoldfastError, PartialAccumulationError, SaveError


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in loop.model.named_parameters()}


def saved_weights(path: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(path) / "model.safetensors")


def same(saved: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def test_a_save_in_the_middle_of_a_step_holds_the_last_boundary(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            if loop.ckpt.step_count == 3:
                before = weights(loop)
                loop.model(batch[0]).sum().backward()  # the middle of a step, and BatchNorm has moved
                answer = loop.ckpt.save("in the middle").wait(10)
                assert answer.step == 3 and same(saved_weights(answer.path), before)
                loop.optimizer.zero_grad()
            loop.update(batch)


def test_fault_23_many_saves_change_no_bit(tmp_path: Path) -> None:
    """150 steps with a save asked for every twentieth of a second, against the same steps with none."""
    quiet = train(tmp_path / "quiet", 150)
    loop = Loop(tmp_path / "busy")
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            loop.ckpt.save()

    asking = threading.Thread(target=ask)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=150):
            if loop.ckpt.step_count == 1:
                asking.start()
            loop.update(batch)
            if loop.ckpt.step_count % 30 == 0:
                loop.ckpt.save(wait=True)
        ended.set()
        asking.join()
    assert len(events(tmp_path / "busy", "saved")) >= 5
    assert (loop.losses, loop.digest()) == (quiet.losses, quiet.digest())


def test_fault_22_a_hundred_requests_at_once_are_one_or_two_saves_and_all_get_the_answer(tmp_path: Path) -> None:
    """A hundred requests from Python between two steps."""
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                tickets = [loop.ckpt.save(f"number {n}") for n in range(100)]
                answers = {ticket.wait(20).digest for ticket in tickets}
    assert 1 <= len(answers) <= 2 and len(events(tmp_path / "run", "saved")) == len(answers)


def by_data(loop: Loop) -> None:
    loop.model[0].weight.data.mul_(1.01)  # type: ignore[operator]


def by_a_swap(loop: Loop) -> None:
    for parameter, average in zip(loop.model.parameters(), loop.ema.module.parameters(), strict=True):
        parameter.data = average.detach().clone()


def by_copying_the_average_in(loop: Loop) -> None:
    with torch.no_grad():
        for parameter, average in zip(loop.model.parameters(), loop.ema.module.parameters(), strict=True):
            parameter.data.copy_(average)


def by_clipping(loop: Loop) -> None:
    with torch.no_grad():
        for parameter in loop.model.parameters():
            parameter.clamp_(-0.01, 0.01)


def by_a_fused_kernel(loop: Loop) -> None:
    parameters: list[torch.Tensor] = list(loop.model.parameters())
    state = [loop.optimizer.state[parameter] for parameter in parameters]
    torch._fused_adamw_(
        parameters,
        [torch.ones_like(parameter) for parameter in parameters],
        [one["exp_avg"] for one in state],
        [one["exp_avg_sq"] for one in state],
        [],
        [one["step"] for one in state],
        lr=0.1,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def by_an_average_kept_by_hand(loop: Loop) -> None:
    with torch.no_grad():
        for parameter, average in zip(loop.model.parameters(), loop.ema.module.parameters(), strict=True):
            average.mul_(0.5).add_(parameter, alpha=0.5)


def by_merging_an_adapter(loop: Loop) -> None:
    layer: Any = loop.model[0]
    layer.weight.data += torch.randn(32, 4) @ torch.randn(4, 8)


WRITERS = [
    by_data,
    by_a_swap,
    by_copying_the_average_in,
    by_clipping,
    by_a_fused_kernel,
    by_an_average_kept_by_hand,
    by_merging_an_adapter,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_fault_23_47_what_is_written_past_the_gate_is_never_published(
    tmp_path: Path, write: Callable[[Loop], None]
) -> None:
    """In the middle of a step weights are swapped or written to, as an evaluation of averaged weights does."""
    loop = Loop(tmp_path / "run")
    boundaries: dict[int, dict[str, torch.Tensor]] = {}
    ticket = None
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            if loop.ckpt.step_count == 3:
                write(loop)
                ticket = loop.ckpt.save()
                wait_until(lambda: events(tmp_path / "run", "capture"))
            loop.update(batch)
            boundaries[loop.ckpt.step_count] = weights(loop)
        assert ticket is not None
        answer = ticket.wait(10)
    assert answer.step > 3 and same(saved_weights(answer.path), boundaries[answer.step])
    (told,) = (line for line in loop.said if "written outside the optimizer's step" in line)
    assert "at boundaries from now on" in told and events(tmp_path / "run", "capture")[0]["reason"] in told


def test_a_state_larger_than_its_staging_memory_streams_while_training_waits_and_says_so(tmp_path: Path) -> None:
    model = torch.nn.Linear(4096, 4096)  # with its momentum 134 MB, beside a ring of 32
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    boundaries, run = {}, tmp_path / "run"
    with Checkpointer(
        run, model=model, optimizer=optimizer, save_steps=2, staging_memory=0, say=lambda text: None
    ) as ckpt:
        ckpt.resume()
        for step in (1, 2, 3, 4):
            model(torch.randn(2, 4096)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
            with ckpt.update():  # comes at once, before the snapshot can be in memory
                pass
            boundaries[step] = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for step in (2, 4):
        assert same(saved_weights(run / f"checkpoint-{step}"), boundaries[step])
    assert events(run, "held")[0]["streamed"] and not events(run, "capture")


def test_a_state_that_no_other_thread_can_read_is_taken_at_boundaries_and_resumes(tmp_path: Path) -> None:
    def run(until: int) -> str:
        torch.manual_seed(3)
        model = torch.nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters())
        quiet: dict[str, Any] = {"say": lambda text: None, "save_at_end": False}
        ckpt = Checkpointer(tmp_path / "run", model=model, optimizer=optimizer, **quiet)
        with ckpt:
            for step in range(ckpt.resume(), until):
                model(torch.randn(2, 4)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                optimizer.state[model.weight].setdefault("seen", torch.eye(3).to_sparse())
                ckpt.step()
                if step == 1:
                    assert ckpt.save(wait=True).answer is not None
        return str(optimizer.state[model.weight]["seen"].layout)

    assert run(2) == run(3) == "torch.sparse_coo"
    assert "seen" in events(tmp_path / "run", "capture")[0]["reason"]
    assert [event["step"] for event in events(tmp_path / "run", "saved")] == [2]


def test_an_update_of_ones_own_waits_at_the_gate(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        loop.ckpt.resume()
        with loop.ckpt.update():
            by_data(loop)
        loop.ckpt.step()
        assert loop.ckpt.save().wait(10).step == 1
    assert not events(tmp_path / "run", "capture")


def test_an_exception_is_preceded_by_a_save_of_the_last_boundary_and_not_changed(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    error = RuntimeError("a bad day")
    with pytest.raises(RuntimeError) as raised, loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            if loop.ckpt.step_count == 4:
                raise error
            loop.update(batch)
    assert raised.value is error
    (saved,) = events(tmp_path / "run", "saved")
    assert saved["step"] == 4 and saved["doors"] == ["exception"]
    whole = train(tmp_path / "whole", 6)
    assert train(tmp_path / "run", 6).digest() == whole.digest()


def test_an_exception_in_the_middle_of_an_update_saves_nothing_and_says_why(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), loop.ckpt:
        loop.ckpt.resume()
        with loop.ckpt.update():
            pass
        loop.ckpt.step()
        with loop.ckpt.update():
            raise ZeroDivisionError
    assert not events(tmp_path / "run", "saved")
    assert any("in the middle of an update" in line for line in loop.said)


def test_waiting_in_the_middle_of_an_update_is_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", save_on_exception=False)
    with pytest.raises(HoldfastError, match="in the middle of an update"), loop.ckpt:
        loop.ckpt.resume()
        with loop.ckpt.update():
            loop.ckpt.save(wait=True)


def test_fault_47_a_step_in_the_middle_of_an_accumulation_is_refused(tmp_path: Path) -> None:
    """step() is called when gradients are there and no optimizer has used them."""
    loop = Loop(tmp_path / "run", save_on_exception=False)
    with pytest.raises(PartialAccumulationError, match="no optimizer has taken its step"), loop.ckpt:
        for rows, _ in loop.ckpt.batches(until=3):
            loop.model(rows).sum().backward()
            loop.ckpt.step()


def test_accumulation_gives_lists_and_resumes_exactly(tmp_path: Path) -> None:
    def run(folder: Path, until: int) -> Loop:
        loop = Loop(folder)
        with loop.ckpt:
            for batches in loop.ckpt.batches(until=until, accumulate=2):
                assert 1 <= len(batches) <= 2
                for rows, wanted in batches[1:]:
                    ((loop.model(rows) - wanted) ** 2).mean().backward()
                loop.update(batches[0])
                if loop.ckpt.step_count == 5:
                    loop.ckpt.save(wait=True)
        return loop

    whole = run(tmp_path / "whole", 11)
    run(tmp_path / "cut", 5)
    assert run(tmp_path / "cut", 11).digest() == whole.digest()


def test_fault_44_a_changed_model_is_a_named_mismatch_and_nothing_is_changed(tmp_path: Path) -> None:
    """A run is resumed with a model of other shapes."""
    train(tmp_path / "run", 3, save_steps=3)
    layer = torch.nn.Linear(8, 16)
    other = torch.nn.Sequential(layer)
    before = layer.weight.detach().clone()
    loop = Loop(tmp_path / "run", model=other, optimizer=torch.optim.AdamW(other.parameters()))
    with pytest.raises(CheckpointError, match=r"0\.weight"), loop.ckpt:
        loop.ckpt.resume()
    assert torch.equal(before, layer.weight)


def test_a_failed_save_is_raised_where_somebody_waits_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.store import commit

    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                with monkeypatch.context() as broken:
                    broken.setattr(commit.Attempt, "seal", lambda *given: 1 / 0)
                    with pytest.raises(SaveError, match="division by zero"):
                        loop.ckpt.save(wait=True)
                assert loop.ckpt.save(wait=True).answer is not None
    assert loop.ckpt.step_count == 4 and len(events(tmp_path / "run", "failed")) == 1


def test_a_large_buffer_that_changes_is_copied_from_then_on_and_the_status_says_what_that_costs(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    model.register_buffer("memory", torch.zeros(300_000))  # 1.2 MB
    model.register_buffer("mask", torch.ones(300_000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Checkpointer(tmp_path, model=model, optimizer=optimizer, say=lambda text: None) as ckpt:
        ckpt.resume()
        for step in range(4):
            with ckpt.update():
                if step == 2:
                    model.get_buffer("memory").add_(1)
            ckpt.step()
            copied = {} if step < 2 else {"model.memory": 1_200_000}
            assert ckpt._engine.run.status.now.copied_buffers == copied
