"""Secrets among settings: told by their names, and blank in whatever is written.

A name is taken in its words, however it separates and capitalizes them: `hub_token`, `accessKey`, `WANDB-API-KEY`.
Texts and bytes of such a name are blank, and all that are inside of it; numbers and truth values stay, for no secret is
one.
"""

import functools
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ANYWHERE = re.compile(
    r"token|secret|passw|passphrase|passcode|credential|webhook|bearer|authori[sz]ation|oauth|cookie"
    r"|(api|access|auth|private|signing|encryption|account|license|licence|ssh|service|shared|deploy|master)keys?"
    r"|auth$"
)
_WORDS = frozenset({"key", "keys", "auth", "pwd", "pat", "jwt", "dsn"})

# Tokens that are pieces of text, and no secrets: what a tokenizer, a model and their settings have under such names.
_KINDS = (
    "pad|eos|bos|unk|sep|cls|mask|special|image|img|video|audio|speech|vision|text|prefix|suffix|middle|start|end|begin|stop"
    "|boi|eoi|boa|eoa|boc|eoc|eot|eom|bot|fake|think|thinking|tool|role|user|assistant|system|bad|added|forced|suppress"
    "|new|max|min|num|total|input|output|prompt|completion|response|generated|virtual|trainable|frozen|invocation|ignore"
    "|cpt|average|per"
)
_PIECES = re.compile(
    rf"(?<![a-z0-9])({_KINDS})_?tokens?(?![a-z0-9])"
    r"|(?<![a-z0-9])tokens?_(type|types|ids?|indices|index|dim|count|length|healing|dropout|level)(?![a-z0-9])"
    r"|tokeni[sz](er|ers|ation|ed|e)"
)
# Keys of tables and dictionaries, which name a column or an entry.
_COLUMNS = re.compile(
    r"(?<![a-z0-9])(primary|foreign|sort|group|column|row|label|text|image|message|messages|prompt|dataset|cache|dict"
    r"|partition|join|index|metric|state)_keys?(?![a-z0-9])"
)


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Tells by its words whether a setting of this name is taken for a secret."""
    words = "_".join(_WORD.findall(name)).lower()
    words = _COLUMNS.sub("_", _PIECES.sub("_", words))
    parts = words.split("_")
    return bool(_ANYWHERE.search("".join(parts))) or not _WORDS.isdisjoint(parts) or parts[-1] == "pass"


def blanked(value: Any, *, secret: bool = False) -> Any:
    """Returns plain content without its secrets: each is None. What has none stays, whatever it is.

    Args:
        value: Dictionaries, lists, tuples and what they hold.
        secret: True where it is what a secret's name names.
    """
    if is_blank_where_secret(value):
        return None if secret else value
    if isinstance(value, Mapping):
        return {key: blanked(inner, secret=secret or is_secret(str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [blanked(inner, secret=secret) for inner in value]
    return value


def filled(recorded: Any, live: Any, *, secret: bool = False) -> Any:
    """Returns recorded content with the secrets of live content, where that has them, in the place of the blank ones.

    Args:
        recorded: What `blanked` has returned.
        live: What it was made of, as it is now.
        secret: True where it is what a secret's name names.
    """
    if recorded is None and secret:
        return live
    if isinstance(recorded, Mapping) and isinstance(live, Mapping):
        return {
            key: filled(inner, live.get(key), secret=secret or is_secret(str(key))) for key, inner in recorded.items()
        }
    if isinstance(recorded, list) and isinstance(live, list | tuple) and len(recorded) == len(live):
        return [filled(inner, other, secret=secret) for inner, other in zip(recorded, live, strict=True)]
    return recorded


def is_blank_where_secret(value: Any) -> bool:
    """Tells whether a value is text or bytes, which a secret is; a member of an enumeration is a choice, and none."""
    return isinstance(value, str | bytes | bytearray | memoryview) and not isinstance(value, Enum)
