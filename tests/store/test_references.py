"""Checkpoints whose files name others: every way of looking at one sees it."""

import json
from pathlib import Path

import pytest

from helpers.support import RESUMABLE, RUN, commit_checkpoint, holdfast
from helpers.tampering import with_intent
from holdfast.errors import DamagedCheckpointError
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.resume.choose import select_checkpoint
from holdfast.store import catalog, retention
from holdfast.store.retention import RetentionPolicy
from holdfast.store.verify import verify

INDEX = "model.safetensors.index.json"
SHARDED = {
    **{name: data for name, data in RESUMABLE.items() if name != "model.safetensors"},
    "model-00001-of-00001.safetensors": b"weights",
    INDEX: json.dumps({"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode(),
}


def index(name: object) -> bytes:
    return json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors", "w": name}}).encode()


INDEXES: dict[str, tuple[bytes, str]] = {
    "above": (index("../evil.safetensors"), "names '../evil.safetensors', which is no file of the checkpoint"),
    "absolute": (index("/etc/hostname"), "names '/etc/hostname', which"),
    "in a folder": (index("sub/model.safetensors"), "names 'sub/model.safetensors', which"),
    "unlisted": (index("model.safetensors"), "names 'model.safetensors', which"),
    "the manifest": (index("MANIFEST.json"), "names 'MANIFEST.json', which"),
    "itself with a dot": (index("./model-00001-of-00001.safetensors"), "names './model-00001"),
    "a number": (index(7), "names 7, which"),
    "a list": (b'{"weight_map": ["../evil.safetensors"]}', "its weight_map is no object"),
    "twice": (b'{"weight_map": {}, "weight_map": {"w": "../evil"}}', "is not valid JSON: a key appears twice"),
    "deep": (b"[" * 100_000, "is not valid JSON: it is nested too deep"),
    "UTF-16": ("{}".encode("utf-16"), "is not valid JSON: "),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_security_s24_an_index_that_names_what_is_not_the_checkpoints_is_damage_to_everybody(
    tmp_path: Path, kind: str
) -> None:
    """An index of weights that leads out of its checkpoint, or is none; the manifest was made to fit it."""
    data, problem = INDEXES[kind]
    good, bad = (commit_checkpoint(tmp_path, step, SHARDED) for step in (7, 8))
    with_intent(bad, INDEX, data)
    entry, other = catalog.entries(tmp_path)[::-1]
    assert entry.path == bad and entry.manifest is None and (entry.problem or "").startswith(f"{INDEX}: {problem}")
    assert other.problem is None
    assert verify(bad, full=False).problems == verify(bad).problems == (entry.problem,)
    kept = {v.entry.step: v.kept for v in retention.judge(tmp_path, None, [entry, other], RUN, RetentionPolicy(1, 1))}
    assert kept == {8: f"damaged: {entry.problem}", 7: "the newest good one"}
    chosen = select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(print))
    assert chosen is not None and chosen.path == good
    with pytest.raises(DamagedCheckpointError, match="cannot be resumed from"):
        select_checkpoint(tmp_path, str(bad), TRANSFORMERS, RunLog(print))


def test_security_s24_the_verbs_end_with_3_and_say_what_is_named(tmp_path: Path) -> None:
    """An index that leads out of its checkpoint is listed, verified, inspected, compared and exported."""
    good, bad = (commit_checkpoint(tmp_path, step, SHARDED) for step in (7, 8))
    with_intent(bad, INDEX, index("../evil.safetensors"))
    assert "'../evil.safetensors'" in holdfast("list", tmp_path).stdout
    for verb in (["verify", bad], ["inspect", bad], ["diff", bad, good], ["export", bad, tmp_path / "plain"]):
        ended = holdfast(*map(str, verb))
        assert ended.returncode == 3 and "'../evil.safetensors'" in ended.stdout + ended.stderr, ended
    assert not (tmp_path / "plain").exists()


def test_an_index_in_a_folder_names_files_beside_it_and_one_without_weights_names_none(tmp_path: Path) -> None:
    beside = json.dumps({"weight_map": {"w": "a.safetensors"}}).encode()
    files = {"part/a.safetensors": b"weights", "part/x.index.json": beside, "other.index.json": b'["of something"]'}
    path = commit_checkpoint(tmp_path, 7, {**SHARDED, **files})
    assert verify(path).good
    with_intent(path, "x.index.json", beside)
    assert verify(path).problems == (
        "x.index.json: names 'a.safetensors', which is no file of the checkpoint beside it",
    )


def test_an_index_that_has_changed_by_itself_is_named_as_changed(tmp_path: Path) -> None:
    path = commit_checkpoint(tmp_path, 7, SHARDED)
    (path / INDEX).write_bytes(SHARDED[INDEX].replace(b"model-00001", b"model-00009"))
    assert verify(path).problems == (f"{INDEX}: its bytes have changed since it was written",)


@pytest.mark.parametrize("tag", ["../global_step4", "/evil", "global_step5", ""])
def test_security_s24_deepspeeds_file_that_names_a_folder_names_one_of_the_checkpoint(tmp_path: Path, tag: str) -> None:
    """DeepSpeed's file `latest`, whose folder is unpickled."""
    content = {**RESUMABLE, "latest": b"global_step4", "global_step4/states.pt": b"states"}
    path = commit_checkpoint(tmp_path, 7, content)
    assert verify(path).good
    with_intent(path, "latest", tag.encode())
    assert verify(path, full=False).problems == (f"latest: names {tag!r}, which is no folder of the checkpoint",)


STATES: dict[str, tuple[bytes, str]] = {
    "a directory": (b'{"best_model_checkpoint": "/data/models/evil"}', "names '/data/models/evil' as the best, which"),
    "a later one": (b'{"best_model_checkpoint": "out/checkpoint-8"}', "names checkpoint-8 as the best, and is of step"),
    "a number": (b'{"best_model_checkpoint": 7}', "names 7 as the best, which is no checkpoint of a run"),
    "too late": (b'{"best_model_checkpoint": "checkpoint-1000000000000000"}', "names 'checkpoint-10000000"),
    "a list": (b"[]", "is no JSON object"),
    "deep": (b'{"a":' * 100_000, "is not valid JSON: it is nested too deep"),
    "UTF-16": ("{}".encode("utf-16"), "is not valid JSON: "),
    "NUL": (b"\0" * 10, "is not valid JSON: "),
}


@pytest.mark.parametrize("kind", STATES)
def test_security_s24_a_trainers_state_that_names_no_checkpoint_as_the_best_is_damage(
    tmp_path: Path, kind: str
) -> None:
    """A trainer_state.json that names something else as the best, or is none; the manifest was made to fit it."""
    data, problem = STATES[kind]
    path = commit_checkpoint(tmp_path, 7)
    with_intent(path, "trainer_state.json", data)
    (said,) = verify(path).problems
    assert said.startswith(f"trainer_state.json: {problem}")
    with pytest.raises(DamagedCheckpointError, match=r"trainer_state\.json: "):
        select_checkpoint(tmp_path, str(path), TRANSFORMERS, RunLog(print))
    ended = holdfast("export", path, tmp_path / "plain")
    assert ended.returncode == 3 and "trainer_state.json: " in ended.stderr


def test_the_best_of_a_run_that_was_moved_is_no_damage(tmp_path: Path) -> None:
    path = commit_checkpoint(tmp_path, 7)
    state = {"best_model_checkpoint": "/elsewhere/out/checkpoint-6", "log_history": [{"loss": float("nan")}]}
    with_intent(path, "trainer_state.json", json.dumps(state).encode())
    assert verify(path).good
