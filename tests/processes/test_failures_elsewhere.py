"""What has gone wrong with other mirrors of checkpoints in trainings: real ones here, and servers that break.

The table of docs/mirror.md has all of it. What is of the store alone is in `remote/test_failures_elsewhere.py`.
"""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import object_servers
from helpers.breaking_proxy import Rule
from helpers.breaking_servers import FOR_EVER, S3, SERVERS, Server
from helpers.full import in_full
from helpers.object_servers import BUCKET, needs
from helpers.support import holdfast, tiny_disk
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.listing import listing_of
from holdfast.remote.terms import owner_of
from ranks.conftest import Job, Ranks, ranks, torch_launcher

__all__ = ["ranks", "torch_launcher"]

pytestmark = in_full("`remote/test_failures_elsewhere.py` and `processes/test_mirror.py` stay")

# Nobody but rank 0 has credentials.
CREDENTIALS = """
import os
if os.environ["RANK"] == "0":
    os.environ.update({})
"""
# No collective may take longer than three seconds.
IMPATIENT = """
import datetime, functools
import torch.distributed as dist
dist.init_process_group = functools.partial(dist.init_process_group, timeout=datetime.timedelta(seconds=3))
"""
SENT = "(PUT|POST) .*/[0-9]{15}-"  # what is of a checkpoint


@pytest.fixture(scope="module", params=SERVERS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_servers.short_pauses(), request.param(request, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.new_place()
    yield running
    running.proxy.break_on()
    running.proxy.state.delay_seconds = running.proxy.state.bytes_per_second = 0.0


on_s3 = pytest.mark.parametrize("running", [S3], indirect=True)


def start(server: Server, ranks: Ranks, size: int = 1, program: str = "", **orders: Any) -> Job:
    """Starts a training whose mirror is there."""
    settings = {"mirror": server.url, "mirror_endpoint": server.endpoint, "save_steps": 4, **orders.pop("settings", {})}
    credentials = CREDENTIALS.replace("{}", repr(server.variables))
    kind: dict[str, Any] = {} if size > 1 else {"kind": "alone"}
    return ranks.start(size, program=credentials + program, settings=settings, **kind, **orders)


def whole(server: Server) -> list[int]:
    """The numbers of what a start would go on from, the newest first."""
    store = server.store()
    run = owner_of(store)
    entries = RemoteCatalog(store).entries(listing_of(store, run)) if run else []
    return [each.key.sequence for each in entries if each.entry.problem is None]


def mirrored(ranks: Ranks) -> list[int]:
    return [event["step"] for event in events(ranks.run, "mirrored")]


def begins(job: Job) -> None:
    job.processes[0].wait_for("rank 0 begins")


def ends(job: Job) -> str:
    """Gives what a training of one process says last, which ends well."""
    assert job.wait() == [0], job.output
    return next(line for line in reversed(job.output.splitlines()) if not line.startswith("rank 0"))


def test_accelerators_that_are_idle_during_an_upload(server: Server, ranks: Ranks) -> None:
    """No request is answered: training comes to its last step, and has saved all that it should."""
    server.proxy.break_on(Rule(SENT, "hang", times=FOR_EVER))
    job = start(server, ranks, until=40)
    job.processes[0].wait_for("waiting for the mirror: step")
    assert [event["step"] for event in ranks.saved()] == [*range(4, 41, 4)] and mirrored(ranks) == []
    assert ranks.status()["step"] == 40
    job.processes[0].send(signal.SIGINT)
    assert ends(job) == f"nothing is mirrored; 40 is on this disk only: holdfast push {ranks.run} sends it"


def test_a_passing_error_that_ends_training(server: Server, ranks: Ranks) -> None:
    """Nothing can be put until the training is over: it says so, goes on, and all is there at the end."""
    job = start(server, ranks, until=24, stand=[0, 6], calls=[0])
    job.processes[0].wait_for("rank 0 stands")
    wait_until(lambda: 5 in mirrored(ranks), 60)
    server.proxy.break_on(Rule("PUT|POST", "error", "SlowDown", FOR_EVER))
    (ranks.folder / "go").touch()
    job.processes[0].wait_for("waiting for the mirror: step")
    job.processes[0].wait_for("nothing can be sent")
    assert "SlowDown" in job.output and "training goes on" in job.output
    server.proxy.break_on()
    assert ends(job) == f"mirrored up to step 24 ({server.url})"
    assert {*mirrored(ranks)} >= {10, 15, 20, 24}


def test_an_error_that_only_a_log_has_while_the_run_is_green(server: Server, ranks: Ranks) -> None:
    """A bucket that refuses is said at once, shown, waited for at the end, and the last line says what is where."""
    job = start(server, ranks, until=8, stand=[0, 2])
    job.processes[0].wait_for("rank 0 stands")
    server.proxy.break_on(Rule("PUT|POST", "error", "AccessDenied", FOR_EVER))
    (ranks.folder / "go").touch()
    job.processes[0].wait_for("waiting for the mirror: step")
    job.processes[0].wait_for("nothing can be sent")
    shown = wait_until(lambda: each if (each := ranks.status()["mirror"]).get("failing_since") else {})
    assert "AccessDenied" in shown["why"] and shown["mirrored"] is None
    assert re.search(r"^mirror .*AccessDenied", holdfast("status", ranks.run).stdout, re.M)
    assert job.processes[0].code is None, "the run is not over while something is on this disk only"
    job.processes[0].send(signal.SIGINT)
    assert ends(job) == f"nothing is mirrored; 8 is on this disk only: holdfast push {ranks.run} sends it"
    assert len(events(ranks.run, "mirror failing")) == 1 and mirrored(ranks) == []


def test_a_process_that_ends_before_the_upload(server: Server, ranks: Ranks) -> None:
    """A training that is over stays until its last checkpoint is there, however slow that is."""
    server.proxy.state.bytes_per_second = 10_000.0
    job = start(server, ranks, until=4)
    job.processes[0].wait_for("waiting for the mirror: step 4")
    assert whole(server) == []
    assert ends(job) == f"mirrored up to step 4 ({server.url})" and whole(server) == [1]


def test_a_machine_that_goes_in_mid_upload(server: Server, ranks: Ranks) -> None:
    """SIGKILL to the training and to its mirror's process, with half of a checkpoint there: nothing is lost by that."""
    server.proxy.break_on(Rule(f"{SENT}.*MANIFEST", "hang", times=FOR_EVER))
    job = start(server, ranks, until=40, stand=[0, 6])
    wait_until(lambda: any("MANIFEST" in line for line in server.proxy.log), 60)
    for process in psutil.Process(job.processes[0].pid).children(recursive=True):
        process.kill()
    job.kill()
    server.proxy.break_on()
    assert whole(server) == []
    again = start(server, ranks, until=7)
    assert ends(again) == f"mirrored up to step 4 ({server.url})" and "checkpoint-4: step 4" in again.output
    written = {line.split("?")[0] for line in server.proxy.log if re.search(SENT, line)}
    assert len(written) == 1 and "MANIFEST" in written.pop(), "what was there is not sent again"


@on_s3
def test_credentials_that_run_out(server: Server, ranks: Ranks) -> None:
    """The store takes the first key no more: the profile is looked at anew, and training knows nothing of it."""
    home, keys = ranks.folder / "home", ranks.folder / "key"
    (home / ".aws").mkdir(parents=True)
    keys.write_text("first")
    script = home / "key.py"
    script.write_text(
        f"import json; key = open({str(keys)!r}).read()\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': key, 'SecretAccessKey': 'secret'}))\n"
    )
    (home / ".aws" / "config").write_text(
        f"[profile own]\ncredential_process = {sys.executable} {script}\nregion = us-east-1\n"
    )
    variables = {"AWS_PROFILE": "own", "HOME": str(home)}
    there = Server("s3", server.proxy, server.endpoint, variables, server.url)
    job = start(there, ranks, until=24, stand=[0, 6])
    job.processes[0].wait_for("rank 0 stands")
    wait_until(lambda: mirrored(ranks) == [4], 60)
    server.proxy.break_on(Rule("", "error", "ExpiredToken", FOR_EVER, signed="Credential=first"))
    keys.write_text("second")
    (ranks.folder / "go").touch()
    assert ends(job) == f"mirrored up to step 24 ({server.url})"
    assert "nothing can be sent" not in job.output and "secret" not in job.output


def test_one_rank_that_fails_while_the_others_wait(server: Server, ranks: Ranks) -> None:
    """While rank 0 waits for a store that hangs, at the start, in training or at the end, and a rank dies, all end."""
    quick: dict[str, Any] = {"settings": {"rank_timeout_seconds": 3.0, "stop_grace_seconds": 2.0}}
    server.proxy.break_on(Rule("", "hang", times=FOR_EVER))
    at_start = start(server, ranks, 2, **quick)
    wait_until(lambda: server.proxy.log, 60)
    at_start.processes[0].send(signal.SIGKILL)
    assert at_start.wait()[0] == -signal.SIGKILL and at_start.wait()[1] not in (0, None), at_start.output
    server.proxy.break_on(Rule(SENT, "hang", times=FOR_EVER))
    in_training = start(server, ranks, 2, raises=[1, 6], until=40, **quick)
    assert 0 not in in_training.wait(), in_training.output
    at_end = start(server, ranks, 2, until=8, **quick)
    at_end.processes[0].wait_for("waiting for the mirror: step")
    at_end.processes[0].send(signal.SIGKILL)
    assert at_end.wait()[0] == -signal.SIGKILL, at_end.output


def test_all_ranks_that_ask_and_a_busy_store_that_is_read_as_an_empty_one(server: Server, ranks: Ranks) -> None:
    """Rank 0 alone has credentials, and asks until it is answered; nothing begins at zero."""
    ends(start(server, ranks, until=8))
    ranks.run.rename(ranks.folder / "gone")
    server.proxy.break_on(Rule("", "error", "SlowDown", FOR_EVER))
    job = start(server, ranks, 2, until=8)
    job.processes[0].wait_for("SlowDown")
    assert "rank 0 is open" not in job.output and "rank 1 is open" not in job.output
    assert "SlowDown" in ranks.status()["mirror"]["why"]
    server.proxy.break_on()
    assert job.wait() == [0, 0], job.output
    assert "going on from step 8" in job.output and "starting from zero" not in job.output


def test_everybody_that_downloads_everything(server: Server, ranks: Ranks) -> None:
    """Of two ranks on an empty disk one fetches each file, once."""
    ends(start(server, ranks, until=8))
    ranks.run.rename(ranks.folder / "gone")
    server.proxy.break_on()
    job = start(server, ranks, 2, until=8)
    assert job.wait() == [0, 0] and job.output.count("pulled checkpoint-8 of") == 1, job.output
    fetched = [line for line in server.proxy.log if re.match(r"GET .*/[0-9]{15}-[0-9]{15}-", line)]
    files = [line for line in fetched if "MANIFEST" not in line]
    assert len(files) == len({*files}) > 3, fetched


def test_a_download_that_is_longer_than_a_collective_may_be(server: Server, ranks: Ranks) -> None:
    """The others wait in no collective, and as long as something comes."""
    ends(start(server, ranks, until=8))
    ranks.run.rename(ranks.folder / "gone")
    server.proxy.state.bytes_per_second = 8_000.0
    job = start(server, ranks, 2, until=8, program=IMPATIENT, settings={"rank_timeout_seconds": 2.0})
    assert job.wait() == [0, 0], job.output
    seconds = re.findall(r"pulled checkpoint-8 of .* in ([0-9.]+) s", job.output)
    assert len(seconds) == 1, job.output
    assert float(seconds[0]) > 3, "it took longer than anybody waits in a collective"


def test_a_disk_that_fills_up_while_uploads_lag(server: Server, ranks: Ranks) -> None:
    """Nothing can be sent, and all is asked for: the oldest give way, each with its answer, and no save fails."""
    with tiny_disk(ranks.folder / "disk", options="size=32m") as disk:
        small = Ranks(disk, ranks.launcher, ranks.started)
        few = {"save_total_limit": 1, "dynamic_checkpoint": {"keep": 1}}
        asks: dict[str, Any] = {"calls": [0], "waits": True, "settings": few}
        job = start(server, small, until=100, stand=[0, 2], model="batched", **asks)
        job.processes[0].wait_for("rank 0 stands")
        server.proxy.break_on(Rule(SENT, "error", "SlowDown", FOR_EVER))
        (disk / "go").touch()
        job.processes[0].wait_for("waiting for the mirror: step")
        assert {*range(4, 101, 4), *range(5, 101, 5)} == {event["step"] for event in small.saved()}, job.output
        assert events(small.run, "failed") == []
        gone = [event["step"] for event in events(small.run, "not mirrored") if "nearly full" in event["why"]]
        assert len(gone) > 5 and gone == sorted(gone) and 100 not in gone, job.output
        server.proxy.break_on()
        assert ends(job) == f"mirrored up to step 100 ({server.url})"


@needs("obstore", "botocore", "nanio")
def test_a_store_that_cannot_tell_two_writers_apart_and_a_bucket_that_refuses(tmp_path: Path, ranks: Ranks) -> None:
    """Both are said in a line before anything is trained."""
    with object_servers.nanio(tmp_path) as port:
        url, endpoint = f"s3://{BUCKET}/run", f"http://127.0.0.1:{port}"
        for secret, words in ((object_servers.NANIO_SECRET, "where there is one already"), ("other", "403 Signature")):
            variables = object_servers.S3_ENVIRONMENT | {"AWS_SECRET_ACCESS_KEY": secret}
            server: Any = Server("s3", None, endpoint, variables, url)  # type: ignore[arg-type]
            job = start(server, ranks, until=8)
            assert job.wait() == [1] and words in job.output and "rank 0 is open" not in job.output, job.output
            assert events(ranks.run, "saved") == []
