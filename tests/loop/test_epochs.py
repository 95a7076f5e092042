"""A loop by epochs: wherever it is left, it ends as the loop alone that nobody has interrupted."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from helpers.epochs import EPOCHS, STEPS, ByEpochs
from helpers.paper import Paper, taken_for_cards
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast import Checkpointer, Stopped
from holdfast.engine.pending_save import PendingSave
from holdfast.errors import ConfigError, HoldfastError, SaveError
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request

At = Callable[[str, ByEpochs], object]


class Killed(Exception):
    """Stands for the end of the process: nothing is saved on the way out."""


def killed_after(act: Callable[[ByEpochs], object], place: str, epoch: int, step: int | None = None) -> At:
    """Does something at a place of the body, once, and breaks off there."""

    def at(here: str, loop: ByEpochs) -> None:
        if (here, loop.epoch) == (place, epoch) and step in (None, loop.step):
            act(loop)
            raise Killed

    return at


def saves(loop: ByEpochs) -> None:
    loop.ckpt.save("asked for", wait=True)


def from_another_thread(loop: ByEpochs) -> PendingSave:
    with ThreadPoolExecutor() as pool:
        pending: PendingSave = pool.submit(loop.ckpt.save, "of the last boundary").result()
    return pending


def draws_and_saves(loop: ByEpochs) -> None:
    torch.rand(3)
    saves(loop)


def stops(loop: ByEpochs) -> None:
    loop.ckpt.save(stop=True)


def killed(run: Path, at: At, **changes: Any) -> ByEpochs:
    loop = ByEpochs(run, at=at, save_at_end=False, **changes)
    with pytest.raises(Killed):
        loop.train()
    return loop


def manifest(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint / "MANIFEST.json").read_text())
    return content


@pytest.fixture(scope="module")
def alone() -> ByEpochs:
    """The loop without Holdfast, uninterrupted."""
    return ByEpochs(None).train()


def test_a_loop_by_epochs_is_what_it_is_without_holdfast(tmp_path: Path, alone: ByEpochs) -> None:
    seen: list[int] = []
    loop = ByEpochs(tmp_path / "run", at=lambda place, loop: seen.append(loop.ckpt.epoch)).train()
    assert loop.validated == alone.validated and loop.digest() == alone.digest()
    assert seen == sorted(seen) and set(seen) == set(range(EPOCHS))
    (saved,) = events(tmp_path / "run", "saved")
    assert saved["step"] == EPOCHS * STEPS and loop.ckpt.epoch == EPOCHS
    assert "requires" not in manifest(Path(saved["path"]))


PLACES = [
    ("step", 1, 7),
    ("step", 1, 10),  # the last of the epoch
    ("rest", 1, None),
    ("end", 1, None),
    ("top", 2, None),
    ("step", 2, 15),  # the last of all
    ("end", 2, None),
]


@pytest.mark.parametrize(("place", "epoch", "step"), PLACES)
def test_killed_wherever_it_is_it_goes_on_to_the_same_end(
    tmp_path: Path, alone: ByEpochs, place: str, epoch: int, step: int | None
) -> None:
    """The state that comes back is that of the last step or of an end of a body, with the average as it was then."""
    loop = killed(tmp_path / "run", killed_after(saves, place, epoch, step))
    resumed = ByEpochs(tmp_path / "run").train()
    assert resumed.digest() == alone.digest()
    done = loop.validated[: resumed.epoch + 1 - len(resumed.validated)]
    assert [*done, *resumed.validated] == alone.validated
    assert resumed.validated, "the rest of the body was to run"
    within = "its batches taken and the rest of its body to come"
    first = next(line for line in resumed.said if line.startswith("resumed from"))
    assert (within in first) == (place != "top" and step != 7)


def test_on_cards_the_copies_of_a_body_are_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: ByEpochs
) -> None:
    taken_for_cards(monkeypatch, Paper("lazy", in_step=True))
    killed(tmp_path / "run", killed_after(saves, "rest", 1))
    assert ByEpochs(tmp_path / "run").train().digest() == alone.digest()


@pytest.mark.parametrize("data", ["a list", "a stream", "kept workers", "a generator of its own"])
def test_the_rest_of_a_body_comes_again_whatever_its_batches_come_from(tmp_path: Path, data: str) -> None:
    def made(rows: Any) -> Any:
        if data == "a list":
            return list(DataLoader(rows, batch_size=4))
        if data == "a stream":
            return DataLoader(Stream(rows), batch_size=4)
        if data == "kept workers":
            return DataLoader(rows, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
        return DataLoader(rows, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))

    whole = ByEpochs(None, data=made).train()
    for place, epoch, step in (("rest", 1, None), ("step", 1, 10), ("top", 2, None)):
        run = tmp_path / f"{place}{step}"
        killed(run, killed_after(saves, place, epoch, step), data=made)
        resumed = ByEpochs(run, data=made).train()
        assert resumed.digest() == whole.digest() and resumed.validated == whole.validated[-len(resumed.validated) :]


class Average:
    """Keeps one large tensor."""

    def __init__(self) -> None:
        self.value = torch.zeros(50_000)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.value = state["value"].clone()


class Stream(torch.utils.data.IterableDataset[Any]):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_accumulation_ends_with_the_epoch(tmp_path: Path) -> None:
    whole = ByEpochs(None, accumulate=2).train()
    killed(tmp_path / "run", killed_after(saves, "rest", 1), accumulate=2)
    resumed = ByEpochs(tmp_path / "run", accumulate=2).train()
    assert resumed.digest() == whole.digest() and resumed.ckpt.step_count == 9


@pytest.mark.parametrize("place", ["step", "rest"])
def test_a_stop_leaves_the_block_and_nothing_that_follows_runs(tmp_path: Path, alone: ByEpochs, place: str) -> None:
    """In the batches the rest of the body does not run; in the rest it runs to its end."""
    run, after = tmp_path / "run", []
    loop = ByEpochs(
        run, at=lambda here, loop: stops(loop) if here == place and loop.step == 7 + 3 * (place == "rest") else 0
    )
    with pytest.raises(Stopped) as stopped, loop.ckpt:
        loop.through()
        after.append("the loop")
    after += ["the block"] if stopped.value.code != 75 else []
    assert not after and len(loop.validated) == 1 + (place == "rest")
    assert events(run, "end")[-1]["outcome"] == "stopped"
    resumed = ByEpochs(run).train()
    assert resumed.digest() == alone.digest()
    assert resumed.validated == alone.validated[1:], "a body that was stopped in its rest runs that again"


def test_a_stop_returns_from_the_block_where_it_is_to(tmp_path: Path) -> None:
    loop = ByEpochs(tmp_path / "run", on_stop="return", at=lambda here, loop: stops(loop) if loop.step == 7 else 0)
    with loop.ckpt:
        loop.through()
        pytest.fail("what follows the loop was run")
    assert loop.ckpt.stop_requested and loop.ckpt.step_count in (7, 8) and len(loop.validated) == 1


def test_a_stop_without_a_block_closes_the_training(tmp_path: Path, alone: ByEpochs) -> None:
    loop = ByEpochs(tmp_path / "run", at=lambda here, loop: stops(loop) if loop.step == 7 else 0)
    with pytest.raises(Stopped) as stopped:
        loop.through()
    assert stopped.value.code == 75 and events(tmp_path / "run", "end")[-1]["outcome"] == "stopped"
    loop.ckpt.close()
    resumed = ByEpochs(tmp_path / "run")
    resumed.through()
    resumed.ckpt.close()
    assert resumed.digest() == alone.digest()


def test_a_stop_that_meets_the_last_body_is_an_end(tmp_path: Path, alone: ByEpochs) -> None:
    loop = ByEpochs(tmp_path / "run", at=lambda here, loop: stops(loop) if here == "rest" and loop.epoch == 2 else 0)
    loop.train()
    assert loop.digest() == alone.digest() and events(tmp_path / "run", "end")[-1]["outcome"] == "finished"
    again = ByEpochs(tmp_path / "run").train()
    assert not again.validated and again.digest() == alone.digest()
    assert any(line.startswith("nothing to do") for line in again.said)
    more, whole = ByEpochs(tmp_path / "run", EPOCHS + 1).train(), ByEpochs(None, EPOCHS + 1).train()
    assert more.digest() == whole.digest() and "epochs: 3 -> 4, from your configuration" in more.said


def test_a_signal_in_the_validation_is_saved_at_once(tmp_path: Path, alone: ByEpochs) -> None:
    """The process is in the middle of it, with the average moved on; it ends when its grace is over."""
    run, stands = tmp_path / "run", tmp_path / "stands"

    def stand(here: str, loop: ByEpochs) -> None:
        if here == "rest" and loop.epoch == 1:
            stands.touch()
            signal.pause()
            while True:
                signal.pause()

    if not (child := os.fork()):
        try:
            ByEpochs(run, at=stand, stop_grace_seconds=1.5).train()
        finally:
            os._exit(99)
    wait_until(stands.exists, 60)
    inbox = Inbox(RunDirectory.open(run))
    asked = Request("command", why="a test")
    inbox.submit(asked)
    answer = wait_until(lambda: inbox.answer_to(asked.id), 20)
    assert answer is not None and answer.saved and answer.step == 2 * STEPS
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    resumed = ByEpochs(run).train()
    assert resumed.digest() == alone.digest() and resumed.validated == alone.validated[1:]


def test_an_error_in_the_validation_is_preceded_by_the_state_of_the_last_step(tmp_path: Path, alone: ByEpochs) -> None:
    loop = ByEpochs(tmp_path / "run", at=killed_after(lambda loop: None, "rest", 1), save_on_exception=True)
    with pytest.raises(Killed):
        loop.train()
    resumed = ByEpochs(tmp_path / "run").train()
    assert resumed.digest() == alone.digest() and len(resumed.validated) == 2


def test_what_does_not_fit_into_the_staging_memory_waits_for_the_end_of_the_body(
    tmp_path: Path, alone: ByEpochs
) -> None:
    """A request before the average moves is served at once; after it at the end of the body, and `status` says so."""
    run, asked = tmp_path / "run", []

    def ask(here: str, loop: ByEpochs) -> None:
        status = loop.ckpt._engine.run.status
        if here == "rest" and loop.epoch == 1:
            with pytest.raises(SaveError, match=r"swa.* changed in the epoch's body after step 10"):
                loop.ckpt.save("waits in vain", wait=True)
            asked.append(from_another_thread(loop))
            wait_until(lambda: "a save waits for the end of the body" in status.now.body, 20)
            assert asked[0].answer is None
        if here == "top" and loop.epoch == 2:
            assert asked[0].wait(20).step == 10 and not status.now.body
            raise Killed

    killed(run, ask, staging_memory=0)
    resumed = ByEpochs(run, staging_memory=0).train()
    assert resumed.digest() == alone.digest() and resumed.validated == alone.validated[2:]
    assert any("do not fit into the staging memory" in line for line in resumed.said)


def test_what_does_not_fit_is_saved_at_once_as_long_as_it_stands_still(tmp_path: Path, alone: ByEpochs) -> None:
    run = tmp_path / "run"
    loop = ByEpochs(run, staging_memory=0, save_at_end=False)
    update = loop.swa.update_parameters

    def save_before(model: torch.nn.Module) -> None:
        if loop.epoch == 1:
            saves(loop)
            raise Killed
        update(model)

    loop.swa.update_parameters = save_before  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.train()
    assert ByEpochs(run).train().digest() == alone.digest()


@pytest.mark.parametrize("staging", [None, 0])
def test_an_object_that_the_body_changes_is_saved_as_it_was(tmp_path: Path, staging: int | None) -> None:
    """A large tensor of an object of one's own, which moves in the body alone, without a version that would tell."""
    average = Average()
    found: list[bool] = []

    def move(here: str, loop: ByEpochs) -> None:
        if here == "rest":
            average.value.data += 1
        if here == "rest" and loop.epoch == 1:
            pending = from_another_thread(loop)
            found.append(
                wait_until(lambda: pending.answer is not None or "waits" in loop.ckpt._engine.run.status.now.body, 20)
            )
        if here == "top" and loop.epoch == 2:
            raise Killed

    killed(tmp_path / "run", move, average=average, staging_memory=staging)
    again = Average()
    resumed = ByEpochs(tmp_path / "run", average=again, staging_memory=staging)
    with resumed.ckpt:
        resumed.ckpt.resume()
        assert found and torch.equal(again.value, torch.full((50_000,), 1.0 if staging is None else 2.0))


def test_frozen_weights_of_a_model_that_is_trained_are_not_copied(tmp_path: Path) -> None:
    copied: list[set[str]] = []

    def look(here: str, loop: ByEpochs) -> None:
        if here == "rest":
            copied.append({f"{part}.{name}" for part, name in loop.ckpt._state.bodies._copies})

    loop = ByEpochs(tmp_path / "run", 1, at=look)
    loop.model[0].requires_grad_(False)
    del loop.optimizer.param_groups[0]["params"][:2]
    loop.train()
    assert copied == [{f"swa.{name}" for name, _ in loop.swa.named_parameters()}]
    assert not loop.ckpt._state.bodies.are_copied


def test_a_body_that_leaves_its_batches_begins_the_next_epoch_anew(tmp_path: Path) -> None:
    """The next epoch has an order of its own, as without Holdfast; asked for in the rest, that is where it goes on."""

    def early(loop: ByEpochs) -> bool:
        return loop.step > 0 and loop.step % 4 == 3 and loop.left.get(loop.epoch) != loop.step  # type: ignore[attr-defined]

    def note(here: str, loop: ByEpochs) -> None:
        loop.__dict__.setdefault("left", {})
        if here == "top":
            loop.left[loop.epoch] = loop.step  # type: ignore[attr-defined]

    whole = ByEpochs(None, at=note, ended_by=early).train()
    assert whole.step == 11

    def noted_and_killed(here: str, loop: ByEpochs) -> None:
        note(here, loop)
        killed_after(saves, "rest", 1)(here, loop)

    loop = killed(tmp_path / "run", noted_and_killed, ended_by=early)
    assert sum("the next one begins the data anew" in line for line in loop.said) == 1
    resumed = ByEpochs(tmp_path / "run", at=note, ended_by=early).train()
    assert resumed.digest() == whole.digest() and resumed.validated == whole.validated[1:]


def test_a_loop_that_leaves_its_epochs_comes_to_the_same_decision_again(tmp_path: Path, alone: ByEpochs) -> None:
    """Early stopping: the last body runs again, its schedule is stepped once, and no checkpoint is added."""
    for start in range(2):
        loop = ByEpochs(tmp_path / "run")
        with loop.ckpt:
            for epoch in loop.ckpt.epochs(EPOCHS):
                for rows, wanted in loop.ckpt.batches():
                    ((loop.model(rows) - wanted) ** 2).mean().backward()
                    loop.optimizer.step()
                    loop.optimizer.zero_grad()
                    loop.ckpt.step()
                loop.scheduler.step()
                if epoch == 1:
                    break
        assert loop.scheduler.get_last_lr()[0] == pytest.approx(1e-2 * 0.49)
        assert [event["step"] for event in events(tmp_path / "run", "saved")] == [10], start


def test_the_end_of_a_body_is_served_like_any_boundary(tmp_path: Path) -> None:
    """What is asked at the top of the next body holds all that the body did, and nothing of that top."""
    loop = killed(tmp_path / "run", killed_after(draws_and_saves, "top", 1))
    (saved,) = events(loop.ckpt._engine.run.root, "saved")
    training = json.loads((Path(saved["path"]) / "training.json").read_text())
    assert training == {"step": STEPS, "epoch": 1}
    assert manifest(Path(saved["path"]))["boundary"]["face"] == "epoch_end"
    whole = ByEpochs(None, at=lambda here, loop: torch.rand(3) if here == "top" and loop.epoch == 1 else 0).train()
    resumed = ByEpochs(
        tmp_path / "run", at=lambda here, loop: torch.rand(3) if here == "top" and loop.epoch == 1 else 0
    )
    assert resumed.train().digest() == whole.digest()


def test_what_would_be_wrong_is_refused_by_name(tmp_path: Path) -> None:
    loop = ByEpochs(tmp_path / "run", on_stop="return")
    for epochs in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="no number of epochs"):
            next(loop.ckpt.epochs(epochs))
    for wrong in (
        {"until": "10"},
        {"until": 2.5},
        {"epochs": "x"},
        {"epochs": -1},
        {"accumulate": "2"},
        {"accumulate": 0},
    ):
        (name, value), *_ = wrong.items()
        with pytest.raises(ConfigError, match=rf"{name}: .*{value}.* is no number of (steps|epochs|batches); give"):
            next(loop.ckpt.batches(**wrong))
    with pytest.raises(ConfigError, match="on_stop: `return` takes a with block"):
        next(loop.ckpt.epochs(1))
    with loop.ckpt:
        for _ in loop.ckpt.epochs(1):
            with pytest.raises(HoldfastError, match=r"epochs\(\) inside of epochs\(\)"):
                next(loop.ckpt.epochs(1))
            for ends in ({"until": 5}, {"epochs": 1}):
                with pytest.raises(ConfigError, match="takes neither until= nor epochs="):
                    next(loop.ckpt.batches(**ends))
            for _ in loop.ckpt.batches():
                pass
            with pytest.raises(HoldfastError, match=r"batches\(\) twice in the body of epoch 0"):
                next(loop.ckpt.batches())
        with pytest.raises(HoldfastError, match=r"the body of epoch 1 took nothing from batches\(\)"):
            for _ in loop.ckpt.epochs(2):
                pass
    own = Checkpointer(tmp_path / "own", model=torch.nn.Linear(1, 1), say=lambda line: None)
    with pytest.raises(ConfigError, match=r"epochs\(\) goes through the data, and there is none; give data="):
        next(own.epochs(1))
    own.close()


def test_a_loop_that_begins_or_ends_to_count_its_epochs_hears_what_is_not_known(tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed(run, killed_after(saves, "rest", 0))
    without = ByEpochs(run, save_at_end=False)
    with without.ckpt:
        for rows, _ in without.ckpt.batches(epochs=2):
            without.model(rows).sum().backward()
            without.optimizer.step()
            without.optimizer.zero_grad()
            without.ckpt.step()
        without.ckpt.save(wait=True)
    assert any("the body of epoch 0 was left after its batches" in line for line in without.said)
    again = ByEpochs(run).train()
    assert any("does not say whether what follows the batches" in line for line in again.said) and again.epoch == 2
