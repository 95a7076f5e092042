import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.support import RESUMABLE, RUN, commit_checkpoint, content_of
from holdfast.errors import NoCheckpointError, UnsupportedError
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.resume.choose import select_checkpoint
from holdfast.store import catalog, retention
from holdfast.store.retention import RetentionPolicy


def planted(root: Path, step: int = 9, **fields: Any) -> Path:
    """A checkpoint that verifies, put there by another user."""
    path = commit_checkpoint(root, step, **fields)
    try:
        for one in (path, *path.rglob("*")):
            os.chown(one, 12345, -1, follow_symlinks=False)
    except PermissionError:
        pytest.skip("SKIPPED, NOT PASSED: only root can make another user's files")
    return path


def test_security_s16_what_another_user_put_there_is_not_resumed_from_unless_it_is_named(tmp_path: Path) -> None:
    """A checkpoint that verifies, newer than ours, of our run's identity, that belongs to another user."""
    said: list[str] = []
    ours = commit_checkpoint(tmp_path, 7)
    theirs = planted(tmp_path)
    found = select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(said.append))
    assert found is not None and found.path == ours
    assert said == ["skipped checkpoint-9: of another user (uid 12345): name it to resume from it"]
    found = select_checkpoint(tmp_path, str(theirs), TRANSFORMERS, RunLog(said.append))
    assert found is not None and found.path == theirs


def test_security_s16_nothing_but_what_another_user_put_there_is_an_error(tmp_path: Path) -> None:
    """The only checkpoint belongs to another user."""
    planted(tmp_path)
    with pytest.raises(NoCheckpointError, match="none of the 1 checkpoints"):
        select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(print))


def test_security_s16_s19_what_another_user_put_there_takes_no_checkpoint_of_ours_away(tmp_path: Path) -> None:
    """A newer checkpoint of our run's identity, that belongs to another user, where one is to be kept."""
    ours = [commit_checkpoint(tmp_path, step) for step in (7, 8)]
    theirs = planted(tmp_path)
    found = catalog.entries(tmp_path)
    assert retention.surplus(
        tmp_path, tmp_path / ".holdfast", found, RUN, RetentionPolicy(scheduled=1, on_demand=1)
    ) == [ours[0]]
    assert theirs.exists()


def test_security_s16_what_another_user_put_there_does_not_use_up_the_numbers_of_commits(tmp_path: Path) -> None:
    """The greatest sequence that a manifest may have, in a checkpoint of another user."""
    commit_checkpoint(tmp_path, 7)
    planted(tmp_path, sequence=10**15 - 1)
    after = commit_checkpoint(tmp_path, 10)
    found = select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(print))
    assert found is not None and found.path == after


def test_security_s15_a_backup_of_hard_links_stays_as_it_is_whatever_becomes_of_it(tmp_path: Path) -> None:
    """A checkpoint is copied by hard links; then it is superseded, deleted, and the same step is saved again."""
    path = commit_checkpoint(tmp_path, 7)
    backup = tmp_path.with_name(f"{tmp_path.name}-backup")
    shutil.copytree(path, backup, copy_function=os.link)
    before = content_of(backup)
    commit_checkpoint(path.parent, 7, {**RESUMABLE, "model.safetensors": b"other weights"})
    (superseded,) = path.parent.glob("superseded-*")
    assert (superseded / "model.safetensors").samefile(backup / "model.safetensors")
    for one in (superseded, path):
        retention.delete(path.parent, path.parent / ".holdfast", one)
    after = commit_checkpoint(path.parent, 7, {**RESUMABLE, "model.safetensors": b"more weights"})
    assert content_of(backup) == before
    assert not any((after / name).samefile(backup / name) for name in before)


@pytest.mark.parametrize(
    "unpickled", ["optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata", "global_step9/mp_rank_00_model_states.pt"]
)
def test_security_s02_a_strangers_checkpoint_that_would_be_unpickled_is_refused(tmp_path: Path, unpickled: str) -> None:
    """A checkpoint without a manifest, in the forms of torch.distributed.checkpoint and of DeepSpeed, named."""
    path = tmp_path / "checkpoint-9"
    (path / unpickled).parent.mkdir(parents=True)
    for name, data in {**RESUMABLE, unpickled: b"a pickle", "latest": b"global_step9"}.items():
        (path / name).write_bytes(data)
    before = content_of(tmp_path)
    with pytest.raises(UnsupportedError, match=f"reading {unpickled} runs what is in it") as raised:
        select_checkpoint(tmp_path, str(path), TRANSFORMERS, RunLog(print))
    assert raised.value.exit_code == 2 and raised.value.hint
    assert content_of(tmp_path) == before
