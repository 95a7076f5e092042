import os
from pathlib import Path

import pytest

from holdfast.store.appending import append


def test_append_adds_at_the_end(tmp_path: Path) -> None:
    append(tmp_path / "file", b"one\n")
    append(tmp_path / "file", b"two\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"


def test_append_never_follows_a_link_and_never_waits_for_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError):
        append(tmp_path / "link", b"x")
    with pytest.raises(OSError):
        append(tmp_path / "fifo", b"x")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="is not a regular file"):
            append(tmp_path / "fifo", b"x")
    finally:
        os.close(reader)
    assert not (tmp_path / "elsewhere").exists()
