"""Resumes, exports and deletions in a directory in which a stranger exchanges checkpoints."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save
from transformers import TrainerCallback

import holdfast
from faults.accounts import done_as
from faults.ground import GROUP, OPEN, Ground, exchange, pickled
from faults.verbs import runs
from helpers.loops import Loop
from helpers.small_trainer import small_trainer
from holdfast.errors import HoldfastError

Record = Callable[[str, object], None]
KINDS = (GROUP, OPEN)
STEPS = 5


def of_ones(weights: bytes) -> bytes:
    """Other weights of the same names and shapes."""
    return save({name: tensor * 0 + 1 for name, tensor in load(weights).items()}, metadata={"format": "pt"})


def exchanges(place: Ground, first: Path, second: Path, most_spins: int) -> Callable[[], int]:
    """The stranger's turn: exchanges two directories, and then lets a moment pass."""
    chance = random.Random(11)

    def turn() -> int:
        exchange(first, second)
        for _ in range(chance.randrange(most_spins)):
            pass
        return 1

    return turn


def digest_of(model: Any) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def resumes(run: Path, times: int) -> None:
    """What a child does: begins again and again, and prints with what weights, or why not."""
    for _ in range(times):
        try:
            loop = Loop(run, say=print)
            with loop.ckpt:
                step = loop.ckpt.resume()
                print("begins", step, digest_of(loop.model), flush=True)
        except HoldfastError as error:
            print("refused", error, flush=True)


def trains_and_prints(run: Path) -> None:
    loop = Loop(run, save_steps=1, say=print)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=STEPS):
            loop.update(batch)
            print("trains", loop.ckpt.step_count, digest_of(loop.model), flush=True)


def words_of(printed: str, first: str) -> list[list[str]]:
    """The lines that begin with a word, in words."""
    return [line.split()[1:] for line in printed.splitlines() if line.startswith(f"{first} ")]


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_security_s23_with_two_accounts_a_loop_goes_on_from_the_checkpoint_that_was_verified(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges the newest checkpoint for one of its own with a good manifest while a loop resumes."""
    with place.program(lambda: trains_and_prints(place.run)) as child:
        assert child.wait() == 0, child.said()
        trained = words_of(child.said(), "trains")
    newest = place.run / f"checkpoint-{STEPS}"
    (weights,) = (path.name for path in newest.iterdir() if path.name.startswith("model") and path.suffix != ".json")
    forged = place.forge(newest, {weights: of_ones((newest / weights).read_bytes())})
    with place.strange(exchanges(place, newest, forged, 200_000)) as stranger:
        stranger.wait_for(1)
        with place.program(lambda: resumes(place.run, 25)) as child:
            assert child.wait() == 0, child.said()
        record_property("injected", stranger.end())
    resumed = words_of(child.said(), "begins")
    assert resumed and all(each in trained for each in resumed), (trained, resumed)
    assert len(resumed) + len(words_of(child.said(), "refused")) == 25
    assert "Traceback" not in child.said() and "/proc/" not in child.said()
    place.require_untouched()


class PrintsWeights(TrainerCallback):  # type: ignore[misc]
    """Prints the weights with which a Trainer begins, and those of each step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        print("begins", state.global_step, digest_of(others["model"]), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        print("trains", state.global_step, digest_of(others["model"]), flush=True)


def fits(run: Path, times: int = 1, **settings: Any) -> None:
    """What a child does: trains with a Trainer, again and again, from the newest good checkpoint, and says so."""
    for _ in range(times):
        trainer = small_trainer(run, [PrintsWeights()], max_steps=STEPS, save_steps=1, **settings)
        try:
            holdfast.attach(trainer).train(resume_from_checkpoint="auto")
        except HoldfastError as error:
            print("refused", error, flush=True)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_security_s23_with_two_accounts_a_trainer_goes_on_from_the_checkpoint_that_was_verified(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges the newest checkpoint for one of its own, pickles in it, while a Trainer resumes."""
    with place.program(lambda: fits(place.run)) as child:
        assert child.wait() == 0, child.said()
        trained = words_of(child.said(), "trains")
    newest = place.run / f"checkpoint-{STEPS}"
    weights = of_ones((newest / "model.safetensors").read_bytes())
    pickles = {name: pickled(place.ran) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
    forged = place.forge(newest, {"model.safetensors": weights, **pickles})
    with place.strange(exchanges(place, newest, forged, 500_000)) as stranger:
        stranger.wait_for(1)
        with place.program(lambda: fits(place.run, 12, save_strategy="no")) as child:
            assert child.wait() == 0, child.said()
        record_property("injected", stranger.end())
    resumed = words_of(child.said(), "begins")
    assert resumed and all(each in trained for each in resumed), (trained, resumed)
    assert len(resumed) + len(words_of(child.said(), "refused")) == 12
    assert "Traceback" not in child.said() and "/proc/" not in child.said()
    place.require_untouched()


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_security_s23_with_two_accounts_an_export_is_of_one_checkpoint_and_a_deletion_of_the_users_alone(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges a checkpoint for its own, and for a link to a folder, during `export` and `prune`."""
    with place.program(lambda: fits(place.run)) as child:
        assert child.wait() == 0, child.said()
    checkpoint, out = place.run / f"checkpoint-{STEPS - 1}", place.home / "exported"
    ours = (checkpoint / "model.safetensors").read_bytes()
    theirs = of_ones(ours)
    forged = place.forge(checkpoint, {"model.safetensors": theirs})
    with place.strange(exchanges(place, checkpoint, forged, 50_000)) as stranger:
        with place.program(lambda: runs("export", str(checkpoint), str(out / "{number}"), times=20)) as child:
            assert child.wait() == 0, child.said()
        exported = {path.read_bytes() for path in out.glob("*/model.safetensors")}
        assert exported <= {ours, theirs} and exported and "Traceback" not in child.said()
        record_property("injected", stranger.end())
    shutil.rmtree(out)
    place.require_untouched()
    link = place.run / "planted"
    done_as(place.stranger, lambda: link.symlink_to(place.private))
    pruning = place.program(lambda: runs("prune", str(place.run), "--keep-last", "1", "--yes", times=3))
    with place.strange(exchanges(place, checkpoint, link, 50_000)), pruning as child:
        assert child.wait() == 0, child.said()
    assert "Traceback" not in child.said()
    place.require_saved(STEPS)
    place.require_untouched()
