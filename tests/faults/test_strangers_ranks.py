"""Ranks that train together in a directory in which a stranger exchanges what they write and what they read."""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from faults.ground import GROUP, Ground, exchanges, stages_elsewhere
from faults.programs import of_ones
from holdfast.errors import HoldfastError
from ranks.conftest import free_port
from ranks.loop import main

Record = Callable[[str, object], None]


def is_rank(rank: int, port: int, orders: Mapping[str, Any]) -> None:
    """What one of two children does that train together."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"LOOP": json.dumps(orders)})
    try:
        main()
    except HoldfastError as error:
        print("refused", error, flush=True)


def train_together(place: Ground, said: str, **orders: Any) -> str:
    """Trains in two processes of the user's, and gives what both have printed."""
    port = free_port()
    orders = {"run": str(place.run), "pause": 0.02, "settings": {"save_steps": 2}, **orders}
    with ExitStack() as opened:
        actions = [partial(is_rank, rank, port, orders) for rank in range(2)]
        ranks = [opened.enter_context(place.program(each, f"{said}-{rank}")) for rank, each in enumerate(actions)]
        codes = [rank.wait() for rank in ranks]
        printed = "\n".join(rank.said() for rank in ranks)
    assert codes == [0, 0], printed
    return printed


@pytest.mark.parametrize("place", [GROUP], indirect=True)
def test_security_s21_with_two_accounts_both_ranks_write_into_the_directory_that_rank_0_has_made(
    place: Ground, record_property: Record
) -> None:
    """Another account puts links and directories in the place of staging directories while two ranks save."""
    with place.strange(stages_elsewhere(place)) as stranger:
        printed = train_together(place, "saves", until=60)
    assert re.findall(r"rank (\d) ends (\d+) ", printed) == [("0", "60"), ("1", "60")] and stranger.exchanged > 3
    record_property("injected", stranger.exchanged)
    place.require_saved_as_printed(printed, 4)
    place.require_untouched()


@pytest.mark.parametrize("place", [GROUP], indirect=True)
def test_security_s23_with_two_accounts_both_ranks_go_on_from_the_checkpoint_that_was_verified(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges the newest checkpoint for one of its own while two ranks resume."""
    older = train_together(place, "older", until=8)
    newer = train_together(place, "newer", until=10)
    ours = set(re.findall(r"leaves with (\w+)", older + newer))
    newest = place.run / "checkpoint-10"
    weights = {path.name: of_ones(path.read_bytes()) for path in newest.glob("*.safetensors")}
    forged = place.forge(newest, weights)
    begun, refused = [], 0
    with place.strange(exchanges(newest, forged, 500_000)) as stranger:
        for number in range(3):
            printed = train_together(place, f"resumes-{number}", until=12, settings={})
            begun += re.findall(r"rank \d begins with (\w+)", printed)
            refused += len(re.findall(r"^refused .*checkpoint-", printed, re.MULTILINE))
    record_property("injected", stranger.exchanged)
    assert len(begun) + refused == 6 and set(begun) <= ours and begun[::2] == begun[1::2], (begun, ours)
    place.require_untouched()
