"""The work of the mirror's process, over a store in memory that fails as it is told to."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from helpers.memory_store import MemoryStore
from helpers.remote import start
from helpers.support import RESUMABLE, RUN, commit_checkpoint, content_of
from holdfast.errors import MirrorAccessError, MirrorUnavailableError
from holdfast.mirror import sending, state
from holdfast.mirror.destination import Assignment, Destination
from holdfast.mirror.queue import Answer, Kind, Queue, Queued
from holdfast.mirror.sending import Sender, Wake
from holdfast.mirror.wanted import Wanted, WantedList
from holdfast.remote import keys
from holdfast.remote.download import download
from holdfast.remote.listing import listing_of
from holdfast.remote.object_store import Item, ObjectStore
from holdfast.remote.upload import upload
from holdfast.run.directory import RunDirectory
from holdfast.store import names, pins, terms
from holdfast.store.catalog import Catalog
from holdfast.store.folder import Folder
from holdfast.store.terms import Term


class Failing(MemoryStore):
    """Raises what it is told to, once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.looks = 0
        self.puts: list[str] = []

    def listed(self, prefix: str = "") -> Iterator[Item]:
        self.looks += 1
        return super().listed(prefix)

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        super().put_file(key, size, blocks)
        self.puts.append(key)


class Mirrored:
    """A run directory with a mirror, as its process sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = RunDirectory.create(root)
        self.queue = Queue(self.directory)
        self.store: Failing = Failing()
        self.opened = 0
        self.begin()

    def begin(self) -> None:
        """A start: claims the run, and gets a process."""
        term = start(self.store)
        terms.note(self.directory.control, Term(RUN, term, 1, "memory://"))
        destination = Destination("memory://", term, 3)
        assignment = Assignment(str(self.root), RUN, "e" * 32, destination)
        self.wake = Wake()
        self.sender = Sender(self.directory, assignment, self.opening, self.wake)

    def opening(self) -> ObjectStore:
        self.opened += 1
        return self.store

    def save(self, step: int, kind: Kind = "scheduled", *protected: str | None) -> str:
        """Makes a checkpoint and queues it, with what it needs, or None for what nobody knows; gives its attempt."""
        numbers = [term.number for term in terms.claimed(self.directory.control)]
        commit_checkpoint(self.root, step, term=numbers[-1])
        entry = next(entry for entry in Catalog(self.directory.folder).entries() if entry.step == step)
        manifest = entry.manifest
        assert manifest is not None
        known = None if None in protected else tuple(filter(None, protected))
        self.queue.put(Queued(manifest.attempt, step, manifest.sequence, manifest.size, kind, known))
        return manifest.attempt

    def serve(self) -> None:
        while self.queue.waiting() and self.sender.serve_one():
            pass

    def answer(self, attempt: str) -> Answer:
        answer = self.queue.answer_to(attempt)
        assert answer is not None
        return answer

    def state(self) -> dict[str, object]:
        return state.read(self.directory)

    def there(self) -> list[int]:
        return [each.key.sequence for each in listing_of(self.store, RUN).published]


@pytest.fixture
def run(tmp_path: Path) -> Mirrored:
    return Mirrored(tmp_path / "run")


def test_what_waits_is_sent_answered_and_shown(run: Mirrored, tmp_path: Path) -> None:
    attempt = run.save(7, "requested")
    run.serve()
    answer = run.answer(attempt)
    assert (answer.mirrored, answer.term, answer.step, answer.why) == (True, 1, 7, "")
    mirrored = run.state()["mirrored"]
    assert isinstance(mirrored, dict) and (mirrored["step"], mirrored["term"], mirrored["attempt"]) == (7, 1, attempt)
    assert run.state()["uploading"] is None and run.state()["failing_since"] is None
    (key,) = [each.key for each in listing_of(run.store, RUN).published]
    (tmp_path / "fresh").mkdir()
    assert content_of(download(run.store, key, tmp_path / "fresh")) == content_of(run.root / "checkpoint-7")


class Slow(Failing):
    """Takes ten bytes a second, by a clock of its own; something happens with the first file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 1000.0
        self.then: Callable[[], object] = lambda: None
        self.published: list[int] = []
        monkeypatch.setattr("holdfast.mirror.sending.time.monotonic", lambda: self.now)

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        then, self.then = self.then, lambda: None
        then()
        super().put_file(key, size, blocks)
        self.now += size / 10

    def put_absent(self, key: str, data: bytes) -> bool:
        if key.endswith("MANIFEST.json"):
            self.published.append(json.loads(data)["step"])
        return super().put_absent(key, data)


@pytest.mark.parametrize(("grace", "order"), [(2.1, [1, 2]), (1.5, [2, 1]), (0.5, [1, 2])])
def test_an_upload_is_given_up_for_the_save_of_a_stop_where_that_alone_is_there_in_time(
    run: Mirrored, monkeypatch: pytest.MonkeyPatch, grace: float, order: list[int]
) -> None:
    run.store = store = Slow(monkeypatch)
    run.begin()
    run.save(1, "requested")
    seconds = sum(map(len, RESUMABLE.values())) / 10

    def stops() -> None:
        run.save(2, "stop")
        run.wake.ends_at = store.now + grace * seconds

    store.then = stops
    run.serve()
    assert store.published == order
    assert len(store.puts) == 2 * len(RESUMABLE), "what was there by then is not sent again"


def test_pins_go_there_and_away_also_while_nothing_is_to_be_sent(run: Mirrored) -> None:
    attempt = run.save(1)
    run.serve()
    for change, expected in ((pins.pin, {attempt}), (pins.unpin, set[str]())):
        change(run.directory.control, attempt)
        assert not run.sender.serve_one()
        assert listing_of(run.store, RUN).pins == expected
        looks = run.store.looks
        assert not run.sender.serve_one() and run.store.looks == looks, "nothing is asked again and again"


def test_a_pin_that_another_machine_takes_away_there_holds_as_long_as_it_is_one_here(
    run: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = run.save(1)
    pins.pin(run.directory.control, pinned)
    run.serve()

    def unpinned_meanwhile(*arguments: object) -> object:
        run.store.delete(keys.pin(RUN, pinned))
        return upload(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sending, "upload", unpinned_meanwhile)
    for step in range(2, 7):
        run.save(step)
        run.serve()
    assert run.there() == [6, 5, 4, 1]


def test_what_was_asked_for_after_its_save_counts_so_there_whoever_deletes(run: Mirrored) -> None:
    attempts = [run.save(1)]
    pins.mark_as_asked_for(run.directory.control, attempts[0])
    run.serve()
    attempts.append(run.save(2))
    run.serve()
    pins.mark_as_asked_for(run.directory.control, attempts[1])
    assert not run.sender.serve_one()
    assert listing_of(run.store, RUN).asked == {*attempts}
    shutil.rmtree(run.directory.control.path / "asked")
    run.begin()
    for step in range(3, 7):
        run.save(step)
        run.serve()
    assert run.there() == [6, 5, 4, 2, 1]


def test_of_scheduled_ones_the_newest_alone_is_sent_and_what_it_needs(run: Mirrored) -> None:
    best, skipped = run.save(1), run.save(2)
    newest = run.save(3, "scheduled", best)
    run.serve()
    assert run.answer(best).mirrored and run.answer(newest).mirrored
    assert not run.answer(skipped).mirrored and run.answer(skipped).why == "step 3 came before it was sent"


def test_what_is_needed_beside_what_was_sent_or_waits_is_not_deleted_there(run: Mirrored) -> None:
    best = run.save(1)
    run.serve()
    for step in range(2, 7):
        run.save(step, "scheduled", best)
        run.serve()
    assert run.there() == [6, 5, 4, 1]
    run.save(7, "requested")
    run.save(8, "requested", best)
    run.sender.serve_one()
    run.serve()
    assert run.there() == [8, 7, 6, 1]


def test_where_nobody_knows_what_is_needed_nothing_is_skipped_or_deleted(run: Mirrored) -> None:
    for step in range(1, 5):
        run.save(step)
        run.serve()
    assert run.there() == [4, 3, 2]
    attempts = [run.save(5), run.save(6, "scheduled", None)]
    run.serve()
    assert all(run.answer(attempt).mirrored for attempt in attempts) and run.there() == [6, 5, 4, 3, 2]
    assert run.state()["not_deleted"] == "this disk did not show which checkpoints are needed beside step 6"
    run.save(7)
    run.serve()
    assert run.there() == [7, 6, 5] and run.state()["not_deleted"] == ""


def test_what_fails_is_tried_again_after_pauses_that_grow_and_says_since_when_and_why(
    run: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = run.save(1)
    run.store.failures = [MirrorUnavailableError("the store is busy")] * 4
    assert run.sender.serve_one()  # it looks around
    pauses = []
    for now in (1000.0, 1000.5, 1020.0, 9000.0):
        monkeypatch.setattr("holdfast.mirror.sending.time.time", partial(float, now))
        assert not run.sender.serve_one() and run.queue.answer_to(attempt) is None
        shown = run.state()
        again = shown["next_try_at"]
        assert (shown["failing_since"], shown["why"]) == (1000.0, "the store is busy") and isinstance(again, float)
        pauses.append(again - now)
    assert pauses == [1.0, 1.0, 20.0, 300.0]
    assert run.sender.serve_one() and run.answer(attempt).mirrored
    assert (run.state()["failing_since"], run.state()["why"], run.state()["next_try_at"]) == (None, "", None)


def test_a_refusal_has_the_store_opened_anew_once_at_once_and_then_after_pauses(run: Mirrored) -> None:
    attempt = run.save(1)
    run.sender.serve_one()
    assert run.opened == 1
    run.store.failures = [MirrorAccessError("the token has expired", hint="renew it")] * 3
    assert run.sender.serve_one() and run.state()["failing_since"] is None, "new credentials may be there"
    assert not run.sender.serve_one() and not run.sender.serve_one()
    assert run.opened == 3 and run.state()["why"] == "the token has expired: renew it"
    assert run.sender.serve_one() and run.answer(attempt).mirrored and run.opened == 4


def test_a_run_that_another_start_has_taken_over_is_sent_no_more(run: Mirrored) -> None:
    first = run.save(1)
    run.serve()
    start(run.store, host="another machine")
    attempts = [run.save(2, "requested"), run.save(3, "stop")]
    for _ in range(3):
        run.sender.serve_one()
    assert run.queue.waiting() == [] and run.answer(first).mirrored
    for attempt in attempts:
        assert not run.answer(attempt).mirrored and "another machine" in run.answer(attempt).why
    assert "another machine" in str(run.state()["taken_over"]) and run.there() == [1]


def test_what_an_earlier_start_of_this_directory_has_left_is_sent_under_its_own_term(run: Mirrored) -> None:
    left, run.store.failures = run.save(1, "stop"), [MirrorUnavailableError("cut")]
    run.serve()
    run.begin()
    newer = run.save(2)
    run.serve()
    assert (run.answer(left).term, run.answer(newer).term) == (1, 2)
    assert run.there() == [2, 1]
    mirrored = run.state()["mirrored"]
    assert isinstance(mirrored, dict) and mirrored["step"] == 2


def test_a_process_that_is_started_again_knows_what_is_there(run: Mirrored) -> None:
    run.save(1)
    run.serve()
    run.begin()
    assert run.sender.serve_one() is False
    mirrored = run.state()["mirrored"]
    assert isinstance(mirrored, dict) and (mirrored["step"], mirrored["term"]) == (1, 1)


def test_one_that_is_gone_or_damaged_is_answered_and_holds_nobody_up(run: Mirrored) -> None:
    gone, damaged, good = run.save(1, "requested"), run.save(2, "requested"), run.save(3)
    shutil.rmtree(run.root / "checkpoint-1")
    (run.root / "checkpoint-2" / "optimizer.pt").write_bytes(b"MOMENTS")
    run.serve()
    assert run.answer(gone).why == "it is no longer on this disk"
    assert not run.answer(damaged).mirrored and "damaged" in run.answer(damaged).why
    assert run.answer(good).mirrored and run.there() == [3]


def test_one_that_has_another_name_by_now_is_found_by_its_attempt(run: Mirrored) -> None:
    attempt = run.save(5, "requested")
    (run.root / "checkpoint-5").rename(run.root / f"superseded-5-{attempt}")
    run.serve()
    assert run.answer(attempt).mirrored


def test_an_error_that_nobody_thought_of_is_tried_again_with_a_new_store(run: Mirrored) -> None:
    attempt = run.save(1)
    run.store.failures = [RuntimeError()]
    run.serve()
    assert run.state()["why"] == "RuntimeError" and run.opened == 1
    run.serve()
    assert run.answer(attempt).mirrored and run.opened == 2


def test_a_place_that_has_no_sign_of_this_start_is_not_taken_for_the_mirror(run: Mirrored) -> None:
    attempt = run.save(1)
    objects, run.store.objects = run.store.objects, {}
    run.serve()
    assert run.queue.answer_to(attempt) is None and run.store.objects == {}
    assert "no sign of this run's start (term 1)" in str(run.state()["why"])
    run.store.objects = objects
    run.serve()
    assert run.answer(attempt).mirrored


def test_a_pull_makes_way_for_what_is_to_be_sent_and_is_made_anew_after_it(run: Mirrored, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    large = {**RESUMABLE, "model.safetensors": bytes(9 << 20)}
    path = commit_checkpoint(tmp_path / "elsewhere", 5, large, sequence=1)
    with Folder.open(path) as folder:
        key = upload(run.store, folder, 1, None)
    wanted = Wanted(*key, 5, sum(map(len, large.values())))
    WantedList(run.directory).begin([wanted])
    attempts: list[str] = []
    gets: list[str] = []
    once = threading.Lock()  # several blocks are fetched at once

    class Asked(Failing):
        def get_range(self, key: str, start: int, end: int) -> bytes:
            gets.append(key)
            if start and once.acquire(blocking=False):
                attempts.append(run.save(9, "requested"))
            return super().get_range(key, start, end)

    asked = Asked()
    asked.objects, run.store = run.store.objects, asked
    run.sender.serve_one()
    assert not run.sender.serve_one() and not (run.root / "checkpoint-5").exists(), "training has made no step yet"
    run.wake.trains = True
    while run.sender.serve_one():
        pass
    assert run.answer(attempts[0]).mirrored and sorted(path.name for path in run.root.glob("checkpoint-*")) == [
        "checkpoint-5",
        "checkpoint-9",
    ]
    assert content_of(run.root / "checkpoint-5") == content_of(path)
    (over,) = WantedList(run.directory).all()
    assert over.is_over and not over.why and not [each for each in run.root.iterdir() if names.is_staging(each.name)]
    assert gets.count(key.manifest) == 3, "it was looked at, begun, given up for the other, and begun again"
