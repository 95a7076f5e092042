"""Resumes, exports and deletions in a directory in which a stranger exchanges checkpoints."""

import shutil
from collections.abc import Callable

import pytest

from faults.accounts import done_as
from faults.ground import GROUP, OPEN, ROOT, Ground, exchanges, pickled
from faults.programs import STEPS, fits, of_ones, resumes, runs, trains, words_of

Record = Callable[[str, object], None]
KINDS = (GROUP, OPEN, ROOT)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_security_s23_with_two_accounts_a_loop_goes_on_from_the_checkpoint_that_was_verified(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges the newest checkpoint for one of its own with a good manifest while a loop resumes."""
    with place.program(lambda: trains(place.run)) as child:
        assert child.wait() == 0, child.said()
        trained = words_of(child.said(), "trains")
    newest = place.run / f"checkpoint-{STEPS}"
    (weights,) = (path.name for path in newest.iterdir() if path.name.startswith("model") and path.suffix != ".json")
    forged = place.forge(newest, {weights: of_ones((newest / weights).read_bytes())})
    with place.strange(exchanges(newest, forged, 200_000)) as stranger:
        stranger.wait_for(1)
        with place.program(lambda: resumes(place.run, 25)) as child:
            assert child.wait() == 0, child.said()
        record_property("injected", stranger.end())
    resumed = words_of(child.said(), "begins")
    assert resumed and all(each in trained for each in resumed), (trained, resumed)
    assert len(resumed) + len(words_of(child.said(), "refused")) == 25
    assert "Traceback" not in child.said() and "/proc/" not in child.said()
    place.require_untouched()


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
    with place.strange(exchanges(newest, forged, 500_000)) as stranger:
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
    with place.strange(exchanges(checkpoint, forged, 50_000)) as stranger:
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
    with place.strange(exchanges(checkpoint, link, 50_000)), pruning as child:
        assert child.wait() == 0, child.said()
    assert "Traceback" not in child.said()
    place.require_saved(STEPS)
    place.require_untouched()
