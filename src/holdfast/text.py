"""Text that anybody may have written, as it is shown: escaped, and never at length.

Names, labels, hosts, errors that quote a file: whatever comes from a disk passes here before a terminal or a log has
it. Standard library alone: the commit core stands on this.
"""

import reprlib
from typing import Any, TextIO

MOST_SHOWN = 1000
"""The characters that are shown of one text."""

MOST_LINE = 16_000
"""The characters of a line, which may hold several."""

MOST_BYTES = 4096
"""The bytes of one text in JSON: those that a label may have."""

_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = 200  # what a path may have, and nobody reads more


def shown(text: str, most: int = MOST_SHOWN) -> str:
    """Returns text as one line that moves no cursor: what cannot be printed is escaped, and what is long is cut.

    That is every control character, line breaks too, what turns the direction of writing or has no width, and halves
    of characters.

    Args:
        text: The text.
        most: The characters that it may have.
    """
    if len(text) <= most and text.isprintable():
        return text
    escaped = "".join(character if character.isprintable() else _escaped(character) for character in text[:most])
    if len(text) <= most and len(escaped) <= most:
        return escaped
    return f"{escaped[: most - 40]}... ({len(text):,} characters)"


def lines_shown(text: str) -> str:
    """Returns text of several lines, each as `shown` has it."""
    return "\n".join(shown(line, MOST_LINE) for line in text.split("\n"))


def one_line(text: str) -> str:
    """Returns text of several lines as one, as `shown` has it."""
    return shown(" ".join(text.split()))


def encodable(text: str, stream: TextIO | None) -> str:
    """Returns text as a stream can encode it: not every terminal has every letter, and none may end what is printed."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # a program may have put another object in its place
    return text.encode(encoding, "backslashreplace").decode(encoding)


def quoted(value: Any) -> str:
    """Quotes a value that anybody may have written, for a message: escaped, and not at length."""
    return _BRIEFLY.repr(value)


def shortened(text: str) -> str:
    """Returns text of at most 4 KiB, for JSON, which escapes by itself."""
    data = text.encode(errors="surrogatepass")
    if len(data) <= MOST_BYTES:
        return text
    return f"{data[: MOST_BYTES - 40].decode(errors='ignore')}... ({len(text):,} characters)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
