import string
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.support import fuzzed
from holdfast.store import names

TOKEN = "0123456789abcdef" * 2
ALLOWED = string.ascii_letters + string.digits + "._-"
# What could be smuggled into a name: separators, dots, digits of other scripts, line ends, NUL.
TRICKY = st.text(st.sampled_from(ALLOWED + "/\n\0\u0663\u00b2\uff10 \\\udcff") | st.characters(), max_size=120)


@pytest.mark.parametrize("name", ["a", "0", "model.safetensors", "a..b", "A_-.", "x" * 100])
def test_a_component_is(name: str) -> None:
    assert names.is_component(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-a", "_a", "a/b", "a\0", "a\n", "a b", "a\u0663", "x" * 101, "a\\b"]
)
def test_no_component_is(name: str) -> None:
    assert not names.is_component(name)


@fuzzed
@given(TRICKY)
def test_a_component_is_1_to_100_of_the_allowed_characters_and_begins_with_a_letter_or_digit(name: str) -> None:
    rule = 1 <= len(name) <= 100 and set(name) <= set(ALLOWED) and name[0] not in "._-"
    assert names.is_component(name) == rule


@pytest.mark.parametrize(
    "path", ["a", "a/b", "a/b/c/d", "d/.metadata", "d/__0_12.distcp", "pytorch_model_fsdp_0/__3_0.distcp"]
)
def test_a_relative_path_is(path: str) -> None:
    assert names.is_relative_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "./a",
        "a/b/c/d/e",
        ".metadata",
        "__0_0.distcp",
        ".metadata/a",
        "d/__\u0663_0.distcp",
        "d/__0_0.distcp\n",
        "d/__1234567_0.distcp",
    ],
)
def test_no_relative_path_is(path: str) -> None:
    assert not names.is_relative_path(path)


@fuzzed
@given(st.one_of(TRICKY, st.lists(st.sampled_from(["a", "..", ".", "", ".metadata", "b.c"])).map("/".join)))
def test_a_relative_path_stays_inside_and_is_plain_ascii(path: str) -> None:
    if names.is_relative_path(path):
        pure = PurePosixPath(path)
        assert path.isascii() and path.isprintable()
        assert not pure.is_absolute() and ".." not in pure.parts
        assert pure.as_posix() == path and len(pure.parts) <= 4


@fuzzed
@given(st.integers(0, 10**18 - 1))
def test_a_checkpoints_name_tells_its_step(step: int) -> None:
    assert names.step_of(names.checkpoint(step)) == step
    assert names.step_of(names.superseded(step, TOKEN)) == step


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-",
        "checkpoint-01",
        "checkpoint--1",
        "checkpoint-1\n",
        "checkpoint-1 ",
        "checkpoint-1.tmp",
        "checkpoint-1\u0663",
        "checkpoint-final",
        "checkpoint-" + "9" * 101,
        "Checkpoint-1",
        "superseded-1",
        "superseded-1-xyz",
        f"superseded-1-{TOKEN}0",
        names.staging(TOKEN, 1, TOKEN),
        names.trash(TOKEN),
    ],
)
def test_no_checkpoints_name_is(name: str) -> None:
    assert names.step_of(name) is None


@fuzzed
@given(TRICKY.map(lambda text: f"checkpoint-{text}"))
@example("checkpoint-1\u0663")
def test_two_names_never_tell_the_same_step(name: str) -> None:
    step = names.step_of(name)
    assert step is None or names.checkpoint(step) == name


def test_what_is_staged_or_doomed_is_taken_for_nothing_else() -> None:
    staging, trash = names.staging(TOKEN, 12, TOKEN), names.trash(TOKEN)
    assert names.is_staging(staging) and not names.is_trash(staging)
    assert names.is_trash(trash) and not names.is_staging(trash)
    assert not names.is_component(staging) and not names.is_component(trash)
    assert not names.is_staging(names.checkpoint(12)) and not names.is_trash(names.checkpoint(12))


@pytest.mark.parametrize("text", ["", TOKEN[1:], TOKEN + "0", TOKEN.upper(), TOKEN[1:] + "g", TOKEN[1:] + "\u0663"])
def test_no_token_is(text: str) -> None:
    assert names.is_token(TOKEN) and not names.is_token(text)


@pytest.mark.parametrize(
    "name", ["MANIFEST.json", "events.jsonl", "checkpoint-5", "checkpoint-x", "superseded-x", ".holdfast", ".tmp-a"]
)
def test_a_user_may_not_take_a_name_of_ours(name: str) -> None:
    assert names.is_reserved(name)


def test_a_user_may_take_any_other_name() -> None:
    assert not any(map(names.is_reserved, ["axolotl_checkpoint.save", "save.now", "checkpoints", "MANIFEST.txt"]))
