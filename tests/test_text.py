"""What is shown of text that anybody may have written."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import fuzzed
from holdfast import text as shown_text
from holdfast.text import MOST_BYTES, MOST_SHOWN, encodable, lines_shown, one_line, quoted, shortened, shown


@fuzzed
@given(st.text() | st.text(min_size=200).map(lambda text: text * 10))
def test_what_is_shown_stays_on_its_line_and_can_be_printed_anywhere(text: str) -> None:
    line = shown(text)
    line.encode()
    assert line.isprintable() and len(line) <= MOST_SHOWN
    assert line == text or not text.isprintable() or len(text) > MOST_SHOWN
    assert shown(line) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gr\u00f6\u00dfer \u2713 [red] \\", "gr\u00f6\u00dfer \u2713 [red] \\"),
        ("\x1b[2J\r\n\t\x00\x7f", r"\x1b[2J\r\n\t\x00\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),  # C1: a control sequence of one character
        ("txt\u202egnp.exe\u2066\u200f", r"txt\u202egnp.exe\u2066\u200f"),  # the direction of writing
        ("a\u200b\u200c\u200d\u2060\ufeff\u00adb", r"a\u200b\u200c\u200d\u2060\ufeff\xadb"),  # without width
        ("\u2028\u2029\u00a0", r"\u2028\u2029\xa0"),
        ("\udc80\U000e0041", r"\udc80\U000e0041"),
    ],
)
def test_what_moves_a_cursor_or_hides_is_escaped_and_nothing_else(text: str, line: str) -> None:
    assert shown(text) == line


def test_every_character_that_is_no_mark_on_paper_is_escaped() -> None:
    hidden = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code))[0] == "C"]
    assert not any(character in shown(character) for character in hidden)


def test_what_is_long_is_cut_and_says_how_long_it_was() -> None:
    line = shown("x" * 100_000)
    assert len(line) < MOST_SHOWN and line.startswith("xxx") and line.endswith("... (100,000 characters)")
    assert shown("\x1b" * MOST_SHOWN).endswith("... (1,000 characters)")
    assert shown("x" * MOST_SHOWN) == "x" * MOST_SHOWN


def test_lines_stay_lines_where_they_are_meant() -> None:
    assert lines_shown("one\x1b\n  two") == "one\\x1b\n  two"
    assert len(lines_shown("x" * 100_000)) <= shown_text.MOST_LINE
    assert one_line(" one\n  two\x1b ") == "one two\\x1b"


def test_a_terminal_that_has_not_every_letter_gets_an_escape_for_it() -> None:
    for encoding, line in (("ascii", r"gr\xf6\xdfer \u2713"), ("latin-1", "gr\u00f6\u00dfer \\u2713")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        print(encodable("gr\u00f6\u00dfer \u2713", stream), file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding) == f"{line}\n"


@fuzzed
@given(st.text() | st.text(min_size=300) | st.lists(st.lists(st.text())) | st.integers() | st.floats() | st.none())
def test_what_is_quoted_is_short_and_can_be_printed_on_any_line(value: object) -> None:
    line = quoted(value)
    assert len(line) < 3000 and line.isprintable()


def test_what_is_quoted_is_whole_where_a_path_may_be_that_long() -> None:
    assert quoted("x" * 198) == repr("x" * 198)
    assert len(quoted("x" * 100_000)) <= 200


@pytest.mark.parametrize("character", ["x", "\u00f6", "\u2713", "\U0001f600", "\udc80"])
def test_in_json_a_text_has_four_kilobytes_and_one_of_them_is_whole(character: str) -> None:
    most = MOST_BYTES // len(character.encode(errors="surrogatepass"))
    assert shortened(character * most) == character * most
    short = shortened(character * (most + 1))
    assert len(short.encode(errors="surrogatepass")) <= MOST_BYTES
    assert short.endswith(f"... ({most + 1:,} characters)") and short[0] in (character, ".")
