"""Checkpoints that a stranger has made, with manifests that fit, beside the user's."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from faults.accounts import done_as
from faults.ground import GROUP, KINDS, OPEN, Ground, exchanges
from faults.programs import STEPS, fits, runs

Record = Callable[[str, object], None]


@pytest.mark.parametrize("place", [GROUP, OPEN], indirect=True)
def test_security_s28_with_two_accounts_numbers_that_a_stranger_makes_leave_room_for_the_users(
    place: Ground, record_property: Record
) -> None:
    """Another account adds a checkpoint of the greatest number, and exchanges the user's for one of a greatest step."""
    with place.program(lambda: fits(place.run), "first") as child:
        assert child.wait() == 0, child.said()
    newest = place.run / f"checkpoint-{STEPS}"
    place.forge(newest, {}, "checkpoint-999999999999999", sequence=10**15 - 1, step=10**15 - 1)
    greatest = place.run / "checkpoint-999999999999999999"
    done_as(place.stranger, greatest.mkdir, umask=0)
    turn = exchanges(newest, greatest, 1_000)
    with (
        place.training(lambda desk: desk.trains(place.run, {"say": print, "resume": False})) as desk,
        place.strange(turn) as stranger,
    ):
        stranger.wait_for(50)
        desk.require_progress(STEPS)  # beyond the step whose checkpoint is exchanged
        for _ in range(5):
            assert place.ask(desk).startswith("saved"), desk.said()
        assert desk.end() == 0, desk.printed()
    record_property("injected", stranger.exchanged)
    place.require_untouched()


EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\nforged: good\r" + "A" * 20_000


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_security_s29_with_two_accounts_no_text_of_a_strangers_moves_the_cursor(place: Ground) -> None:
    """Another account has made a checkpoint, a directory and a journal full of terminal control; verbs show them."""
    with place.program(lambda: fits(place.run), "first") as child:
        assert child.wait() == 0, child.said()
    reason = {"id": "0" * 32, "door": "command", "why": EVIL, "label": EVIL[:4000], "asked_at": 1.0}
    state = json.dumps({"best_model_checkpoint": EVIL}).encode()
    texts: dict[str, Any] = {
        "layout": EVIL[:100],
        "versions": {"torch": EVIL},
        "boundary": {"face": EVIL},
        "reasons": (reason,),
    }
    forged = place.forge(place.run / "checkpoint-4", {"trainer_state.json": state}, "checkpoint-9", step=9, **texts)
    done_as(place.stranger, lambda: (place.run / f"checkpoint-{EVIL[:20]}").mkdir(), umask=0)
    for verb in ("list", "verify", "status", "inspect", "diff"):
        argv = {"inspect": [forged], "diff": [forged, place.run / "checkpoint-4"]}.get(verb, [place.run])
        with place.program(lambda: runs(verb, *map(str, argv)), verb) as child:  # noqa: B023
            assert child.wait() == 0, child.said()
        assert not re.search(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]|^forged", child.said(), re.MULTILINE), verb
        assert "Traceback" not in child.said() and len(child.said()) < 20_000
    with place.program(lambda: fits(place.run), "again") as child:
        assert child.wait() == 0 and not re.search("[\x1b\x9b\u202e]", child.said()), child.said()
    place.require_untouched()
