from importlib.metadata import version
from pathlib import Path

import pytest

import holdfast
from helpers.small_trainer import small_trainer, train
from holdfast.errors import UnsupportedError


def test_a_trainer_that_is_attached_already_is_refused(tmp_path: Path) -> None:
    trainer = holdfast.attach(small_trainer(tmp_path / "out"))
    with pytest.raises(UnsupportedError, match="this Trainer is attached already") as caught:
        holdfast.attach(trainer)
    assert "every train()" in str(caught.value.hint)
    assert not (tmp_path / "out" / ".holdfast").exists()


def test_fsdp_that_accelerate_leaves_out_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    trainer = train(tmp_path / "out", max_steps=1)
    assert trainer.state.global_step == 1
    said = [line for line in caplog.messages if line.startswith("FSDP is asked for")]
    assert said == [
        f"FSDP is asked for, and accelerate {version('accelerate')} shards nothing here (NO): each process has all of"
        " the model, and checkpoints are plain ones"
    ]
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    caplog.clear()
    train(tmp_path / "without", max_steps=1)
    assert not [line for line in caplog.messages if "FSDP" in line]


def test_a_trainer_that_trains_alone_in_each_process_of_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_trainer(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it, of which accelerate takes no notice on a CPU
    with pytest.raises(UnsupportedError, match="started 2 processes, and this trainer trains with 1") as caught:
        holdfast.attach(trainer)
    assert "use_cpu=True" in str(caught.value.hint)
    assert not (tmp_path / "out" / ".holdfast").exists()
