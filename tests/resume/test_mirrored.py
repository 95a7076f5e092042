"""The start of a run that has a mirror, in this process, with the process that looks there and pulls."""

import os
import shutil
from pathlib import Path

import pytest

from helpers.mirrors import DirectoryMirror
from helpers.support import OTHER_RUN, RESUMABLE, commit_checkpoint, tiny_disk
from holdfast.errors import (
    CheckpointError,
    ConfigError,
    DamagedCheckpointError,
    HoldfastError,
    MirrorAccessError,
    MirrorTakenError,
    NoCheckpointError,
)
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.mirror.calls import Calls
from holdfast.mirror.destination import Assignment, Destination
from holdfast.mirror.sending import Sender, Wake
from holdfast.mirror.wanted import WantedList
from holdfast.remote.terms import Claimed
from holdfast.resume.open_run import Resumption, Wish, open_run
from holdfast.run import outcome
from holdfast.run.directory import RunDirectory
from holdfast.run.needed import identity_of
from holdfast.run.run import Run
from holdfast.settings import DEFAULTS
from holdfast.store import catalog, pins, terms

BEST = b'{"best_model_checkpoint": "elsewhere/checkpoint-5"}'


class Machine:
    """A run directory in which trainings start, all with one mirror."""

    def __init__(self, root: Path, mirror: DirectoryMirror) -> None:
        self.root, self.mirror, self.said = root, mirror, list[str]()

    def start(self, wanted: str | bool | None = "auto", *, ends: bool = True) -> Resumption:
        """A start that ends at once."""
        self.said.clear()
        settings = DEFAULTS.model_copy(update={"mirror": self.mirror.url})
        opened = open_run(None, Wish(self.root, wanted, TRANSFORMERS, RunLog(self.said.append), settings))
        told = [line for line in self.said if line.endswith("what takes one takes both")]
        is_shared = self.root.stat().st_dev == self.mirror.path.parent.stat().st_dev
        assert len(told) == (is_shared and wanted != "local")
        self.said[:] = [line for line in self.said if line not in told]
        if ends:
            self.end(opened)
        return opened

    def end(self, opened: Resumption) -> None:
        opened.run.close("finished", 0)
        opened.close()

    def save(self, step: int, content: dict[str, bytes] | None = None, reason: object = None) -> Path:
        """What a training of the last start there would have saved."""
        claimed = terms.claimed_in(self.root)
        run = claimed[-1].run
        present = catalog.entries(self.root)
        term = catalog.term_to_write(present, claimed, run)
        number = catalog.next_sequence(present, run, terms.first_number(claimed, run))
        fields = {"run": run, "term": term, "sequence": number, "reasons": (reason,) if reason else ()}
        return commit_checkpoint(self.root, step, content or RESUMABLE, **fields)

    def bring(self) -> list[str]:
        """What the mirror's process brings while a training goes on; gives why the rest does not come."""
        directory, claimed = RunDirectory.open(self.root), terms.claimed_in(self.root)[-1]
        there = Destination(self.mirror.url, claimed.number, 3)
        assignment = Assignment(str(self.root), claimed.run, "e" * 32, there)
        wake = Wake()
        wake.trains = True
        sender = Sender(directory, assignment, lambda: self.mirror.store, wake)
        sender.serve_one()  # it looks around first
        while sender.serve_one():
            pass
        wanted = WantedList(directory).all()
        assert all(each.is_over for each in wanted)
        return [f"{each.step}: {each.why}" for each in wanted if each.why]

    def has(self, text: str) -> bool:
        return any(text in line for line in self.said)


@pytest.fixture
def mirror(tmp_path: Path) -> DirectoryMirror:
    return DirectoryMirror(tmp_path / "mirror")


@pytest.fixture
def here(tmp_path: Path, mirror: DirectoryMirror) -> Machine:
    return Machine(tmp_path / "here", mirror)


@pytest.fixture
def elsewhere(tmp_path: Path, mirror: DirectoryMirror) -> Machine:
    return Machine(tmp_path / "elsewhere", mirror)


def steps(opened: Resumption) -> int:
    return 0 if opened.chosen is None or opened.chosen.manifest is None else opened.chosen.manifest.step


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_run_that_begins_takes_the_place_and_each_start_claims_the_next_term(
    here: Machine, mirror: DirectoryMirror
) -> None:
    opened = here.start()
    identity = opened.run.identity
    assert opened.chosen is None and here.has("starting from zero") and opened.run.term == 1
    assert mirror.owner == identity and mirror.listing.terms == (1,)
    assert terms.claimed_in(here.root) == (terms.Term(identity, 1, 1, mirror.url),)
    here.save(5)
    opened = here.start()
    assert (opened.run.identity, opened.run.term, steps(opened)) == (identity, 2, 5)
    assert terms.claimed_in(here.root)[-1] == terms.Term(identity, 2, 2, mirror.url)
    assert here.said == []


def test_an_empty_directory_takes_the_run_over_and_says_so(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    identity = elsewhere.start().run.identity
    for step in (5, 6, 7):
        elsewhere.save(step)
    mirror.send(elsewhere.root)
    shutil.rmtree(elsewhere.root)
    opened = here.start(ends=False)
    assert (opened.run.identity, opened.run.term, steps(opened)) == (identity, 2, 7)
    record = outcome.read(opened.run.directory)
    assert record is not None and record.run == identity and opened.chosen is not None
    assert opened.chosen.manifest is not None and record.parent == opened.chosen.manifest.attempt
    assert opened.run.status.now.run == identity
    here.end(opened)
    assert here.has(
        f"took run {identity} over from {mirror.url}, where {os.uname().nodename} had it last"
    ) and here.has("pulled checkpoint-7")
    assert sorted(path.name for path in here.root.iterdir()) == [".holdfast", "checkpoint-7", "events.jsonl"]
    assert (here.root / "checkpoint-7" / "model.safetensors").read_bytes() == RESUMABLE["model.safetensors"]
    first = terms.claimed_in(here.root)[-1].first
    assert first == 4 and terms.is_required(terms.claimed_in(here.root), identity, 2), "numbers go on from those there"


def test_another_run_and_one_that_begins_anew_are_refused_with_both_names(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    identity = elsewhere.start().run.identity
    here.root.mkdir()
    commit_checkpoint(here.root, 5, run=OTHER_RUN)
    with pytest.raises(MirrorTakenError, match=f"of run {identity}, and .*here those of run {OTHER_RUN}") as raised:
        here.start()
    assert raised.value.exit_code == 2 and mirror.listing.terms == (1,)
    record = outcome.read(RunDirectory.open(here.root))
    assert record is not None and record.code == 2 and record.outcome == "failed: MirrorTakenError"
    with pytest.raises(MirrorTakenError, match=f"of run {identity}, and this start begins run [0-9a-f]+ anew"):
        here.start(None)
    with pytest.raises(MirrorTakenError, match="anew"):
        elsewhere.start(False)
    assert here.start("local").chosen is not None and mirror.listing.terms == (1,)


def test_a_machine_that_comes_back_goes_on_from_what_another_has_mirrored_and_names_what_it_leaves_out(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    here.start()
    here.save(5)
    mirror.send(here.root)
    assert steps(elsewhere.start()) == 5
    elsewhere.save(6)
    for step in (6, 7, 8):
        here.save(step)  # it does not know that it was taken over
    with pytest.raises(MirrorTakenError, match=r"\(term 2\) has had this run .*, and has mirrored nothing yet: .*-8"):
        here.start()
    assert steps(here.start(str(here.root / "checkpoint-5"))) == 5, "the same that the other one has gone on from"


def test_of_what_is_here_and_there_the_greatest_term_wins_and_the_name_is_given_up(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    here.start()
    here.save(5)
    mirror.send(here.root)
    elsewhere.start()
    elsewhere.save(6, {**RESUMABLE, "model.safetensors": b"elsewhere"})
    mirror.send(elsewhere.root, 6)
    for step in (6, 7):
        here.save(step)
    opened = here.start()
    assert (steps(opened), opened.run.term) == (6, 3)
    assert (here.root / "checkpoint-6" / "model.safetensors").read_bytes() == b"elsewhere"
    assert len(list(here.root.glob("superseded-6-*"))) == 1
    assert here.has("checkpoint-7 was saved here while") and here.has("left out")
    assert [entry.step for entry in catalog.entries(here.root)] == [6, 7, 6, 5]
    assert terms.claimed_in(here.root)[-1].first == 4


def test_what_is_damaged_there_is_named_and_an_older_one_pulled(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    for step in (5, 6, 7):
        elsewhere.save(step)
    older, cut, altered = mirror.send(elsewhere.root)
    flip_a_byte(mirror.file(altered, "optimizer.pt"))
    flip_a_byte(mirror.file(cut, "MANIFEST.json"))
    assert steps(here.start()) == 5
    assert here.has("skipped checkpoint-7 in the mirror: optimizer.pt: its bytes") and here.has(
        "in the mirror: the manif"
    )
    assert mirror.listing.published[-1].key == older
    shutil.rmtree(here.root)
    assert steps(here.start()) == 5, "the start before went on from it, and has sent nothing"
    flip_a_byte(mirror.file(older, "optimizer.pt"))
    shutil.rmtree(here.root)
    with pytest.raises(MirrorTakenError, match="would go on from checkpoint-7 in the mirror"):
        here.start()


def test_where_all_that_is_mirrored_is_damaged_nothing_begins_at_zero(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    (key,) = mirror.send(elsewhere.root)
    flip_a_byte(mirror.file(key, "optimizer.pt"))
    with pytest.raises(NoCheckpointError, match=r"none of the 0 checkpoints in .* and the 1 in .* can be resumed from"):
        here.start()


def test_what_is_damaged_here_and_good_there_is_brought_again(here: Machine, mirror: DirectoryMirror) -> None:
    here.start()
    path = here.save(5)
    mirror.send(here.root)
    flip_a_byte(path / "model.safetensors")
    opened = here.start()
    assert steps(opened) == 5 and here.has("skipped checkpoint-5: ") and here.has("pulled checkpoint-5")
    assert (path / "model.safetensors").read_bytes() == RESUMABLE["model.safetensors"]


def test_what_turns_out_to_be_damaged_as_it_is_read_gives_way_to_an_older_one_and_is_not_pulled_for_ever(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    elsewhere.save(6)
    mirror.send(elsewhere.root)
    opened = here.start(ends=False)
    assert opened.chosen is not None and steps(opened) == 6
    older = opened.fall_back(DamagedCheckpointError("a disk that lies", ["model.safetensors: changed"]))
    assert older.manifest is not None and older.manifest.step == 5 and opened.run.parent == older.manifest.attempt
    assert mirror.listing.terms == (1, 2) and opened.run.term == 2, "who sends its checkpoints knows of no other term"
    with pytest.raises(NoCheckpointError):
        opened.fall_back(DamagedCheckpointError("again", ["model.safetensors: changed"]))
    here.end(opened)


def test_what_is_mirrored_between_the_look_and_the_claim_is_gone_on_from(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    claim = Calls.claim

    def claim_late(calls: Calls, *arguments: object) -> Claimed:
        if len(mirror.listing.published) == 1:
            elsewhere.save(6)
            mirror.send(elsewhere.root, 6)
        return claim(calls, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Calls, "claim", claim_late)
    opened = here.start()
    assert steps(opened) == 6 and opened.run.term == 3 and mirror.listing.terms == (1, 2, 3)
    assert [term.number for term in terms.claimed_in(here.root)] == [2, 3]


def test_the_best_checkpoint_of_a_trainer_comes_too_and_the_marks(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    for step in (5, 6, 7):
        elsewhere.save(step, {**RESUMABLE, "trainer_state.json": BEST})
    best, _, newest = mirror.send(elsewhere.root)
    for kind in ("pins", "asked"):
        marked = mirror.path / newest.run / kind / newest.attempt
        marked.parent.mkdir(parents=True)
        marked.touch()
    opened = here.start()
    assert steps(opened) == 7
    assert sorted(path.name for path in here.root.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-7"]
    assert pins.pinned(here.root / ".holdfast") == pins.asked_for(here.root / ".holdfast") == {newest.attempt}
    assert catalog.read(here.root / "checkpoint-5").manifest is not None and best.sequence == 1


def test_to_a_new_machine_come_what_has_a_label_the_slots_and_what_is_pinned_and_not_again_what_is_deleted_there(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    for step, reason in enumerate(({"label": "a"}, {"slot": "s"}, {"slot": "s"}, {}, {}, {"label": "b"}, {}), 1):
        elsewhere.save(step, reason=reason)
    keys = mirror.send(elsewhere.root)
    pinned = mirror.path / keys[3].run / "pins" / keys[3].attempt
    pinned.parent.mkdir(parents=True)
    pinned.touch()
    damaged = mirror.file(keys[5], "model.safetensors")
    flip_a_byte(damaged)
    assert steps(here.start()) == 7
    assert present(here) == [7], "training need not wait for the others"
    names = "checkpoint-6, checkpoint-4, checkpoint-3, checkpoint-1"
    assert here.said[-2:-1] == [f"brought from the mirror while training goes on, for they are to stay: {names}"]
    (why,) = here.bring()
    assert why.startswith("6: ") and "is not what was sent" in why
    assert present(here) == [1, 3, 4, 7], "the newest of a slot has it, and what is damaged is not brought"
    for step in (1, 3):
        shutil.rmtree(here.root / f"checkpoint-{step}")
    here.start()
    here.bring()
    assert present(here) == [1, 3, 4, 7], "as long as nothing was saved, a start may have been cut off"
    here.save(8)
    shutil.rmtree(here.root / "checkpoint-3")
    flip_a_byte(damaged)
    here.start()
    here.bring()
    assert present(here) == [1, 4, 7, 8] and here.said == []


def test_what_training_ended_before_is_brought_by_the_next_start(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    elsewhere.save(5, reason={"label": "a"})
    elsewhere.save(6)
    mirror.send(elsewhere.root)
    here.start()
    here.save(7)
    assert steps(here.start()) == 7 and present(here) == [6, 7]
    assert here.bring() == [] and present(here) == [5, 6, 7]


def test_what_another_has_saved_under_a_name_that_is_taken_here_is_the_best_or_is_named(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    here.start()
    here.save(3)
    mirror.send(here.root)
    elsewhere.start()
    for step in (4, 5):
        here.save(step)
    elsewhere.save(4, reason={"label": "a"})
    elsewhere.save(5, {**RESUMABLE, "model.safetensors": b"the best"})
    for step in (6, 7):
        elsewhere.save(step, {**RESUMABLE, "trainer_state.json": BEST})
    mirror.send(elsewhere.root)
    assert steps(here.start()) == 7
    assert (here.root / "checkpoint-5" / "model.safetensors").read_bytes() == b"the best"
    assert len(list(here.root.glob("superseded-5-*"))) == 1 and not list(here.root.glob("superseded-4-*"))
    assert here.has("checkpoint-4 of the mirror (commit 2), which is to stay, is not brought")
    assert here.has("before that and not mirrored: it is left out and stays, and checkpoint-7"), (
        "by its number it is older"
    )
    superseded = next(here.root.glob("superseded-5-*"))
    left_out = catalog.read(superseded).manifest
    assert left_out is not None and left_out.attempt in pins.asked_for(here.root / ".holdfast"), "no rule deletes it"


def test_where_the_last_start_went_on_from_an_older_one_so_does_the_next_and_names_the_newest(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    here.start()
    for step in (5, 6):
        here.save(step)
    mirror.send(here.root)
    assert steps(here.start(str(here.root / "checkpoint-5"))) == 5
    assert steps(elsewhere.start()) == 5
    assert elsewhere.has("checkpoint-6 in the mirror, the newest there, is left out") and elsewhere.has("(term 2) went")


def test_a_place_that_has_lost_the_name_of_its_run_is_no_free_one(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    identity = elsewhere.start().run.identity
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    (mirror.path / "RUN").unlink()
    with pytest.raises(MirrorAccessError, match=f"checkpoints of run {identity}, and no object RUN") as raised:
        here.start()
    assert raised.value.exit_code == 2 and mirror.owner is None
    assert steps(elsewhere.start()) == 5 and mirror.owner == identity, "its own run puts it there again"


def test_what_others_have_in_the_directory_of_a_mirror_is_left_alone(here: Machine, mirror: DirectoryMirror) -> None:
    mirror.path.mkdir()
    (mirror.path / "latest").symlink_to(here.root.parent)
    here.start()
    here.save(5)
    mirror.send(here.root)
    assert steps(here.start()) == 5 and (mirror.path / "latest").is_symlink()


def test_a_directory_that_has_only_what_others_made_takes_the_run_over_and_says_so(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    (here.root / "checkpoint-9").mkdir(parents=True)
    (here.root / "checkpoint-9" / "trainer_state.json").write_text("{}")
    assert steps(here.start()) == 5
    assert here.has("skipped checkpoint-9: made by plain transformers") and here.has("took run")


def present(machine: Machine) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in machine.root.glob("checkpoint-*"))


def test_local_leaves_the_mirror_alone_and_says_what_that_means(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    before = mirror.listing
    with pytest.raises(NoCheckpointError, match="there is no checkpoint in"):
        here.start("local")
    here.start()
    here.save(6)
    opened = here.start("local")
    assert steps(opened) == 6 and opened.run.term == 0
    assert here.has("is left alone by this start") and here.has("holdfast push")
    assert mirror.listing.terms == (*before.terms, 2)
    saved = here.save(7)
    assert catalog.read(saved).manifest is not None and catalog.entries(here.root)[0].term == 2


def test_a_mirror_that_is_given_anew_goes_on_above_the_terms_of_the_one_before(
    here: Machine, mirror: DirectoryMirror, tmp_path: Path
) -> None:
    for step in (5, 6, 7):
        here.start()
        here.save(step)
    here.mirror = DirectoryMirror(tmp_path / "another")
    opened = here.start()
    assert steps(opened) == 7 and opened.run.term == 4
    here.save(8)
    assert [entry.step for entry in catalog.entries(here.root)] == [8, 7, 6, 5]


def test_true_wants_one_here_or_there(here: Machine, elsewhere: Machine, mirror: DirectoryMirror) -> None:
    with pytest.raises(NoCheckpointError, match=r"there is no checkpoint in .*here or in file://"):
        here.start(True)
    elsewhere.start()
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    assert steps(here.start(True)) == 5


def test_a_disk_without_room_is_told_before_anything_is_pulled(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.start()
    elsewhere.save(5)
    mirror.send(elsewhere.root)
    monkeypatch.setattr("holdfast.store.files.free_space", lambda folder: (1 << 20, 1000))
    with pytest.raises(CheckpointError, match=r"checkpoint-5 of file:.* has [0-9,]+ bytes, and .* has 1,048,576 free"):
        here.start()
    assert not list(here.root.glob("*-5*"))


def test_a_disk_that_fills_up_before_a_pull_begins_ends_the_start_and_without_what_is_to_stay_it_goes_on(
    elsewhere: Machine, mirror: DirectoryMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {**RESUMABLE, "model.safetensors": bytes(2 << 20)}
    elsewhere.start()
    elsewhere.save(5, large)
    mirror.send(elsewhere.root)
    # What this process sees is room; the one that pulls sees what there is.
    monkeypatch.setattr("holdfast.store.files.free_space", lambda folder: (1 << 30, 1000))
    with tiny_disk(tmp_path / "disk", options="size=1m") as disk:
        here = Machine(disk / "run", mirror)
        with pytest.raises(CheckpointError, match=r"cannot be brought to .*: checkpoint-5 of .* free"):
            here.start()
        assert present(here) == []
        elsewhere.save(6, reason={"label": "large"}, content=large)
        elsewhere.save(7)
        mirror.send(elsewhere.root)
        assert steps(here.start()) == 7
        (why,) = here.bring()
        assert why.startswith("6: ") and "No space left" in why and present(here) == [7]


def test_what_is_to_stay_is_not_brought_into_the_room_of_the_next_checkpoint(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.start()
    elsewhere.save(5, reason={"label": "a"})
    elsewhere.save(6)
    mirror.send(elsewhere.root)
    size = catalog.read(elsewhere.root / "checkpoint-6").manifest.size  # type: ignore[union-attr]
    monkeypatch.setattr("holdfast.store.files.free_space", lambda folder: ((16 << 20) + 3 * size // 2, 1000))
    assert steps(here.start()) == 6
    (why,) = here.bring()
    assert why.endswith(f"of which the next checkpoint takes {size:,}") and present(here) == [6]


@pytest.mark.parametrize("url", ["s3:/bucket", "ftp://host/run", "s3://key:secret@bucket/run", "file:///"])
def test_an_address_that_is_none_is_refused_before_anything_is_made(here: Machine, url: str) -> None:
    settings = DEFAULTS.model_copy(update={"mirror": url})
    with pytest.raises(ConfigError) as raised:
        open_run(None, Wish(here.root, "auto", TRANSFORMERS, RunLog(here.said.append), settings))
    assert not here.root.exists() and "secret" not in str(raised.value)


def test_the_start_leaves_no_process_behind(here: Machine) -> None:
    children = Path("/proc/self/task") / str(os.getpid()) / "children"
    before = children.read_text()
    here.start()
    with pytest.raises(HoldfastError):
        here.start(None)
    assert children.read_text() == before


def test_a_start_that_dies_between_its_claim_and_its_note_of_that_stands_in_nobodys_way(
    here: Machine, mirror: DirectoryMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.start()
    here.save(5)

    def dies(run: Run, term: terms.Term) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "claim", dies)
        with pytest.raises(KeyboardInterrupt):
            here.start()
    record = outcome.read(RunDirectory.open(here.root))
    assert record is not None and record.code == 130
    opened = here.start()
    assert steps(opened) == 5 and opened.run.term == 3 and mirror.listing.terms == (1, 2, 3)
    assert terms.is_required(terms.claimed_in(here.root), opened.run.identity, 3)


def test_a_start_that_is_refused_leaves_the_run_what_it_was(
    here: Machine, elsewhere: Machine, mirror: DirectoryMirror, tmp_path: Path
) -> None:
    identity = here.start().run.identity
    here.save(5)
    used = here.mirror = DirectoryMirror(tmp_path / "used")
    elsewhere.mirror = used
    elsewhere.start()
    with pytest.raises(MirrorTakenError):
        here.start()
    directory = RunDirectory.open(here.root)
    assert identity_of(directory, catalog.entries(here.root)) == identity, "by that push and prune know it"
    here.mirror = mirror
    assert here.start().run.identity == identity


def test_the_settings_of_a_mirror_that_is_not_there_are_named(tmp_path: Path) -> None:
    for changes, names in (
        ({"mirror_endpoint": "http://host", "mirror_keep": 5}, "mirror_keep, mirror_endpoint: without mirror:"),
        ({}, ""),
    ):
        said: list[str] = []
        settings = DEFAULTS.model_copy(update=changes)
        opened = open_run(None, Wish(tmp_path / "run", "auto", TRANSFORMERS, RunLog(said.append), settings))
        opened.run.close("finished", 0)
        opened.close()
        assert any(names in line for line in said) if names else not any("without mirror:" in line for line in said)


def test_a_mirror_inside_of_the_run_directory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for place in (root, root / "mirror", tmp_path):
        settings = DEFAULTS.model_copy(update={"mirror": place.as_uri()})
        with pytest.raises(ConfigError, match="a directory of its own"):
            try:
                open_run(None, Wish(root, "auto", TRANSFORMERS, RunLog(list[str]().append), settings))
            except ConfigError as error:
                raise ConfigError([f"{error} {error.hint}"]) from None
    assert not root.exists()
