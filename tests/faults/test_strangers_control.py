"""The control directory of a run, which a stranger exchanges while the run goes on."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.ground import GROUP, OPEN, ROOT, THEIRS, Ground, belongs_to, exchange, give, state_by_number
from faults.programs import runs
from helpers.waiting import wait_until
from holdfast.run.request import Request

Record = Callable[[str, object], None]


def control_in(place: Ground, folder: Path, *, linked: bool = True) -> Path:
    """Makes a control directory in which somebody asks for a stop, `linked` to what is the user's elsewhere."""
    stop = Request("command", stop=True, why="holdfast stop")
    for name in ("requests", "answers"):
        (folder / name).mkdir(parents=True)
    (folder / "requests" / f"{stop.id}.json").write_bytes(stop.encode())
    if linked:
        for name in ("status.json", "lease.json", "outcome.json"):
            (folder / name).symlink_to(place.home / name)
    return folder


def exchanges_control(place: Ground, planted: list[Path]) -> Callable[[], int]:
    """The stranger's turn: puts one thing after another in the place of the control directory that the run has."""
    control = place.run / ".holdfast"
    decoys = {path.lstat().st_ino for path in planted if belongs_to(path, place.user)}

    def turn() -> int:
        if not planted or not belongs_to(control, place.user) or control.lstat().st_ino in decoys:
            return 0
        what = planted.pop()
        if what.exists() or what.is_symlink():
            exchange(what, control)
        else:
            control.rename(what)  # nothing is there then
        return 1

    return turn


@pytest.mark.parametrize("place", [GROUP, OPEN, ROOT], indirect=True)
def test_security_s22_with_two_accounts_a_run_obeys_and_fills_its_own_control_directory_alone(
    place: Ground, record_property: Record
) -> None:
    """Another account exchanges the control directory for its own, a link, another one of the user's, and nothing."""
    with place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk:
        decoy = control_in(place, place.run / "decoy", linked=False)
        give(decoy, place.user)
        decoy.chmod(0o700)
        links = [place.run / f"link-{number}" for number in range(2)]
        for link in links:
            link.symlink_to(place.private)
            give(link, place.stranger)
        theirs = [place.hand_over(control_in(place, place.run / f"theirs-{number}")) for number in range(2)]
        before = state_by_number(decoy)
        planted = [*theirs, *links, decoy, place.run / "taken", place.run / "taken-again"]
        with place.strange(exchanges_control(place, list(planted))) as stranger:
            while stranger.exchanged < len(planted):
                assert place.ask(desk).startswith("saved"), desk.said()
        desk.require_progress(20)
        control = place.run / ".holdfast"
        wait_until(
            lambda: belongs_to(control, place.user) and control.lstat().st_ino not in before, 30, "its own again"
        )
        with place.program(lambda: runs("save", str(place.run), "--wait"), "save") as child:
            assert child.wait() == 0 and "code 0" in child.said(), child.said()
        assert desk.end() == 0, desk.printed()
    with place.program(lambda: runs("status", str(place.run), "--outcome"), "status") as child:
        assert child.wait() == 0 and "code 0" in child.said(), child.said()
    told = [line for line in desk.printed().splitlines() if re.search(r"/\.holdfast was (exchanged|moved away)", line)]
    assert 1 <= len(told) < len(planted), desk.printed()
    after = state_by_number(place.run)
    assert {number: after[number] for number in before} == before, "another control directory of the user's was used"
    record_property("injected", len(planted))
    place.require_untouched()


@pytest.mark.parametrize("place", [THEIRS], indirect=True)
def test_security_s22_with_two_accounts_a_run_goes_on_without_commands_where_it_may_not_rename(place: Ground) -> None:
    """In a sticky directory of another account that one takes the control directory away, and asks for a stop."""
    with place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk:
        theirs = place.hand_over(control_in(place, place.run / "theirs"))
        with place.strange(exchanges_control(place, [theirs])) as stranger:
            stranger.wait_for(1)
            for _ in range(3):
                assert place.ask(desk).startswith("saved"), desk.said()
            desk.require_progress(200)
        assert desk.end() == 0, desk.printed()
    assert desk.printed().count("no command reaches this run") == 1, desk.printed()
    place.require_untouched()
