"""What was verified is what is loaded, deleted or exported, whatever directory has its name by then."""

import gc
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers import small_trainer
from helpers.full import FULL
from helpers.loops import Loop
from helpers.support import RESUMABLE, commit_checkpoint, content_of
from holdfast.errors import CheckpointError, DamagedCheckpointError, NoCheckpointError, UnsupportedError
from holdfast.integrations.trainer import supported
from holdfast.integrations.trainer.held_path import in_words
from holdfast.layouts.export import export
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.resume.choose import ResumePoint, select_checkpoint
from holdfast.store import catalog, folder, names, pins, retention
from holdfast.store.folder import Folder
from holdfast.store.verify import verify
from security.exchanging import Exchange, before_each_call, number_of_calls


def loop_trained(run: Path) -> Path:
    with (loop := Loop(run, save_steps=2)).ckpt:
        for batch in loop.ckpt.batches(until=2):
            loop.update(batch)
    return run / "checkpoint-2"


def loop_resumed(run: Path, checkpoint: Path) -> str | None:
    """What a loop holds that is resumed from a checkpoint; None where that was refused."""
    try:
        with (loop := Loop(run, resume=str(checkpoint))).ckpt:
            loop.ckpt.resume()
    except CheckpointError:
        return None
    return loop.digest()


def trainer_trained(run: Path) -> Path:
    small_trainer.train(run, max_steps=2, save_steps=2)
    return run / "checkpoint-2"


def trainer_resumed(run: Path, checkpoint: Path) -> str | None:
    """What a Trainer holds that is resumed from a checkpoint; None where that was refused."""
    try:
        trainer = small_trainer.train(run, resume=str(checkpoint), max_steps=2)
    except CheckpointError:
        return None
    moments = [state["exp_avg"].tolist() for state in trainer.optimizer.state_dict()["state"].values()]
    return repr((small_trainer.weights(trainer), moments))


def with_another_bit(checkpoint: Path, name: str, copied: Path) -> Path:
    """Copies a checkpoint, all of its sizes and names, with another number at the end of one file."""
    shutil.copytree(checkpoint, copied)
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    return copied


def tensors(value: bytes) -> bytes:
    """A file of safetensors, of one byte."""
    header = b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    return len(header).to_bytes(8, "little") + header + value


def committed(root: Path, files: dict[str, bytes] | None = None) -> Path:
    root.mkdir(parents=True)
    return commit_checkpoint(root, 7, files or {**RESUMABLE, "model.safetensors": b"weights"})


# Every so many calls, in `make test` and in the others: a resume of a Trainer takes half a second, and makes 300.
KINDS = {"loop": (loop_trained, loop_resumed, 11, 1), "trainer": (trainer_trained, trainer_resumed, 50, 4)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_security_s23_a_resume_takes_what_was_verified_or_refuses_it_whenever_the_checkpoint_is_exchanged(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of a resume a directory of the same user's takes the name, in which one bit is another."""
    trained, resumed, quickly, thoroughly = KINDS[kind]
    checkpoint = trained(tmp_path / "trained")
    whole = resumed(tmp_path / "whole", checkpoint)
    assert whole is not None
    calls = number_of_calls(lambda: resumed(tmp_path / "counted", checkpoint))
    refused = taken = 0
    for number in range(3, calls, thoroughly if FULL else quickly):
        top = tmp_path / str(number)
        here = top / "from" / checkpoint.name
        shutil.copytree(checkpoint, here)
        other = with_another_bit(checkpoint, "model.safetensors", top / "other")
        exchange = Exchange(number, lambda here=here: here, other)  # type: ignore[misc]
        with before_each_call(exchange):
            result = resumed(top / "run", here)
        if exchange.aside is None:
            continue  # other threads make calls of their own, more or fewer: it had ended before this one
        assert result in (None, whole), f"exchanged before call {number}, and loaded"
        refused += result is None
        taken += result is not None
    assert refused and taken
    record_property("injected", refused + taken)


def test_security_s23_a_verification_is_of_one_directory_whenever_it_is_exchanged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of a verification another checkpoint takes the name, which is damaged."""
    good = committed(tmp_path / "good")
    calls = number_of_calls(lambda: verify(good))
    attempts = set()
    for number in range(calls):
        here = tmp_path / str(number) / good.name
        shutil.copytree(good, here)
        bad = committed(tmp_path / f"bad-{number}")
        (bad / "model.safetensors").write_bytes(b"another")
        exchange = Exchange(number, lambda here=here: here, bad)  # type: ignore[misc]
        with before_each_call(exchange):
            report = verify(here)
        assert report.entry.manifest is not None
        attempts.add(report.entry.manifest.attempt)
        assert report.good == (report.entry.manifest == catalog.read(good).manifest), f"exchanged before call {number}"
    assert calls > 10 and len(attempts) > 1
    record_property("injected", calls)


def test_security_s23_what_is_deleted_is_what_was_meant_whenever_it_is_exchanged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of a deletion, and of the sweep after it, another checkpoint takes the name."""

    def delete(root: Path) -> None:
        meant = catalog.read(root / "checkpoint-7").manifest
        assert meant is not None
        with suppress(OSError):
            retention.delete(root, root / names.CONTROL, root / "checkpoint-7", meant.attempt)
        retention.sweep(root, root / names.CONTROL)

    committed(tmp_path / "counted")
    (tmp_path / "counted" / names.CONTROL).mkdir(mode=0o700)
    calls = number_of_calls(lambda: delete(tmp_path / "counted"))
    for number in range(calls):
        top = tmp_path / str(number)
        root = top / "run"
        committed(root)
        other = committed(top / "other")
        pinned = catalog.read(other).manifest
        assert pinned is not None
        (root / names.CONTROL).mkdir(mode=0o700)
        pins.pin(root / names.CONTROL, pinned.attempt)
        before = content_of(other)

        def find(root: Path = root) -> Path | None:
            return next((p for p in root.iterdir() if p.name == "checkpoint-7" or names.is_trash(p.name)), None)

        with before_each_call(Exchange(number, find, other)):
            delete(root)
        left = [content_of(path) for path in (other, *root.iterdir()) if path.is_dir()]
        assert before in left, f"exchanged before call {number}, and deleted"
    assert calls > 20
    record_property("injected", calls)


def test_security_s23_what_is_exported_is_what_was_verified_whenever_it_is_exchanged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of an export another directory takes the name of the checkpoint, or of what is written."""
    files = {**RESUMABLE, "model.safetensors": tensors(b"w"), "second/adapter_model.safetensors": tensors(b"a")}
    good = committed(tmp_path / "good", files)
    calls = number_of_calls(lambda: export(good, tmp_path / "counted"))
    whole = content_of(tmp_path / "counted")
    count = 0
    for what in ("checkpoint", "target"):
        for number in range(0, calls, 1 if FULL else 2):
            top = tmp_path / what / str(number)
            here, target = top / good.name, top / "target"
            target.mkdir(parents=True)
            shutil.copytree(good, here)
            other = with_another_bit(here, "model.safetensors", top / "other")
            before = content_of(other)

            def staging(target: Path = target) -> Path | None:
                return next((path for path in target.iterdir() if names.is_staging(path.name)), None)

            exchange = Exchange(number, (lambda here=here: here) if what == "checkpoint" else staging, other)  # type: ignore[misc]
            with before_each_call(exchange), suppress(DamagedCheckpointError, OSError):
                export(here, target)
            count += 1
            left = {name: data for name, data in content_of(target).items() if not name.startswith((".", "moved"))}
            assert left.items() <= whole.items(), f"{what} exchanged before call {number}, and exported"
            others = [content_of(path) for path in (other, here, *target.iterdir()) if path.is_dir()]
            assert before in others, f"{what} exchanged before call {number}: the other one was changed"
    record_property("injected", count)


def test_security_s23_a_link_in_the_target_of_an_export_is_not_followed(tmp_path: Path) -> None:
    """The folder that an adapter is exported to is a link to a directory elsewhere."""
    files = {**RESUMABLE, "model.safetensors": tensors(b"w"), "second/adapter_model.safetensors": tensors(b"a")}
    checkpoint = commit_checkpoint(tmp_path, 7, files)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "second").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="second"):
        export(checkpoint, tmp_path / "target")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("mode", [0o775, 0o707])
def test_security_s23_what_others_may_write_is_resumed_from_only_when_it_is_named(tmp_path: Path, mode: int) -> None:
    """A good checkpoint, the newest, of this user's, into which others may write."""
    older, newer = (commit_checkpoint(tmp_path, step) for step in (7, 9))
    newer.chmod(mode)
    writable = f"writable by others (mode 0{mode:o}; if it is yours: chmod go-w)"
    said: list[str] = []
    chosen = select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(said.append))
    assert chosen is not None and chosen.path == older
    assert said == [f"skipped checkpoint-9: {writable}: name it to resume from it"]
    said.clear()
    chosen = select_checkpoint(tmp_path, str(newer), TRANSFORMERS, RunLog(said.append))
    assert chosen is not None and chosen.path == newer
    assert len(said) == 1 and said[0].startswith(f"checkpoint-9 is {writable}: ")
    older.chmod(mode)
    with pytest.raises(NoCheckpointError, match="none of the 2"):
        select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(said.append))


class Fails:
    """Has a trainer fail in its loading, with the path that it was given in its words."""

    def __init__(self, trainer: Any) -> None:
        self.paths: list[str] = []
        self._own = trainer._load_optimizer_and_scheduler
        trainer._load_optimizer_and_scheduler = self._load

    def _load(self, checkpoint: str) -> None:
        self.paths.append(checkpoint)
        self._own(checkpoint)
        logging.getLogger("peft").warning("%s was read, and %s%s", checkpoint, checkpoint, "/optimizer.pt")
        try:
            Path(checkpoint, "nothing").read_bytes()
        except OSError as error:
            raise ValueError(f"no valid checkpoint at {checkpoint}") from error


def test_security_s23_the_path_of_a_descriptor_is_in_nothing_that_people_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All that a resumed training prints, logs, raises and writes is searched for it."""
    import transformers

    checkpoint = trainer_trained(tmp_path / "run")
    capfd.readouterr()
    transformers.logging.set_verbosity_debug()
    try:
        with caplog.at_level(logging.DEBUG):
            small_trainer.train(tmp_path / "run", resume="auto", max_steps=4)
            trainer = small_trainer.attached(tmp_path / "run", max_steps=6)
            fails = Fails(trainer)
            with pytest.raises(CheckpointError, match="no valid checkpoint at") as raised:
                trainer.train(resume_from_checkpoint=str(checkpoint))
    finally:
        transformers.logging.set_verbosity_warning()
    assert fails.paths[0].startswith("/proc/self/fd/"), "the test looks for nothing"
    said = [*capfd.readouterr(), caplog.text, *(r.getMessage() for r in caplog.records)]
    said += [repr(raised.value), str(raised.value.__cause__), *(p.read_text("latin-1") for p in files_in(tmp_path))]
    assert f"{checkpoint} was read, and {checkpoint}/optimizer.pt" in caplog.text
    assert [text for text in said if "/proc/" in text] == []
    assert f"no valid checkpoint at {checkpoint}" in str(raised.value)
    assert logging.getLogRecordFactory() is logging.LogRecord


def files_in(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file()]


def test_the_path_of_another_descriptor_stays_as_it_is(tmp_path: Path) -> None:
    with Folder.open(tmp_path) as held:
        text = f"{held.through}/model and {held.through}7/other"
        assert held.in_words(text) == f"{tmp_path}/model and {held.through}7/other"


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_let_go_of_when_training_ends(tmp_path: Path, kind: str) -> None:
    trained, resumed, *_ = KINDS[kind]
    checkpoint = trained(tmp_path / "run")
    damaged = with_another_bit(checkpoint, "model.safetensors", tmp_path / "run" / "checkpoint-1")
    gc.disable()
    try:
        assert resumed(tmp_path / "run", checkpoint) and resumed(tmp_path / "run", damaged) is None
        held = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}  # noqa: PTH115
    finally:
        gc.enable()
    assert not held & {str(checkpoint), str(damaged)}


def test_an_error_that_does_not_name_it_is_as_it_was_and_one_that_does_has_it_in_all_places(tmp_path: Path) -> None:
    plain = OSError("the writer has an error of its own")
    with pytest.raises(OSError) as raised, Folder.open(tmp_path) as held, in_words(held):
        raise plain
    assert raised.value is plain and str(plain) == "the writer has an error of its own"
    with pytest.raises(CheckpointError) as told, Folder.open(tmp_path) as held, in_words(held):
        try:
            (held.through / "nothing").read_bytes()
        except OSError as error:
            raise DamagedCheckpointError(f"{held.through}/nothing", [f"{held.through}: x"]) from error
    assert str(told.value) == f"{tmp_path}/nothing" and told.value.problems == [f"{tmp_path}: x"]  # type: ignore[attr-defined]
    assert str(told.value.__cause__).endswith(f"'{tmp_path}/nothing'")


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_DESCRIPTORS", Path("/nothing/of/the/kind"))


@pytest.mark.usefixtures("without_proc")
def test_security_s23_without_proc_a_checkpoint_that_was_exchanged_while_a_trainer_loaded_it_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no /proc, and after the loading another directory has the name."""
    checkpoint = trainer_trained(tmp_path / "run")
    trainer = small_trainer.attached(tmp_path / "run", max_steps=4)
    own = trainer._load_optimizer_and_scheduler

    def load(path: str) -> None:
        assert path == str(checkpoint)
        own(path)
        checkpoint.rename(tmp_path / "aside")
        shutil.copytree(tmp_path / "aside", checkpoint)

    trainer._load_optimizer_and_scheduler = load
    caplog.clear()
    with pytest.raises(DamagedCheckpointError, match="exchanged while it was loaded"):
        trainer.train(resume_from_checkpoint="auto")
    assert "/proc is missing: a Trainer" in caplog.text


@pytest.mark.usefixtures("without_proc")
def test_security_s23_without_proc_what_is_unpickled_is_refused_where_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no /proc, and others may write to the directory of a checkpoint of FSDP's."""
    files = {**RESUMABLE, "pytorch_model_fsdp.bin": b"w", "optimizer.bin": b"o"}
    checkpoint = commit_checkpoint(tmp_path, 7, files)
    monkeypatch.setattr(supported, "form_of", lambda trainer: "FSDP")
    point = ResumePoint(Folder.open(checkpoint), catalog.read(checkpoint).manifest)
    trainer: Any = None
    tmp_path.chmod(0o755)
    supported.require_readable(trainer, point)
    tmp_path.chmod(0o777)
    with pytest.raises(UnsupportedError, match="without /proc nothing keeps it"):
        supported.require_readable(trainer, point)
