from pathlib import Path

import pytest

import holdfast
from helpers.small_trainer import small_trainer
from holdfast.errors import UnsupportedError


def test_a_trainer_that_is_attached_already_is_refused(tmp_path: Path) -> None:
    trainer = holdfast.attach(small_trainer(tmp_path / "out"))
    with pytest.raises(UnsupportedError, match="this Trainer is attached already") as caught:
        holdfast.attach(trainer)
    assert "every train()" in str(caught.value.hint)
    assert not (tmp_path / "out" / ".holdfast").exists()
