import inspect
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from holdfast.errors import ConfigError
from holdfast.loop.checkpointer import Checkpointer
from holdfast.settings import DEFAULTS, DynamicCheckpoint, Settings, SettingsKwargs, validated
from holdfast.train.config.fields import TrainConfig


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
    taken = DynamicCheckpoint(**settings).model_dump()
    assert {key: taken[key] for key in settings} == settings


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


def test_the_keyword_arguments_are_the_settings_as_a_caller_may_write_them() -> None:
    may_be_text = dict.fromkeys(("staging_memory", "save_rate_limit"), int | str | None)
    types = get_type_hints(Settings) | may_be_text | {"dynamic_checkpoint": Mapping[str, Any] | None}
    assert get_type_hints(SettingsKwargs) == {name: types[name] for name in Settings.model_fields}


def test_a_checkpointer_lists_each_with_its_type_and_default() -> None:
    types = get_type_hints(Checkpointer.__init__)
    defaults = {name: part.default for name, part in inspect.signature(Checkpointer).parameters.items()}
    for name, kind in get_type_hints(SettingsKwargs).items():
        assert types[name] == kind, name
        assert defaults[name] == (None if name == "dynamic_checkpoint" else getattr(DEFAULTS, name)), name
    assert validated() == DEFAULTS


def test_a_configuration_inherits_each_and_declares_none_again() -> None:
    again = set(Settings.model_fields) & inspect.get_annotations(TrainConfig).keys()
    assert again == {"dynamic_checkpoint"}, "the trigger file alone has another default in a YAML: off"
    assert issubclass(TrainConfig, Settings)


def test_a_checkpointer_points_to_their_description_and_names_each() -> None:
    assert Checkpointer.__doc__ is not None and "holdfast.settings.Settings" in Checkpointer.__doc__
    for name in Settings.model_fields:
        assert name in Checkpointer.__doc__


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("save_minutes", 0, "must be greater than 0, found 0"),
        ("save_rate_limit", 0, "must be at least 1, found 0"),
        ("staging_memory", "much", "expected a whole number, found 'much'"),
        ("save_io_priority", "high", "expected one of normal, low, idle, found 'high'"),
        ("mirror", "", "must not be empty"),
        ("mirror_keep", 0, "must be at least 1, found 0"),
        ("mirror_region", 1, "expected text, found 1 (in quotes it would be text)"),
        ("save_minuts", 5, "unknown key, did you mean 'save_minutes'?"),
    ],
)
def test_a_setting_that_is_wrong_is_named(name: str, value: Any, said: str) -> None:
    arguments: Any = {name: value}
    with pytest.raises(ConfigError, match=f"^{name}: {re.escape(said)}") as raised:
        validated(**arguments)
    assert raised.value.hint == "docs/configuration.md describes each setting"


def test_a_setting_in_a_block_is_named_with_the_block() -> None:
    with pytest.raises(ConfigError) as raised:
        validated(dynamic_checkpoint={"enabled": True, "chek_interval": 5, "keep": 0})
    assert sorted(raised.value.problems) == [
        "dynamic_checkpoint.chek_interval: unknown key, did you mean 'check_interval'?",
        "dynamic_checkpoint.keep: must be at least 1, found 0",
    ]


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("512 MiB", 512 * 2**20), ("1.5k", 1500), ("7", 7), (" 3 tib ", 3 * 2**40)]
)
def test_a_size_may_be_text(text: str, size: int) -> None:
    assert validated(staging_memory=text, save_rate_limit=text) == Settings(staging_memory=size, save_rate_limit=size)
