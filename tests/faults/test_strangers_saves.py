"""Saves in a directory that a stranger may write to, while he exchanges what is in it."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

import holdfast
from faults.accounts import done_as, unprotected
from faults.desk import Desk
from faults.ground import GROUP, KINDS, OPEN, ROOT, Ground, belongs_to, exchange, plant, stages_elsewhere, state_of
from faults.programs import fits
from helpers.small_trainer import small_trainer
from holdfast.store.folder import names_in

Record = Callable[[str, object], None]


class WritesBeside(Trainer):  # type: ignore[misc]
    """A trainer that leaves a card in `output_dir` before each checkpoint, as TRL's do."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        (Path(self.args.output_dir) / "README.md").write_text(f"the card of step {self.state.global_step}")
        super()._save_checkpoint(model, trial)


class AtTheDesk(TrainerCallback):  # type: ignore[misc]
    """Tells the test where a Trainer stands, and ends its training."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._desk.reach(state.global_step)
        control.should_training_stop = self._desk.is_to_end


def fits_at_a_desk(desk: Desk, run: Path) -> None:
    """What a child does that trains with a Trainer, which saves at each step."""
    trainer = small_trainer(run, [AtTheDesk(desk)], kind=WritesBeside, num_train_epochs=10_000, save_steps=1)
    holdfast.attach(trainer, on_stop="return").train(resume_from_checkpoint="auto")


@pytest.mark.parametrize("place", [GROUP, OPEN, ROOT], indirect=True)
def test_security_s21_with_two_accounts_an_exchanged_staging_directory_costs_a_save_and_touches_nothing(
    place: Ground, record_property: Record
) -> None:
    """Another account puts links and directories in the place of staging directories while a loop saves."""
    with place.training(lambda desk: desk.trains(place.run, {})) as desk:
        with place.strange(stages_elsewhere(place)) as stranger:
            while stranger.exchanged < 8:
                place.ask(desk)
        desk.require_progress()
        assert place.ask(desk).startswith("saved"), desk.said()
        assert desk.end() == 0
    record_property("injected", stranger.exchanged)
    place.require_untouched()


def plants_cards(place: Ground) -> Callable[[], int]:
    """The stranger's turn: puts links, pipes and files of his where a trainer writes its card, a directory at last."""
    whats = [*["link", "pipe", "file"] * 3, "directory"]
    card = place.run / "README.md"

    def turn() -> int:
        if not whats or belongs_to(card, place.stranger) or not place.run.exists():
            return 0
        planted = place.run / f"card-{len(whats)}"
        plant(planted, whats.pop(0), place.home / "README.md")
        if os.path.lexists(card):
            exchange(planted, card)
        else:
            planted.rename(card)
        return 1

    return turn


@pytest.mark.parametrize("place", [*KINDS, ROOT], indirect=True)
def test_security_s21_with_two_accounts_what_a_trainer_leaves_beside_its_checkpoint_goes_through_nothing_planted(
    place: Ground, record_property: Record
) -> None:
    """Another account puts links, pipes, files and directories under the name of the card that a trainer writes."""
    with unprotected(), place.strange(plants_cards(place)) as stranger:
        if place.run.exists():
            stranger.wait_for(1)
        with place.training(lambda desk: fits_at_a_desk(desk, place.run)) as desk:
            stranger.wait_for(0 if place.is_sticky else 9)
            desk.require_progress()
            stranger.end()
            assert desk.end() == 0, desk.printed()
            place.require_saved_as_printed(desk.printed())
    record_property("injected", stranger.exchanged)
    place.require_untouched()


def reads(run: Path) -> str:
    """What the stranger can read of a run, all in one text, and the names of it."""
    texts, paths = [], []
    for above, folders, others in os.walk(run):
        for name in (*folders, *others):
            path = Path(above, name)
            with suppress(OSError):
                texts.append(path.read_text(errors="replace") if path.is_file() else "".join(names_in(path)))
                paths.append(path.relative_to(run).as_posix())
    return json.dumps({"paths": paths, "text": "".join(texts)})


@pytest.mark.parametrize("place", [*KINDS, ROOT], indirect=True)
def test_security_s14_s25_s30_with_two_accounts_a_stranger_reads_no_checkpoint_and_nobody_a_secret(
    place: Ground,
) -> None:
    """Another account reads what it can of a run, and root looks for secrets in all of it."""
    with place.program(lambda: fits(place.run, hub_token="canary-secret")) as child:
        assert child.wait() == 0, child.said()
    seen = json.loads(done_as(place.stranger, lambda: reads(place.run)))
    assert not {path for path in seen["paths"] if path.startswith(("checkpoint-", ".holdfast"))}, seen["paths"]
    whole = b"".join(content for _, _, _, content in state_of(place.run).values())
    assert whole.count(b"grad_norm") and b"canary" not in whole
    assert place.is_sticky or child.said().count(" may write to ") >= 1
    place.require_untouched()
