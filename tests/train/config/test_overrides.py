from pathlib import Path
from typing import Any

import pytest

from holdfast.train.config import overrides
from holdfast.train.config import yaml as config_yaml
from holdfast.train.config.yaml import Source

FILE = """\
learning_rate: 1
dynamic_checkpoint:
datasets:
  - path: a
    type: alpaca
  - path: b
special_tokens: {pad_token: x}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.chdir(tmp_path)
    Path("config.yml").write_text(FILE)
    return config_yaml.read(Path("config.yml"))


SET: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a key of the file": (["learning_rate=2"], {"learning_rate": 2}),
    "a key that is not in the file": (["seed=3"], {"seed": 3}),
    "the value is YAML": (
        ["a=2e-4", "b=2.0e-4", "c=yes", "d='yes'", "e=[x, 1]", "f={g: 1}"],
        {"a": "2e-4", "b": 2e-4, "c": True, "d": "yes", "e": ["x", 1], "f": {"g": 1}},
    ),
    "nothing is null": (["learning_rate="], {"learning_rate": None}),
    "the value may hold an equals sign": (["a=b=c"], {"a": "b=c"}),
    "into what is empty in the file": (
        ["dynamic_checkpoint.check_interval=10"],
        {"dynamic_checkpoint": {"check_interval": 10}},
    ),
    "into what is not there": (["a.b.c=1", "a.b.d=2"], {"a": {"b": {"c": 1, "d": 2}}}),
    "into a list": (
        ["datasets.1.type=alpaca"],
        {"datasets": [{"path": "a", "type": "alpaca"}, {"path": "b", "type": "alpaca"}]},
    ),
    "after the end of a list": (
        ["datasets.2.path=c"],
        {"datasets": [{"path": "a", "type": "alpaca"}, {"path": "b"}, {"path": "c"}]},
    ),
    "a new list": (["x.0.y=1", "x.1=z"], {"x": [{"y": 1}, "z"]}),
    "a whole list": (["datasets=[]"], {"datasets": []}),
    "the last of the same key": (["seed=1", "seed=2"], {"seed": 2}),
}


@pytest.mark.parametrize(("settings", "changed"), SET.values(), ids=SET)
def test_a_setting_goes_over_the_file(source: Source, settings: list[str], changed: dict[str, Any]) -> None:
    before = dict(source.values)
    overrides.apply(source, settings)
    assert source.problems == []
    assert source.values == before | changed


def test_a_value_that_was_set_is_located_at_its_setting(source: Source) -> None:
    overrides.apply(source, ["special_tokens={bos_token: y}", "datasets.2.path=c", "learning_rate=x"])
    assert source.message(("learning_rate",), "bad").text == "--set learning_rate: bad"
    for key in ("bos_token", "pad_token"):
        said = source.message(("special_tokens", key), "bad").text
        assert said == f"--set special_tokens: special_tokens.{key}: bad"
    assert source.message(("datasets", 2, "type"), "missing").text == "--set datasets.2.path: datasets.2.type: missing"
    assert source.message(("datasets", 1, "type"), "missing").text == "config.yml:6: datasets.1.type: missing"


REFUSED = {
    "learning_rate": "--set learning_rate: expected KEY=VALUE",
    "=1": "--set : expected KEY=VALUE",
    "a..b=1": "--set a..b: expected KEY=VALUE",
    ".a=1": "--set .a: expected KEY=VALUE",
    "a=[1": "--set a: not valid YAML: expected ',' or ']', but got the end",
    "a=b: c: d": "--set a: not valid YAML: mapping values are not allowed here",
    "a={b: 1, b: 2}": "--set a: a.b: duplicate key",
    "a=!!python/none": "--set a: YAML's 'python/none' is not used here; text is written in quotes",
    "a=\ud800": "--set a: not valid YAML: the character U+D800",
    "learning_rate.x=1": "--set learning_rate.x: learning_rate is 1, which holds nothing further",
    "datasets.3.path=1": "--set datasets.3.path: datasets is a list; '3' is not an index from 0 to 2",
    "datasets.-1.path=1": "--set datasets.-1.path: datasets is a list; '-1' is not an index from 0 to 2",
    "datasets.path=1": "--set datasets.path: datasets is a list; 'path' is not an index from 0 to 2",
    "a\nb": "--set 'a\\nb': expected KEY=VALUE",
}


@pytest.mark.parametrize(("setting", "problem"), REFUSED.items())
def test_a_setting_that_cannot_be_used_is_named_and_the_next_is_still_read(
    source: Source, setting: str, problem: str
) -> None:
    overrides.apply(source, [setting, "seed=3"])
    assert [line.text for line in source.problems] == [problem]
    assert source.values["seed"] == 3
