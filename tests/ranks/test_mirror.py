"""Several ranks whose run has a mirror: rank 0 alone looks there, claims and pulls, and the others wait for it."""

import shutil
import signal
import threading
import time

import pytest

from helpers.full import in_full
from helpers.mirrors import DirectoryMirror
from helpers.waiting import wait_until
from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel
from holdfast.resume import open_run
from holdfast.resume.waiting import ALIVE
from ranks.conftest import Ranks
from ranks.real_store import RealStore


def test_two_ranks_go_on_from_the_mirror_when_their_disk_is_gone_and_one_after_them(ranks: Ranks) -> None:
    mirror = DirectoryMirror(ranks.folder / "mirror")
    settings = {"mirror": mirror.url, "save_steps": 4}
    expected = Ranks(ranks.folder / "whole", ranks.launcher)
    expected.folder.mkdir()
    whole = expected.start(until=12).digests()
    shutil.rmtree(expected.run)
    ranks.start(until=8, settings=settings).digests()
    shutil.rmtree(ranks.run)
    job = ranks.start(until=12, settings=settings)
    assert job.digests() == whole, job.output
    assert job.output.count("pulled checkpoint-8 of") == 1 and job.output.count("took run ") == 1
    assert mirror.listing.terms == (1, 2)
    ranks.run.rename(expected.run)
    from_disk = expected.start(1, kind="alone", until=14).digests()
    alone = ranks.start(1, kind="alone", until=14, settings=settings)
    assert alone.digests() == from_disk and "checkpoint-12: step 12" in alone.output, alone.output


@in_full("two ranks after two, and one after them, stay, and a start of one process that is refused")
def test_two_that_are_refused_all_say_why(ranks: Ranks) -> None:
    mirror = DirectoryMirror(ranks.folder / "mirror")
    settings = {"mirror": mirror.url, "save_steps": 4}
    ranks.start(until=4, settings=settings).digests()
    shutil.rmtree(ranks.run)
    refused = ranks.start(until=12, settings={**settings, "resume": False})
    assert 0 not in refused.wait()
    assert all("and this start begins run" in process.output for process in refused.processes), refused.output


def test_the_others_wait_as_long_as_rank_0_is_at_it_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_run, "_LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(open_run, "_LOOK_SECONDS", 0.05)
    with RealStore() as store:
        first, second = (Channel(store.client(), rank, 2, 30.0) for rank in range(2))
        second._store = first._store  # of the same training

        def pull() -> None:
            for number in range(8):
                first.put(ALIVE, number)
                time.sleep(0.25)
            first.put("start", "chosen")

        pulling = threading.Thread(target=pull)
        pulling.start()
        assert open_run._from_rank0(second, "start") == "chosen"
        pulling.join()
        with pytest.raises(RanksError, match="waited 0 s for 'instead/0', in vain"):
            open_run._from_rank0(second, "instead/0")


def test_at_the_end_the_others_wait_until_rank_0_no_longer_waits_for_the_mirror(ranks: Ranks) -> None:
    mirror = DirectoryMirror(ranks.folder / "mirror")
    away = ranks.folder / "away"
    job = ranks.start(until=8, pause=0.2, settings={"mirror": mirror.url, "save_steps": 4})
    wait_until(lambda: "checkpoint saved step=4" in job.output)
    mirror.path.rename(away)
    wait_until(lambda: "waiting for the mirror: step" in job.output, limit=60)
    assert [process.code for process in job.processes] == [None, None], job.output
    away.rename(mirror.path)
    assert job.wait() == [0, 0], job.output
    assert f"mirrored up to step 8 ({mirror.url})" in job.output and "not heard of" not in job.output


@in_full("the one whose training ends by itself stays")
def test_at_a_stop_they_wait_as_well_for_no_launcher_is_to_see_one_that_has_ended(ranks: Ranks) -> None:
    mirror = DirectoryMirror(ranks.folder / "mirror")
    settings = {"mirror": mirror.url, "save_steps": 4, "stop_grace_seconds": 40}
    job = ranks.start(until=10**6, pause=0.2, settings=settings)
    wait_until(lambda: "checkpoint saved step=4" in job.output)
    away = mirror.path.rename(ranks.folder / "away")
    for process in job.processes:
        process.send(signal.SIGTERM)
    wait_until(lambda: "waiting for the mirror: step" in job.output, limit=60)
    assert [process.code for process in job.processes] == [None, None], job.output
    away.rename(mirror.path)
    assert job.wait() == [75, 75], job.output
    assert f"({mirror.url})" in job.output and "is on this disk only" not in job.output, job.output
