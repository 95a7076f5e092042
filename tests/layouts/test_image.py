import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.layouts.image import decode_json, json_image


def nested(levels: int) -> Any:
    content: Any = {}
    for _ in range(levels - 1):
        content = {"a": content} if levels % 2 else [content]
    return content


@pytest.mark.parametrize("levels", [199, 200])
def test_what_is_written_is_read_to_the_last_level(levels: int) -> None:
    (data,) = json_image("model.json", nested(levels)).pieces
    assert isinstance(data, bytes) and decode_json(data, Path("model.json")) == nested(levels)


def test_security_s27_json_that_is_too_deep_is_neither_written_nor_read() -> None:
    """JSON of 201 levels, of 800, and of more than Python reads."""
    with pytest.raises(UnsupportedError, match=r"^model\.json would be nested in more than 200 levels"):
        json_image("model.json", nested(201))
    for text in (json.dumps(nested(201)), json.dumps(nested(800)), "[" * 100_000):
        with pytest.raises(CheckpointError, match=r"^model\.json cannot be read: it is nested"):
            decode_json(text.encode(), Path("model.json"))


@pytest.mark.parametrize("text", ["5", '"text"', "null"])
def test_json_that_holds_nothing_is_not_deep(text: str) -> None:
    assert decode_json(text.encode(), Path("model.json")) == json.loads(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.json cannot be read: "):
        decode_json("{}".encode(encoding), Path("model.json"))
