import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.support import fuzzed
from holdfast.run.request import (
    MOST_BYTES,
    MOST_LABEL_BYTES,
    Answer,
    MalformedError,
    Request,
    clean_label,
    decode_answer,
    decode_request,
)

REQUEST = Request("command", stop=True, label="before lr", why="holdfast save", pid=4711)
ANSWER = Answer(saved=True, path="/runs/checkpoint-7", step=7, bytes=12, seconds=0.25, digest="ab", answered_at=1.0)


def test_a_request_is_read_as_it_was_written() -> None:
    for request in (REQUEST, dataclasses.replace(REQUEST, slot="best")):
        assert decode_request(request.encode()) == request


def test_a_request_keeps_its_slot_where_it_has_one_and_never_the_boundary() -> None:
    asked = dataclasses.replace(REQUEST, slot="best", at=7)
    assert decode_request(asked.encode()) == dataclasses.replace(asked, at=None)
    assert asked.reason()["slot"] == "best" and "slot" not in REQUEST.reason() | json.loads(REQUEST.encode())


def test_an_answer_is_read_as_it_was_written_and_names_its_request() -> None:
    for answer in (ANSWER, Answer(saved=False, step=7, error="the disk is full", durable=False)):
        data = answer.encode(REQUEST.id)
        assert decode_answer(data) == answer and json.loads(data)["request"] == REQUEST.id


def test_an_answer_names_what_is_not_finite_only_where_there_is_something_and_says_it_in_its_line() -> None:
    assert b"finite" not in ANSWER.encode(REQUEST.id)
    bad = dataclasses.replace(ANSWER, not_finite=("model.a\n", "model.b"), finite="checkpoint-6")
    assert decode_answer(bad.encode(REQUEST.id)) == bad
    said = "trigger=schedule; it holds NaN or infinity in model.a and 1 more: it is kept, "
    assert bad.line("schedule").endswith(f"{said}and so is checkpoint-6, the newest without")
    assert dataclasses.replace(bad, finite="").line("schedule").endswith(f"{said}and there is none without")
    for wrong in ({"not_finite": "model.a", "finite": ""}, {"not_finite": [1], "finite": ""}, {"not_finite": ["a"]}):
        with pytest.raises(MalformedError):
            decode_answer(json.dumps({**json.loads(ANSWER.encode(REQUEST.id)), **wrong}).encode())


def test_an_answer_names_what_is_not_carried_only_where_there_is_something_and_says_it_in_its_line() -> None:
    assert b"not_carried" not in ANSWER.encode(REQUEST.id)
    lacking = dataclasses.replace(ANSWER, not_carried=("model.ema: it is\na view", "loss: it is sharded"))
    assert decode_answer(lacking.encode(REQUEST.id)) == lacking
    assert lacking.line("schedule").endswith("; it does not carry model.ema: it is a view, and 1 more")
    for wrong in ("loss", [1]):
        with pytest.raises(MalformedError):
            decode_answer(json.dumps({**json.loads(ANSWER.encode(REQUEST.id)), "not_carried": wrong}).encode())


def test_no_two_requests_share_an_identity() -> None:
    assert len({Request("signal").id for _ in range(100)}) == 100


def test_the_reason_in_a_manifest_names_who_asked_and_why() -> None:
    assert REQUEST.reason() == {
        "id": REQUEST.id,
        "door": "command",
        "why": "holdfast save",
        "label": "before lr",
        "asked_at": REQUEST.asked_at,
    }


def test_an_answers_line_can_be_grepped() -> None:
    assert ANSWER.line("schedule") == (
        "checkpoint saved step=7 path=/runs/checkpoint-7 bytes=12 seconds=0.250 trigger=schedule"
    )
    failed = Answer(saved=False, step=7, error="two\nlines \x1b[31m")
    assert failed.line("request:1") == "checkpoint failed step=7 trigger=request:1 error=two lines [31m"


LABELS: dict[bytes, str] = {
    b"": "",
    b" before  the\tnew\r\nlearning rate\n": "before the new learning rate",
    b"\x1b[31mred\x07\x00": "[31mred",
    "für später".encode(): "für später",
    b"half \xc3": "half �",
    "\u202eoverridden\u2028line".encode(): "overridden line",
    b"x" * 5000: "x" * 4096,
}


@pytest.mark.parametrize("data", LABELS, ids=repr)
def test_a_label_is(data: bytes) -> None:
    assert clean_label(data) == LABELS[data]


@fuzzed
@given(st.binary(max_size=5000) | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_a_label_is_one_line_of_printable_text_that_fits_and_stays_as_it_is(data: bytes) -> None:
    label = clean_label(data)
    assert label.isprintable() and label == label.strip() and "  " not in label
    assert len(label) <= MOST_LABEL_BYTES
    assert clean_label(label.encode()[:MOST_LABEL_BYTES]) == label or len(label.encode()) > MOST_LABEL_BYTES


def content(**changes: Any) -> bytes:
    fields = {**json.loads(REQUEST.encode()), **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"save please",
    "not UTF-8": b'{"label": "\xff"}',
    "a list": b"[]",
    "very deep": b"[" * 60_000,
    "a number of 5000 digits": b"9" * 5000,
    "no door": content(door=...),
    "an unknown door": content(door="window"),
    "a door that is a list": content(door=["command"]),
    "no identity": content(id=...),
    "an identity that is a path": content(id="../../../etc/passwd"),
    "an identity in capitals": content(id="A" * 32),
    "an identity that is a number": content(id=11111111111111111111111111111111),
    "stop in text": content(stop="false"),
    "stop as a number": content(stop=1),
    "a label that is a list": content(label=["x"]),
    "a process that is true": content(pid=True),
    "a time in text": content(asked_at="now"),
    "a time that is true": content(asked_at=True),
    "a time that is no number": content(asked_at=float("nan")),
    "a time without end": content(asked_at=float("inf")),
    "a time before time": content(asked_at=-1),
    "a time of 400 digits": content(asked_at=10**400),
    "a field too many": content(command="rm -rf /"),
    "a field too few": content(why=...),
    "a slot that is a path": content(slot="../best"),
    "a slot without a name": content(slot=""),
    "a slot that is a number": content(slot=1),
    "a boundary": content(at=3),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_no_request_is(kind: str) -> None:
    with pytest.raises(MalformedError):
        decode_request(MALFORMED[kind])


def test_what_a_request_says_is_cleaned_when_it_is_read() -> None:
    read = decode_request(content(label="a\nb\x1b[2J", why="c\td \ud800"))
    assert (read.label, read.why) == ("a b [2J", "c d ?")


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("0" * 32)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=4
)
REQUEST_FIELDS = [field.name for field in dataclasses.fields(Request)]
ANSWER_FIELDS = [field.name for field in dataclasses.fields(Answer)]


@fuzzed
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_raise_nothing_but_a_malformed_error(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with suppress(MalformedError):
            decode(data)


@fuzzed
@given(st.dictionaries(st.sampled_from(REQUEST_FIELDS), JSON, max_size=3))
@example({"label": "\ud800"})
def test_any_field_of_a_request_raises_nothing_but_a_malformed_error(changes: dict[str, Any]) -> None:
    with suppress(MalformedError):
        read = decode_request(content(**changes))
        assert decode_request(read.encode()) == read
        assert sorted([read, REQUEST], key=lambda request: request.asked_at)
        assert read.label.isprintable() and read.why.isprintable()


@fuzzed
@given(st.dictionaries(st.sampled_from(ANSWER_FIELDS), JSON, max_size=3))
def test_any_field_of_an_answer_raises_nothing_but_a_malformed_error(changes: dict[str, Any]) -> None:
    data = json.dumps({**json.loads(ANSWER.encode("0" * 32)), **changes}).encode()
    with suppress(MalformedError):
        assert "\n" not in decode_answer(data).line("schedule")


@pytest.mark.parametrize(
    "error", ["x" * 200_000, "\U0001f4a5" * 200_000, "\n" * 200_000], ids=["x", "wide", "line ends"]
)
def test_an_answer_can_be_read_however_much_a_library_had_to_say(error: str) -> None:
    data = Answer(saved=False, error=error, path="/" + "é" * 2000).encode(REQUEST.id)
    assert len(data) <= MOST_BYTES
    assert error.startswith(decode_answer(data).error[:100].rstrip("."))
