"""What has gone wrong with other mirrors of checkpoints, tried with this one, on a server behind a proxy that breaks.

docs/mirror.md has the table of all; `processes/test_failures_elsewhere.py` is what has gone wrong in trainings.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers import object_servers
from helpers.breaking_proxy import Rule
from helpers.breaking_servers import FOR_EVER, SERVERS, Server
from helpers.remote import a_claim, start
from helpers.support import OTHER_RUN, RUN, commit_checkpoint, content_of
from holdfast.errors import DamagedCheckpointError, MirrorAccessError, MirrorError, MirrorTakenError
from holdfast.errors import MirrorUnavailableError as UnavailableError
from holdfast.remote import keys, pins, retention, terms
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.download import download
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.upload import upload
from holdfast.store import names
from holdfast.store.folder import Folder
from holdfast.store.retention import RetentionPolicy
from holdfast.store.verify import verify

LARGE = 9 << 20  # of two parts
CONTENT = {"large": os.urandom(LARGE), "small": b"small", "sub/empty": b""}


@pytest.fixture(scope="module", params=SERVERS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_servers.short_pauses(), request.param(request, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.new_place()
    return running


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("run")
    return [commit_checkpoint(root, step, CONTENT if step == 1 else {"small": b"%d" % step}) for step in range(1, 5)]


def sent(server: Server, checkpoint: Path, claimed: int | None = None) -> CheckpointKey:
    with Folder.open(checkpoint) as folder:
        return upload(server.store(), folder, 1, claimed)


def whole(server: Server) -> list[CheckpointKey]:
    """What a start would go on from, the newest first."""
    store = server.store()
    entries = RemoteCatalog(store).entries(listing_of(store, RUN))
    return [each.key for each in entries if each.entry.problem is None]


def test_a_pointer_that_is_there_before_its_files(server: Server, checkpoints: list[Path]) -> None:
    """Nothing points anywhere, and the manifest is put when all else was seen there."""
    sent(server, checkpoints[0])
    put = [line for line in server.proxy.log if not line.startswith("GET")]
    looked = [number for number, line in enumerate(server.proxy.log) if re.search(server.of_list, line)]
    manifest = next(number for number, line in enumerate(server.proxy.log) if names.MANIFEST in line)
    assert names.MANIFEST in put[-1] and not any(names.MANIFEST in line for line in put[:-1])
    assert len(looked) == 3 and looked[1] < manifest < looked[2]
    assert server.proxy.log[looked[1] - 1].startswith(("PUT", "POST"))


def test_a_half_sent_directory_that_is_taken_for_a_checkpoint(server: Server, checkpoints: list[Path]) -> None:
    """What has no manifest is none, whichever request it ended at; the next process sends what is missing."""
    older = sent(server, checkpoints[1])
    for broken in ("/large", "/small", "/sub/empty", names.MANIFEST):
        server.proxy.break_on(Rule(f"(PUT|POST) .*{broken}", "error", "AccessDenied", FOR_EVER))
        with pytest.raises(MirrorAccessError):
            sent(server, checkpoints[0])
        server.proxy.break_on()
        assert whole(server) == [older]
    key = sent(server, checkpoints[0])
    assert [line for line in server.proxy.log if "/large" in line] == []
    assert whole(server) == [older, key]


def test_a_process_that_ends_in_mid_upload(server: Server, checkpoints: list[Path]) -> None:
    """SIGKILL in the middle of a part: the next one sends what is missing, and nobody saw anything of it."""
    program = (
        "import sys; from pathlib import Path; from holdfast.remote.opening import open_store;"
        "from holdfast.remote.upload import upload; from holdfast.store.folder import Folder;"
        "upload(open_store(*sys.argv[1:3]), Folder.open(Path(sys.argv[3])), 1, None)"
    )
    part = {"s3": "partNumber=2", "gs": "partNumber=2", "az": "comp=block&"}[server.scheme]
    server.proxy.break_on(Rule(f"PUT .*large.*{part}", "hang", times=FOR_EVER))
    arguments = [sys.executable, "-c", program, server.url, server.endpoint, str(checkpoints[0])]
    with subprocess.Popen(arguments) as process:
        while not any(re.search(part, line) for line in server.proxy.log):
            assert process.poll() is None
        process.kill()
    server.proxy.break_on()
    assert whole(server) == [] and sent(server, checkpoints[0]) and len(whole(server)) == 1


def test_an_error_that_nobody_hears_of(server: Server, checkpoints: list[Path]) -> None:
    """Whatever does not go well is raised to whoever has to say it."""
    server.proxy.break_on(Rule("PUT", "error", "QuotaExceeded", FOR_EVER))
    with pytest.raises(MirrorError, match="QuotaExceeded"):
        sent(server, checkpoints[1])


def test_a_passing_error_that_ends_it(server: Server, checkpoints: list[Path], tmp_path: Path) -> None:
    """What passes is tried again: up and down, and what is there at the end is what was sent."""
    rules = [Rule("PUT .*large", "error", "SlowDown", 2), Rule("PUT .*small", "lost"), Rule("PUT .*MANIFEST", "lost")]
    server.proxy.break_on(*rules, Rule(server.of_list, "error", "InternalError", 2))
    key = sent(server, checkpoints[0])
    server.proxy.break_on(Rule("GET .*large", "error", "SlowDown", 2), Rule("GET .*large", "short", 1000, 2))
    arrived = download(server.store(), key, tmp_path)
    assert verify(arrived).good and content_of(arrived) == content_of(checkpoints[0])


def test_credentials_that_run_out(server: Server, checkpoints: list[Path]) -> None:
    """They are named; with others it goes on where it was."""
    server.proxy.break_on(Rule("(PUT|POST) .*small", "error", "ExpiredToken", FOR_EVER))
    with pytest.raises(MirrorAccessError, match="ExpiredToken"):
        sent(server, checkpoints[0])
    server.proxy.break_on()
    sent(server, checkpoints[0])
    assert [line for line in server.proxy.log if "/large" in line] == []


def retained(server: Server, claimed: int, **spoken: Any) -> None:
    store = server.store()
    retention.retain(store, RemoteCatalog(store), RUN, claimed, RetentionPolicy(1, None), **spoken)


def test_retention_that_deletes_what_was_resumed_from(server: Server, checkpoints: list[Path], tmp_path: Path) -> None:
    first, _ = sent(server, checkpoints[1]), sent(server, checkpoints[2])
    last = sent(server, commit_checkpoint(tmp_path, 9, {"small": b"9"}, parent=first.attempt, sequence=9))
    retained(server, start(server.store()))
    assert whole(server) == [last, first]


def test_retention_that_never_reaches_the_store(server: Server, checkpoints: list[Path]) -> None:
    """Of what is deleted nothing is left there, also where a deletion was cut off, and its marks go with a start."""
    for checkpoint in checkpoints:
        last = sent(server, checkpoint)
    claimed = start(server.store())
    server.proxy.break_on(Rule("DELETE .*large|comp=batch", "error", "AccessDenied", FOR_EVER))
    with pytest.raises(MirrorAccessError):
        retained(server, claimed)
    server.proxy.break_on()
    retained(server, claimed)
    retention.sweep(server.store(), RUN, start(server.store()), [], listing_of(server.store(), RUN).doomed)
    left = {item.key for item in server.store().listed()}
    assert left == {keys.term(RUN, 2), keys.term(RUN, 3), last.of("small"), last.manifest}


def test_a_pin_that_is_not_seen_by_a_deletion(server: Server, checkpoints: list[Path]) -> None:
    kept, last = sent(server, checkpoints[1]), sent(server, checkpoints[2])
    assert pins.pin(server.store(), RUN, kept.attempt)
    retained(server, start(server.store()))
    assert whole(server) == [last, kept] and listing_of(server.store(), RUN).pins == {kept.attempt}


def test_a_clean_up_that_removes_the_upload_of_another(server: Server, checkpoints: list[Path]) -> None:
    """A start removes what earlier ones of its own run have left, and leaves other runs, its own term, and files."""
    store = server.store()
    others = [
        CheckpointKey(OTHER_RUN, 0, 1, "a" * 32).of("small"),
        CheckpointKey(RUN, 1, 1, "b" * 32).of("small"),
        "x/y",
    ]
    for key in (*others, CheckpointKey(RUN, 0, 1, "c" * 32).of("small")):
        store.put_file(key, 1, iter([b"x"]))
    retention.sweep(store, RUN, 1, [], [])
    assert [item.key for item in store.listed()] == sorted([*others, keys.pin(RUN, "c" * 32)])


def test_parts_of_a_file_that_nobody_sees(server: Server, checkpoints: list[Path], tmp_path: Path) -> None:
    """A file that changes on the disk while it is sent is not there, and its parts are given up where a store can."""
    changed = bytearray(CONTENT["large"])
    changed[-1] ^= 1
    checkpoint = commit_checkpoint(tmp_path, 1, CONTENT)
    (checkpoint / "large").write_bytes(changed)
    with pytest.raises(DamagedCheckpointError, match="its bytes have changed"):
        sent(server, checkpoint)
    assert [*server.store().listed()] == []
    if server.scheme != "az":  # Azure gives up what is not committed within a week, and has no request for it
        assert any(line.startswith("DELETE") and "uploadId" in line for line in server.proxy.log)


def test_two_writers_of_one_name(server: Server, checkpoints: list[Path]) -> None:
    """Of starts at once each has a number of its own, and the same checkpoint can be sent by two."""
    stores = [server.store() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(claimed_at_last, stores))
        assert len(set(numbers)) == 6
        sendings = [pool.submit(sent_at_last, server, checkpoints[0]) for _ in range(2)]
        assert len({each.result() for each in sendings}) == 1
    with pytest.raises(MirrorTakenError, match="taken over"):
        sent(server, checkpoints[1], claimed=min(numbers))
    terms.take_place(server.store(), RUN)
    with pytest.raises(MirrorTakenError, match=f"run {RUN}, and this is run {OTHER_RUN}"):
        terms.take_place(server.store(), OTHER_RUN)


def sent_at_last(server: Server, checkpoint: Path) -> CheckpointKey:
    """Azure keeps the blocks of two writers together, and gives up those of one when the other is done."""
    while True:
        try:
            return sent(server, checkpoint)
        except UnavailableError as error:
            assert "InvalidBlockList" in str(error)


def claimed_at_last(store: ObjectStore) -> int:
    claim = a_claim()
    while True:
        claimed = terms.claim(store, claim, listing_of(store, RUN))
        if claimed.term is not None:
            return claimed.term


@pytest.mark.parametrize(
    "asks",
    [
        lambda store: listing_of(store, RUN),
        lambda store: terms.owner_of(store),
        lambda store: RemoteCatalog(store).entries(listing_of(store, RUN)),
        lambda store: start(store),
    ],
    ids=["a list", "the owner", "the checkpoints", "a claim"],
)
def test_an_error_that_is_read_as_no_checkpoints(
    server: Server, checkpoints: list[Path], asks: Callable[[ObjectStore], Any]
) -> None:
    sent(server, checkpoints[1])
    server.proxy.break_on(Rule("", "error", "SlowDown", FOR_EVER))
    with pytest.raises(UnavailableError):
        asks(server.store())


def test_what_was_tampered_with(server: Server, checkpoints: list[Path], tmp_path: Path) -> None:
    """A byte of a file, and one of a manifest: neither is ever believed."""
    key, store = sent(server, checkpoints[0]), server.store()
    changed = bytearray(CONTENT["large"])
    changed[5 << 20] ^= 1
    store.put_file(key.of("large"), LARGE, iter([bytes(changed)]))
    with pytest.raises(DamagedCheckpointError, match="the block at 4,194,304 differs"):
        download(store, key, tmp_path)
    assert list(tmp_path.iterdir()) == []
    manifest = bytearray(bytes(store.get_range(key.manifest, 0, 1 << 20)))
    manifest[manifest.index(b'"step":') + 8] ^= 1
    store.put_file(key.manifest, len(manifest), iter([bytes(manifest)]))
    assert whole(server) == []
