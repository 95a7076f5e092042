import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.train.config import yaml as config_yaml
from holdfast.train.config.yaml import Source


def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> Source:
    monkeypatch.chdir(tmp_path)
    Path("config.yml").write_bytes(text.encode() if isinstance(text, str) else text)
    return config_yaml.read(Path("config.yml"))


def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, monkeypatch, text)
    return caught.value.problems


READ_LIKE_THE_SAFE_LOADER = {
    "yes and no are booleans": "a: yes\nb: no\nc: on\nd: 'yes'\n",
    "a number needs a dot before its exponent": "a: 2e-4\nb: 2.0e-4\nc: 1_000\nd: 0x10\ne: 010\nf: 1:30\n",
    "nothing is null": "a:\nb: ~\nc: null\nd: ''\n",
    "a date is a date": "a: 2024-01-31\nb: 2024-01-31 10:00:00\n",
    "flow style": "{a: [1, 2, {b: c}], d: {}}\n",
    "block text": "a: |\n  one\n  two\nb: >\n  one\n  two\n",
    "an alias": "a: &x [1, 2]\nb: *x\nc: [*x, *x]\n",
    "a merge": "a: &x {p: 1, q: 2}\nb:\n  q: 3\n  <<: *x\n",
    "a merge of several, of which the first wins": "a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc: {<<: [*x, *y]}\n",
    "a merge of what merges": "a: &x {p: 1}\nb: &y {<<: *x, q: 2}\nc: {<<: *y, r: 3}\n",
    "a quoted merge key is a key": "'<<': 1\n",
    "a tag that says what is there": "a: !!str 1\nb: !!float 1\n",
    "a byte order mark": "\ufeffa: 1\n",
    "a document's start and end": "%YAML 1.1\n---\na: 1\n...\n",
}


@pytest.mark.parametrize("text", READ_LIKE_THE_SAFE_LOADER.values(), ids=READ_LIKE_THE_SAFE_LOADER)
def test_the_values_are_those_of_the_safe_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    source = read(tmp_path, monkeypatch, text)
    assert source.values == yaml.safe_load(text)
    assert source.problems == []


def test_each_value_has_the_line_of_its_key_or_of_itself_in_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read(
        tmp_path,
        monkeypatch,
        "# a comment\nbase: &base\n  type: alpaca\ndatasets:\n  - path: a\n    <<: *base\n  -\n    path:\n      b\n",
    )
    assert source.places == {
        (): 2,
        ("base",): 2,
        ("base", "type"): 3,
        ("datasets",): 4,
        ("datasets", 0): 5,
        ("datasets", 0, "path"): 5,
        ("datasets", 0, "type"): 3,
        ("datasets", 1): 8,
        ("datasets", 1, "path"): 8,
    }


def test_what_is_missing_is_located_at_what_should_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read(tmp_path, monkeypatch, "\ndatasets:\n  - path: a\n")
    assert source.message(("datasets", 0, "type"), "missing").text == "config.yml:3: datasets.0.type: missing"
    assert source.message(("seed",), "missing").text == "config.yml:2: seed: missing"


GATHERED = {
    "a: 1\nb: 2\na: 3\n": ["config.yml:3: a: duplicate key, first given in line 1"],
    "a: 1\na: 2\na: 3\n": [
        "config.yml:2: a: duplicate key, first given in line 1",
        "config.yml:3: a: duplicate key, first given in line 2",
    ],
    "x:\n  - a: 1\n    'a': 2\n": ["config.yml:3: x.0.a: duplicate key, first given in line 2"],
    "{a: 1, a: 2}\n": ["config.yml:1: a: duplicate key, first given in line 1"],
    "a: 1\n1: 2\n": ["config.yml:2: expected a key that is text, found 1 (in quotes it would be text)"],
    "on: 2\n": ["config.yml:1: expected a key that is text, found on (in quotes it would be text)"],
    "? [a]\n: 2\n": ["config.yml:1: expected a key that is text, found a list, or keys and values"],
    "a:\n  ?\n  : 1\n": ["config.yml:2: a: expected a key that is text, found nothing (in quotes it would be text)"],
    "a: !!python/object/apply:os.system [ls]\n": [
        "config.yml:1: a: YAML's 'python/object/apply:os.system' is not used here; text is written in quotes"
    ],
    "a: !mine x\n": ["config.yml:1: a: YAML's '!mine' is not used here; text is written in quotes"],
    "a: !!binary aGk=\n": ["config.yml:1: a: YAML's 'binary' is not used here; text is written in quotes"],
    "a: =\n": ["config.yml:1: a: YAML's 'value' is not used here; text is written in quotes"],
    "a: 2024-99-99\n": ["config.yml:1: a: '2024-99-99' cannot be read; text is written in quotes"],
    "a: !!int x\n": ["config.yml:1: a: 'x' cannot be read; text is written in quotes"],
    "a: !!bool x\n": ["config.yml:1: a: 'x' cannot be read; text is written in quotes"],
    "a: !!timestamp x\n": ["config.yml:1: a: 'x' cannot be read; text is written in quotes"],
    "a: !!int ''\n": ["config.yml:1: a: '' cannot be read; text is written in quotes"],
    "a: 9223372036854775808\n": ["config.yml:1: a: a number this large is not used here"],
    'a: "x\\0"\n': ["config.yml:1: a: 'x\\x00' holds a character that text cannot hold"],
    'a: "\\ud800"\n': ["config.yml:1: a: '\\ud800' holds a character that text cannot hold"],
    "a: {<<: 3}\n": ["config.yml:1: a.<<: expected keys and values to merge in"],
}


@pytest.mark.parametrize(("text", "problems"), GATHERED.items())
def test_a_problem_with_one_value_is_gathered_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problems: list[str]
) -> None:
    assert [line.text for line in read(tmp_path, monkeypatch, text).problems] == problems


def test_the_last_of_duplicate_keys_holds_as_in_the_safe_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read(tmp_path, monkeypatch, "a: 1\na: 2\n")
    assert (source.values, source.places[("a",)]) == ({"a": 2}, 2)


def test_a_digit_string_longer_than_python_converts_is_a_problem_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = read(tmp_path, monkeypatch, f"a: {'1' * 5000}\n").problems
    assert line.text == f"config.yml:1: a: '{'1' * 55} ... cannot be read; text is written in quotes"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FATAL: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "config.yml:1: the file is empty"),
    "comments alone": ("# nothing\n\n", "config.yml:1: the file is empty"),
    "a list": (
        "\n- a\n",
        "config.yml:2: expected keys and values at the top level, such as 'base_model: ...'",
    ),
    "text": ("hello\n", "config.yml:1: expected keys and values at the top level, such as 'base_model: ...'"),
    "null": ("~\n", "config.yml:1: expected keys and values at the top level, such as 'base_model: ...'"),
    "a second colon": ("a: b: c\n", "config.yml:1: not valid YAML: mapping values are not allowed here"),
    "a tab": ("a:\n\tb: 1\n", "config.yml:2: not valid YAML: a tab, where YAML wants spaces"),
    "an open bracket": (
        "a: 1\nb: [1, 2\n",
        "config.yml:3: not valid YAML: expected ',' or ']', but got the end",
    ),
    "indentation": (
        "a:\n  b: 1\n c: 2\n",
        "config.yml:3: not valid YAML: expected <block end>, but found '<block mapping start>'",
    ),
    "an unknown alias": ("a: *b\n", "config.yml:1: not valid YAML: found undefined alias 'b'"),
    "an alias without end": (
        f"a: *{'b' * 5000}\n",
        f"config.yml:1: not valid YAML: found undefined alias '{'b' * 173} ...",
    ),
    "two documents": ("a: 1\n---\nb: 2\n", "config.yml:2: not valid YAML: but found another document"),
    "a control character": ("a: 1\nb: \x07\n", "config.yml:2: not valid YAML: the character U+0007"),
    "Latin-1": ("a: 1\nb: gr\xfcn\n".encode("latin-1"), "config.yml:2: not UTF-8 text"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "config.yml:1: not UTF-8 text"),
    "a binary file": (bytes(range(256)), "config.yml:2: not UTF-8 text"),
    "too deep": ("[" * 1000, "config.yml:1: not valid YAML: nested more than 40 levels deep"),
    "too deep in blocks": ("- " * 1000, "config.yml:1: not valid YAML: nested more than 40 levels deep"),
    "too large": ("#" * (256 * 1024 + 1), "config.yml: larger than 256 KiB, which no configuration is"),
    "an alias in itself": ("a: &a [1, *a]\n", "config.yml:1: a.1: an alias that contains itself"),
    "a merge of itself": ("a: &a {<<: *a}\n", "config.yml:1: a: an alias that contains itself"),
}


@pytest.mark.parametrize(("text", "problem"), FATAL.values(), ids=FATAL)
def test_what_cannot_be_read_on_is_the_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, problem: str
) -> None:
    assert refusal(tmp_path, monkeypatch, text) == [problem]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bomb", [BOMB, MERGE_BOMB], ids=["aliases", "merges"])
def test_aliases_that_multiply_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    (problem,) = refusal(tmp_path, monkeypatch, bomb)
    assert problem.endswith(": more than 100,000 values, aliases followed")
    assert len(problem) < 200


def test_the_name_is_the_path_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "none.yml"
    with pytest.raises(ConfigError) as caught:
        config_yaml.read(path)
    assert caught.value.problems == [f"{path}: no such file"]
    assert caught.value.exit_code == 2


def test_a_directory_is_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yml").mkdir()
    with pytest.raises(ConfigError) as caught:
        config_yaml.read(Path("config.yml"))
    assert caught.value.problems == ["config.yml: is a directory"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yml").touch(mode=0o000)
    with pytest.raises(ConfigError) as caught:
        config_yaml.read(Path("config.yml"))
    assert caught.value.problems == ["config.yml: permission denied"]


def test_a_path_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yml").touch()
    with pytest.raises(ConfigError) as caught:
        config_yaml.read(Path("config.yml/x"))
    assert caught.value.problems == ["config.yml/x: not a directory"]


def test_a_pipe_is_read_as_a_shell_gives_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a: 1\n",))
    writer.start()
    assert config_yaml.read(pipe).values == {"a": 1}
    writer.join()


def test_a_file_name_with_a_line_break_stays_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config_yaml.read(Path("a\nb.yml"))
    assert caught.value.problems == ["a b.yml: no such file"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=5), st.booleans())
def test_whatever_yaml_can_write_is_read_as_the_safe_loader_reads_it(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], flow: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yml"
    path.write_text(yaml.safe_dump(values, default_flow_style=flow, allow_unicode=False), encoding="utf-8")
    source = config_yaml.read(path)
    if not source.problems:
        assert source.values == values
    else:
        assert all("holds a character that text cannot hold" in line.text for line in source.problems)
