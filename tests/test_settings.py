from typing import Any

import pytest
from pydantic import ValidationError

from holdfast.settings import DynamicCheckpoint


def test_the_documented_defaults() -> None:
    assert DynamicCheckpoint().model_dump() == {
        "enabled": False,
        "check_interval": 100,
        "trigger_file_path": "axolotl_checkpoint.save",
        "keep": None,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"enabled": True, "check_interval": 0},
        {"check_interval": 10**9},
        {"trigger_file_path": "save-me.now"},
        {"keep": 1},
        {"keep": None},
    ],
    ids=str,
)
def test_what_is_valid_is_taken_as_it_is(settings: dict[str, Any]) -> None:
    found = DynamicCheckpoint(**settings).model_dump()
    assert {key: found[key] for key in settings} == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("check_interval", -1),
        ("check_interval", 1.5),
        ("check_interval", "often"),
        ("check_interval", None),
        ("keep", 0),
        ("keep", -1),
        ("enabled", "perhaps"),
        ("enabled", None),
        ("trigger_file", "save"),
        ("trigger_file_path", None),
        ("trigger_file_path", 7),
    ],
)
def test_what_is_not_valid_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        DynamicCheckpoint(**{key: value})
    (error,) = raised.value.errors()
    assert error["loc"] == (key,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../save",
        "/tmp/save",
        "a/b",
        "a\\b",
        ".hidden",
        "-rf",
        "with space",
        "line\nend",
        "nul\0",
        "x" * 101,
        "checkpoint-5",
        "superseded-x",
        "MANIFEST.json",
        "events.jsonl",
        ".holdfast",
    ],
)
def test_a_trigger_file_is_a_plain_name_that_nothing_of_ours_has(name: str) -> None:
    with pytest.raises(ValidationError, match="is not a file name that a trigger file may have"):
        DynamicCheckpoint(trigger_file_path=name)


def test_settings_do_not_change_while_training_runs() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DynamicCheckpoint().enabled = True
