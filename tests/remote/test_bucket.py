"""Buckets on servers that break: some is tried again, the rest is said, and no error is taken for an absence."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from helpers import object_servers
from helpers.breaking_proxy import BreakingProxy, Rule
from helpers.object_servers import BUCKET, needs
from helpers.waiting import wait_until
from holdfast.errors import AbsentError, MirrorAccessError, MirrorError, MirrorUnavailableError
from holdfast.remote.bucket import PART_BYTES, Bucket, part_bytes, parts_at_once
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.opening import open_store

MIB = 1 << 20
SIZE = PART_BYTES + 5 * MIB
CONTENT = os.urandom(MIB)
FOR_EVER = 1000

of_s3 = needs("obstore", "botocore", "moto", "flask", "flask_cors")


@pytest.fixture(scope="module")
def proxy(s3_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakingProxy]:
    with ExitStack() as held:
        proxy = held.enter_context(BreakingProxy(s3_port))
        held.enter_context(object_servers.short_pauses())
        held.enter_context(object_servers.environment(object_servers.S3_ENVIRONMENT, tmp_path_factory.mktemp("home")))
        yield proxy


@pytest.fixture
def store(proxy: BreakingProxy, request: pytest.FixtureRequest) -> ObjectStore:
    proxy.break_on()
    return open_store(f"s3://{BUCKET}/{abs(hash(request.node.name))}", proxy.url)


def blocks() -> Iterator[bytes]:
    for _ in range(SIZE // MIB):
        yield CONTENT


def send(store: ObjectStore) -> Any:
    store.put_file("a/large", SIZE, blocks())
    assert store.get_range("a/large", SIZE - MIB, SIZE) == CONTENT


def claim(store: ObjectStore) -> Any:
    assert store.put_absent("claims/1", b"mine")
    assert store.get_range("claims/1", 0, 10) == b"mine"


def look(store: ObjectStore) -> Any:
    return [*store.listed()]


def fetch(store: ObjectStore) -> Any:
    assert store.get_range("there", 0, SIZE) == CONTENT


def remove(store: ObjectStore) -> Any:
    store.delete("there")
    with pytest.raises(AbsentError):
        store.get_range("there", 0, 1)


SEVERAL = [
    (send, Rule("PUT .*partNumber=2", "error", "SlowDown", 2)),
    (send, Rule("PUT .*partNumber=1", "error", "InternalError", 2)),
    (send, Rule("PUT .*partNumber=2", "cut", 100_000, 2)),
    (send, Rule("PUT .*partNumber=2", "lost")),
    (send, Rule("PUT .*partNumber=2", "twice")),
    (send, Rule("POST .*uploads", "lost")),
    (send, Rule("POST .*uploadId", "lost")),
    (send, Rule("POST .*uploadId", "twice")),
    (claim, Rule("PUT", "error", "SlowDown", 2)),
    (claim, Rule("PUT", "cut", 0, 2)),
    (claim, Rule("PUT", "lost")),
    (claim, Rule("PUT", "twice")),
    (claim, Rule("PUT", "late")),
    (look, Rule("GET", "error", "SlowDown", 2)),
    (look, Rule("GET", "lost", None, 2)),
    (fetch, Rule("GET", "short", 1000, 2)),
    (fetch, Rule("GET", "error", "InternalError", 2)),
    (remove, Rule("DELETE", "lost")),
    (remove, Rule("DELETE", "error", "SlowDown", 2)),
]


@of_s3
@pytest.mark.parametrize(
    ("do", "rule"), SEVERAL, ids=[f"{do.__name__}-{rule.do}-{rule.match.split('=')[-1]}" for do, rule in SEVERAL]
)
def test_what_breaks_and_passes_is_done_all_the_same(
    store: ObjectStore, proxy: BreakingProxy, do: Callable[[ObjectStore], Any], rule: Rule
) -> None:
    store.put_absent("there", CONTENT)
    rule.times = rule.times or 1
    proxy.break_on(rule)
    do(store)
    assert rule.times == 0
    if rule.do == "late":
        proxy.do_the_late_ones()
        do(store)


def said(proxy: BreakingProxy, store: ObjectStore, do: Callable[[ObjectStore], Any], code: str) -> MirrorError:
    proxy.break_on(Rule("", "error", code, FOR_EVER))
    with pytest.raises(MirrorError) as caught:
        do(store)
    assert store.url in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return caught.value


@of_s3
@pytest.mark.parametrize("do", [send, claim, look, fetch, remove], ids=lambda do: do.__name__)
def test_a_refusal_is_said_in_one_line_with_what_to_do(
    store: ObjectStore, proxy: BreakingProxy, do: Callable[[ObjectStore], Any]
) -> None:
    for code, words in {
        "AccessDenied": "look at the credentials",
        "ExpiredToken": "have run out",
        "RequestTimeTooSkewed": "set this machine's clock",
        "NoSuchBucket": "there is no such bucket",
    }.items():
        error = said(proxy, store, do, code)
        assert isinstance(error, MirrorAccessError) and words in f"{error} {error.hint}"
        assert len(proxy.log) <= 3, "it is not tried again, but for what an upload has begun"


@of_s3
@pytest.mark.parametrize(
    ("do", "code"),
    [
        (send, "QuotaExceeded"),
        (look, "QuotaExceeded"),
        (look, "SlowDown"),
        (claim, "SlowDown"),
        (fetch, "InternalError"),
    ],
)
def test_what_does_not_pass_for_now_is_never_taken_for_an_absence(
    store: ObjectStore, proxy: BreakingProxy, do: Callable[[ObjectStore], Any], code: str
) -> None:
    error = said(proxy, store, do, code)
    assert isinstance(error, MirrorUnavailableError) and code in str(error)


@of_s3
def test_a_server_that_is_away_and_one_that_cuts_every_answer_are_tried_again_later(proxy: BreakingProxy) -> None:
    away = open_store(f"s3://{BUCKET}/x", f"http://127.0.0.1:{object_servers.free_port()}")
    for do in (claim, look):
        with pytest.raises(MirrorUnavailableError, match="Connection refused"):
            do(away)
    with pytest.raises(MirrorUnavailableError, match="no server is known by the name"):
        claim(open_store(f"s3://{BUCKET}/x", "http://nowhere.invalid"))
    proxy.break_on(Rule("", "short", 20, FOR_EVER))
    with pytest.raises(MirrorUnavailableError):
        look(open_store(f"s3://{BUCKET}/x", proxy.url))


@of_s3
def test_a_listing_of_many_pages_that_breaks_in_the_middle_gives_none_of_them(
    store: ObjectStore, proxy: BreakingProxy
) -> None:
    for number in range(7):
        store.put_absent(f"many/{number}", b"")
    proxy.state.page_size = 3
    assert [item.key for item in store.listed("many/")] == [f"many/{number}" for number in range(7)]
    assert sum("continuation-token" in line for line in proxy.log) == 2
    proxy.break_on(Rule("continuation-token", "error", "SlowDown", FOR_EVER))
    listing = store.listed("many/")
    with pytest.raises(MirrorUnavailableError):
        next(listing)
    proxy.state.page_size = 0


@of_s3
def test_a_file_of_which_reading_fails_leaves_no_parts(store: ObjectStore, proxy: BreakingProxy) -> None:
    def broken() -> Iterator[bytes]:
        yield from blocks()
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        store.put_file("a/large", SIZE + MIB, broken())
    assert any(line.startswith("DELETE") and "uploadId" in line for line in proxy.log), "the upload was aborted"


@of_s3
@pytest.mark.parametrize("do", ["[*store.listed()]", "store.put_file('a', 12 << 20, iter([bytes(4 << 20)] * 3))"])
def test_ctrl_c_ends_the_wait_for_a_store_that_hangs(proxy: BreakingProxy, do: str) -> None:
    proxy.break_on(Rule("", "hang", None, FOR_EVER))
    program = (
        "from holdfast.remote.opening import open_store\n"
        f"store = open_store('s3://{BUCKET}/x', {proxy.url!r})\n"
        f"try:\n    {do}\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: proxy.log, 60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@of_s3
def test_conditional_puts_cannot_be_switched_off(proxy: BreakingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    proxy.break_on()
    store = open_store(f"s3://{BUCKET}/conditional", proxy.url)
    assert store.put_absent("a", b"1") and not store.put_absent("a", b"2")


@needs("obstore")
def test_no_part_of_a_signed_address_gets_into_an_error(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "c2VjcmV0"
    variables = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_SAS_TOKEN": f"sv=2021-12-02&sig={secret}"}
    with object_servers.environment(variables, tmp_path), object_servers.short_pauses():
        store = open_store(f"az://{BUCKET}/x", f"http://127.0.0.1:{object_servers.free_port()}/account")
        for do in (claim, look, send, remove):
            with pytest.raises(MirrorUnavailableError) as caught:
                do(store)
            text = "".join(traceback.format_exception(caught.value))
            assert secret not in text and "127.0.0.1" not in str(caught.value), "no address is in it at all"
    assert secret not in "".join(capfd.readouterr())


def test_parts_are_so_large_that_no_file_has_too_many() -> None:
    assert part_bytes(0) == part_bytes(10_000 * PART_BYTES) == PART_BYTES
    for size in (10_000 * PART_BYTES + 1, 100 << 30, 5 << 40):
        part = part_bytes(size)
        assert part % MIB == 0 and -(-size // part) <= 10_000 and (size - 1) // (part - MIB) >= 8000


def test_parts_under_way_take_no_more_memory_where_they_are_larger() -> None:
    assert parts_at_once(PART_BYTES) == parts_at_once(part_bytes(100 * 10**9)) == 4
    assert [parts_at_once(count * MIB) for count in (11, 13, 14, 25, 26, 27, 500)] == [3, 3, 2, 1, 1, 1, 1]


def test_a_bucket_is_a_store() -> None:
    store: type[ObjectStore] = Bucket
    assert store is Bucket


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("azure", marks=[needs("obstore"), object_servers.needs_azurite()]),
        pytest.param("gcs", marks=needs("obstore", "localbucket")),
    ],
)
def other_cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BreakingProxy, ObjectStore]]:
    folder, is_azure = tmp_path_factory.mktemp(request.param), request.param == "azure"
    with ExitStack() as held:
        server = (object_servers.azurite if is_azure else object_servers.localbucket)(folder)
        proxy = held.enter_context(BreakingProxy(held.enter_context(server), gcs=not is_azure))
        held.enter_context(object_servers.short_pauses())
        variables = object_servers.AZURE_ENVIRONMENT if is_azure else object_servers.GCS_ENVIRONMENT
        held.enter_context(object_servers.environment(variables, folder))
        endpoint = object_servers.azure_endpoint(proxy.port) if is_azure else proxy.url
        yield proxy, open_store(f"{'az' if is_azure else 'gs'}://{BUCKET}/x", endpoint)


@pytest.mark.parametrize("do", ["error", "cut", "lost", "twice"])
@pytest.mark.parametrize("last", [False, True], ids=["part", "last"])
def test_on_other_clouds_a_file_is_there_whole_or_is_sent_again(
    other_cloud: tuple[BreakingProxy, ObjectStore], do: str, last: bool
) -> None:
    proxy, store = other_cloud
    match = r"(comp=blocklist|POST .*uploadId)" if last else r"(comp=block&|partNumber=)"
    proxy.break_on(Rule(match, do, {"error": "SlowDown", "cut": 100}.get(do)))
    try:
        send(store)
    except MirrorUnavailableError:  # an answer that is lost may be of what was done
        assert {item.size for item in store.listed("a/")} <= {SIZE}
        send(store)
    assert sum(rule.times for rule in proxy.state.rules) == 0
    store.delete("a/large")


@pytest.mark.parametrize("do", ["error", "cut", "lost", "twice", "late"])
def test_on_other_clouds_what_is_ours_is_told_from_what_is_not(
    other_cloud: tuple[BreakingProxy, ObjectStore], do: str
) -> None:
    proxy, store = other_cloud
    proxy.break_on(Rule("PUT", do, {"error": "SlowDown", "cut": 0}.get(do)))
    assert store.put_absent(f"claims/{do}", b"mine")
    assert sum(rule.times for rule in proxy.state.rules) == 0
    proxy.do_the_late_ones()
    assert not store.put_absent(f"claims/{do}", b"yours")
    assert store.get_range(f"claims/{do}", 0, 10) == b"mine"


@pytest.mark.parametrize("code", ["AccessDenied", "SlowDown", "NoSuchBucket"])
def test_on_other_clouds_a_refusal_is_no_absence(other_cloud: tuple[BreakingProxy, ObjectStore], code: str) -> None:
    proxy, store = other_cloud
    for do in (look, fetch, remove, send, claim):
        said(proxy, store, do, code)
    proxy.break_on()
