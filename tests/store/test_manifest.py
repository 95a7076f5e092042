import hashlib
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import fuzzed, manifest
from holdfast.store.digest import BLOCK_BYTES
from holdfast.store.manifest import File, Manifest, ManifestError, decode

FILES = (File("a", 1, "0" * 32), File("folder/b.bin", 0, "f" * 32))
SHARDS = tuple(File(f"m-{rank:05}-of-00002.safetensors", 9, "0" * 32) for rank in range(2))
CUT: dict[str, Any] = {
    "w": {
        "shape": [7, 3],
        "pieces": [
            {"file": SHARDS[0].path, "offset": [0, 0], "lengths": [4, 3]},
            {"file": SHARDS[1].path, "offset": [4, 0], "lengths": [3, 3]},
        ],
    },
    "t": {"shape": [], "pieces": [{"file": SHARDS[0].path, "offset": [], "lengths": []}]},
    "none": {"shape": [0, 4], "pieces": [{"file": SHARDS[0].path, "offset": [0, 0], "lengths": [0, 2]}]},
}
WHOLE = manifest(files=FILES, parent="b" * 32, boundary={"face": "logged", "loss": (0.1).hex()})


def sealed(content: Any) -> bytes:
    """The bytes of a manifest file whose digest is right, whatever its content."""
    body = json.dumps(content, indent=2).removesuffix("\n}").encode() + b",\n"
    return body + f'  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def resealed(data: bytes) -> bytes:
    body = data[: data.index(b'  "sha256"')]
    return body + f'  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def changed(**changes: Any) -> bytes:
    content = {**json.loads(WHOLE.encode()), **changes}
    del content["sha256"]
    return sealed({key: value for key, value in content.items() if value is not ...})


NAMES = st.lists(st.sampled_from(["a", "B.c", "0_-", "model.safetensors"]), min_size=1, max_size=4).map("/".join)
TOKENS = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def files_of(digests: list[str]) -> st.SearchStrategy[File]:
    """Files that are long enough for so many blocks, and no longer."""
    least = (len(digests) - 1) * BLOCK_BYTES + 1 if len(digests) > 1 else 0
    return st.builds(File, NAMES, st.integers(least, len(digests) * BLOCK_BYTES), st.just("".join(digests)))


MANIFESTS = st.builds(
    Manifest,
    layout=TEXT,
    run=TOKENS,
    attempt=TOKENS,
    parent=st.none() | TOKENS,
    sequence=st.integers(1, 10**15 - 1),
    step=st.integers(0, 10**15 - 1),
    world_size=st.integers(1, 2**63 - 1),
    created=TEXT,
    reasons=st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3).map(tuple),
    boundary=st.dictionaries(TEXT, JSON, max_size=3),
    versions=st.dictionaries(TEXT, TEXT, max_size=3),
    files=st.lists(
        st.lists(TOKENS, min_size=1, max_size=4).flatmap(files_of),
        min_size=1,
        max_size=4,
        unique_by=lambda file: file.path.casefold(),
    )
    .filter(lambda files: all(file.path != "MANIFEST.json" for file in files))
    .map(tuple),
    not_finite=st.sets(TEXT, max_size=20).map(lambda found: tuple(sorted(found))),
)


@fuzzed
@given(MANIFESTS)
def test_what_is_encoded_is_decoded_to_the_same(one: Manifest) -> None:
    assert decode(one.encode()) == one


def test_pieces_of_tensors_are_decoded_to_the_same_and_have_a_line_for_each_tensor() -> None:
    one = manifest(files=SHARDS, tensors={"m": CUT, "n": {"n\n": CUT["t"]}, "empty": {}})
    data = one.encode()
    assert decode(data) == one and b"tensors" not in WHOLE.encode()
    assert data.count(b'"shape"') == sum(b'"shape"' in line for line in data.splitlines()) == 4


def test_tensors_that_are_not_finite_are_named_only_where_there_are_some() -> None:
    one = manifest(files=FILES, not_finite=("model.a", "model.b"))
    assert decode(one.encode()) == one and b"not_finite" not in WHOLE.encode()


@pytest.mark.parametrize(
    "named", [None, [], {}, "model.a", [1], [None], ["b", "a"], ["a", "a"], [f"{n:02}" for n in range(21)], [["a"]]]
)
def test_what_is_said_of_them_is_checked(named: Any) -> None:
    with pytest.raises(ManifestError, match="the manifest's 'not_finite'"):
        decode(changed(not_finite=named))


def test_a_manifest_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.store.manifest.MOST_BYTES", len(WHOLE.encode()))
    assert WHOLE.encode()
    with pytest.raises(ManifestError, match=r"would have [0-9,]+ bytes, and one has at most"):
        manifest(files=SHARDS, tensors={"m": CUT}).encode()


def test_size_is_that_of_all_files() -> None:
    assert manifest(files=(File("a", 3, "0" * 32), File("b", 4, "0" * 32))).size == 7


def test_standard_tools_take_its_digest(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_bytes(WHOLE.encode())
    found = subprocess.run(
        "head -n -2 MANIFEST.json | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert found == WHOLE.sha256 == json.loads((tmp_path / "MANIFEST.json").read_text())["sha256"]


def test_a_manifest_that_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError):
        manifest(boundary={"loss": float("nan")}).encode()


def test_every_truncation_is_refused() -> None:
    data = WHOLE.encode()
    for length in range(len(data)):
        with pytest.raises(ManifestError, match="cut short"):
            decode(data[:length])


def test_every_flipped_bit_is_refused() -> None:
    data = WHOLE.encode()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(ManifestError):
                decode(bytes(flipped))


def test_what_follows_the_end_is_refused() -> None:
    for more in (b"\n", b" ", b"{}", b"\0"):
        with pytest.raises(ManifestError, match="cut short"):
            decode(WHOLE.encode() + more)


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "altered": (WHOLE.encode().replace(b'"step": 7', b'"step": 8'), "was altered"),
    "not JSON": (resealed(WHOLE.encode().replace(b'"step": 7', b'"step": seven')), "not valid JSON"),
    "not UTF-8": (resealed(WHOLE.encode().replace(b"logged", b"log\xff\xfe")), "not valid JSON"),
    "NaN": (resealed(WHOLE.encode().replace(b'"step": 7', b'"step": NaN')), "NaN is not a number"),
    "Infinity": (resealed(WHOLE.encode().replace(b'"step": 7', b'"step": -Infinity')), "-Infinity is not a number"),
    "a key twice": (resealed(WHOLE.encode().replace(b'"step": 7', b'"step": 7, "step": 7')), "a key appears twice"),
    "a number of 5000 digits": (resealed(WHOLE.encode().replace(b": 7", b": " + b"7" * 5000)), "not valid JSON"),
    "very deep": (resealed(WHOLE.encode().replace(b'"logged"', b"[" * 90_000 + b"]" * 90_000)), "not valid JSON"),
    "another format": (changed(format="zip"), "format is not"),
    "no format": (changed(format=...), "format is not"),
    "a future version": (changed(version=3), "of format version 3, and this Holdfast reads versions 1 and 2"),
    "version 2 that requires nothing": (changed(version=2), "'requires' is missing"),
    "requirements that are no words": (changed(version=2, requires=[1]), "'requires' is no sorted list"),
    "a requirement twice": (changed(version=2, requires=["a", "a"]), "'requires' is no sorted list"),
    "a requirement of the future": (changed(version=2, requires=["wings"]), "needs a newer Holdfast: it has 'wings'"),
    "settings that are a list": (changed(settings=[]), "'settings' is missing or of the wrong kind"),
    "no version": (changed(version=...), "of format version None"),
    "a version that only looks like 1": (changed(version=True), "of format version True"),
    "no layout": (changed(layout=...), "'layout' is missing"),
    "a run that is no identity": (changed(run="../../etc/passwd"), "'run' is not an identity"),
    "an attempt in capitals": (changed(attempt="A" * 32), "'attempt' is not an identity"),
    "a parent that is no identity": (changed(parent="x"), "'parent' is not an identity"),
    "a sequence of 0": (changed(sequence=0), "'sequence' is out of range"),
    "a sequence that there cannot be": (changed(sequence=10**15), "'sequence' is out of range"),
    "a step that there cannot be": (changed(step=10**15), "'step' is out of range"),
    "a negative step": (changed(step=-1), "'step' is out of range"),
    "a step that is true": (changed(step=True), "'step' is missing or of the wrong kind"),
    "a step with a fraction": (changed(step=7.0), "'step' is missing or of the wrong kind"),
    "a step in text": (changed(step="7"), "'step' is missing or of the wrong kind"),
    "no processes": (changed(world_size=0), "'world_size' is out of range"),
    "reasons that are text": (changed(reasons="me"), "'reasons' is missing or of the wrong kind"),
    "a reason that is text": (changed(reasons=["me"]), "'reasons' are of the wrong kind"),
    "a boundary that is a list": (changed(boundary=[]), "'boundary' is missing or of the wrong kind"),
    "versions that are text": (changed(versions="1"), "'versions' is missing or of the wrong kind"),
    "a version of torch that is a number": (changed(versions={"torch": 2}), "'versions' are of the wrong kind"),
    "a boundary of 60 levels": (
        resealed(WHOLE.encode().replace(b'"logged"', b"[" * 60 + b"]" * 60)),
        "nested more than 50 levels deep",
    ),
    "a version without an end": (changed(version="1" * 10_000), r"of format version '1{50,200}\.\.\.1+', and"),
    "no files": (changed(files=[]), "lists 0 files"),
    "files that are an object": (changed(files={}), "'files' is missing or of the wrong kind"),
    "a file that is text": (changed(files=["a"]), "something that is no file"),
    "a file with more to say": (
        changed(files=[{"path": "a", "size": 1, "xxh3_128": "0" * 32, "mode": 0o777}]),
        "something that is no file",
    ),
}


def one_file(path: Any = "a", size: Any = 1, digest: Any = "0" * 32) -> bytes:
    return changed(files=[{"path": path, "size": size, "xxh3_128": digest}])


for _path in (
    "",
    "/etc/passwd",
    "../a",
    "a/../../b",
    "a//b",
    "a\0b",
    "a\nb",
    ".hidden",
    "a/b/c/d/e",
    "MANIFEST.json",
    7,
):
    REFUSED[f"a file of the name {_path!r}"] = (one_file(path=_path), "a name that is not allowed")
for _size in (-1, 2**63, 1.0, True, "1", None):
    REFUSED[f"a file of the size {_size!r}"] = (one_file(size=_size), "gives a no size")
for _digest in ("", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n", 0, None):
    REFUSED[f"a file of the digest {_digest!r}"] = (one_file(digest=_digest), "does not give a a digest")
for _size, _digests in (
    (0, ""),
    (BLOCK_BYTES, "0" * 64),
    (BLOCK_BYTES + 1, "0" * 32),
    (BLOCK_BYTES + 1, "0" * 63),
    (BLOCK_BYTES + 1, "0" * 32 + "G" * 32),
    (BLOCK_BYTES + 1, ["0" * 32] * 2),
    (2 * BLOCK_BYTES, "0" * 96),
    (2**62, "0" * 64),
):
    REFUSED[f"a file of {_size} bytes with the digests {_digests!r}"] = (
        one_file(size=_size, digest=_digests),
        "does not give a a digest for each 4 MiB of it",
    )
for _twin in ("a", "A"):
    REFUSED[f"a file twice, as a and {_twin}"] = (
        changed(files=[{"path": path, "size": 1, "xxh3_128": "0" * 32} for path in ("a", _twin)]),
        "lists a file twice",
    )


def cut(**changes: Any) -> bytes:
    """A manifest that lies about one tensor, or about its first piece."""
    first = {**CUT["w"]["pieces"][0], **{key: value for key, value in changes.items() if key != "shape"}}
    told = {"shape": changes.get("shape", [7, 3]), "pieces": [first, *CUT["w"]["pieces"][1:]]}
    return pieces(told)


def pieces(told: Any) -> bytes:
    files = [{"path": file.path, "size": file.size, "xxh3_128": file.digests} for file in SHARDS]
    return changed(files=files, tensors={"m": {"w": told}})


def boxes(shape: list[int], *boxes: tuple[list[int], list[int]]) -> bytes:
    found = [{"file": SHARDS[0].path, "offset": offset, "lengths": lengths} for offset, lengths in boxes]
    return pieces({"shape": shape, "pieces": found})


_FILE = "which is no file of tensors that the manifest lists"
_PLACE = "has no place"
_FILL = "do not fill its shape"
REFUSED |= {
    "tensors that are a list": (changed(tensors=[]), "'tensors' are of the wrong kind"),
    "tensors that are null": (changed(tensors=None), "'tensors' are of the wrong kind"),
    "a part that is a list": (changed(tensors={"m": []}), "'tensors' are of the wrong kind"),
    "a tensor that is a list": (pieces([]), "wrong about 'w' of 'm': it is not described"),
    "a tensor without a shape": (pieces({"pieces": CUT["w"]["pieces"]}), "not described"),
    "a tensor with more to say": (pieces({**CUT["w"], "dtype": "F32"}), "not described"),
    "a tensor without pieces": (pieces({"shape": [7, 3], "pieces": []}), "has no pieces"),
    "pieces that are an object": (pieces({"shape": [7, 3], "pieces": {}}), "has no pieces"),
    "a piece that is text": (pieces({"shape": [7, 3], "pieces": ["a"]}), "a piece is not described"),
    "a piece with more to say": (cut(more=1), "a piece is not described"),
    "a piece in a file that is not listed": (cut(file="n.safetensors"), _FILE),
    "a piece outside": (cut(file="../m.safetensors"), _FILE),
    "a piece in a number": (cut(file=1), _FILE),
    "a shape of truths": (cut(shape=[True, 3]), "not described"),
    "a shape with a fraction": (cut(shape=[7.0, 3]), "not described"),
    "a negative shape": (cut(shape=[-7, 3]), "not described"),
    "a shape of too many dimensions": (cut(shape=[1] * 65), "not described"),
    "a shape of too many elements": (cut(shape=[2**40, 2**40]), "not described"),
    "an offset of another dimension": (cut(offset=[0]), _PLACE),
    "an offset below zero": (cut(offset=[-1, 0]), _PLACE),
    "lengths that are text": (cut(lengths="43"), _PLACE),
    "a piece that goes beyond": (cut(lengths=[8, 3]), "lies outside of it"),
    "a hole": (cut(lengths=[3, 3]), _FILL),
    "an overlap": (cut(lengths=[5, 3]), _FILL),
    "a hole before the first": (boxes([4], ([1], [3])), _FILL),
    "a piece twice": (boxes([4], ([0], [4]), ([0], [4])), _FILL),
    "a hole and an overlap": (boxes([4], ([0], [2]), ([1], [2])), _FILL),
    "a piece that is empty": (boxes([4], ([0], [4]), ([4], [0])), _FILL),
    "a corner missing": (boxes([2, 2], ([0, 0], [1, 1]), ([0, 1], [1, 1]), ([1, 0], [1, 1])), _FILL),
    "no grid": (boxes([2, 3], ([0, 0], [1, 2]), ([0, 2], [1, 1]), ([1, 0], [1, 1]), ([1, 1], [1, 2])), _FILL),
    "a scalar twice": (boxes([], ([], []), ([], [])), _FILL),
    "nothing, twice": (boxes([0], ([0], [0]), ([0], [0])), _FILL),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_security_s04_a_manifest_that_breaks_a_rule_is_refused_with_its_reason(kind: str) -> None:
    """Manifests with a good digest that break each rule of the format in turn."""
    data, message = REFUSED[kind]
    with pytest.raises(ManifestError, match=message):
        decode(data)


def test_what_a_later_version_may_add_within_version_1_does_not_matter() -> None:
    assert decode(changed(comment="new")) == WHOLE


def refuses_or_reads(data: bytes) -> None:
    with suppress(ManifestError):
        decode(data)


@fuzzed
@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_a_manifest_error(data: bytes) -> None:
    refuses_or_reads(data)
    refuses_or_reads(sealed({}).replace(b"{", data, 1))


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a" * 32, "a", 2**63, -1])
ANY_JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=4
)


@fuzzed
@given(st.dictionaries(st.sampled_from(sorted(json.loads(WHOLE.encode()))), ANY_JSON, max_size=4), ANY_JSON)
def test_any_json_raises_nothing_but_a_manifest_error(changes: dict[str, Any], whole: Any) -> None:
    refuses_or_reads(changed(**changes))
    refuses_or_reads(sealed(whole))


@fuzzed
@given(st.lists(st.fixed_dictionaries({"path": ODD | NAMES, "size": ODD, "xxh3_128": ODD | TOKENS}), max_size=3))
def test_any_list_of_files_raises_nothing_but_a_manifest_error(files: list[Any]) -> None:
    refuses_or_reads(changed(files=files))


BOXES = st.lists(st.integers(0, 3) | ODD, max_size=2)
PIECE = st.fixed_dictionaries(
    {"file": st.sampled_from([file.path for file in SHARDS]), "offset": BOXES, "lengths": BOXES}
)


@fuzzed
@given(st.fixed_dictionaries({"shape": BOXES, "pieces": st.lists(PIECE | ANY_JSON, max_size=3)}) | ANY_JSON)
def test_any_pieces_raise_nothing_but_a_manifest_error(told: Any) -> None:
    refuses_or_reads(pieces(told))


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)), max_size=5))
def test_pieces_that_are_read_fill_the_tensor_once(found: list[tuple[int, int, int, int]]) -> None:
    shape = [max((a + c for a, _, c, _ in found), default=1), max((b + d for _, b, _, d in found), default=1)]
    covered = [(a + i, b + j) for a, b, c, d in found for i in range(c) for j in range(d)]
    try:
        decode(boxes(shape, *(([a, b], [c, d]) for a, b, c, d in found)))
    except ManifestError:
        rows, columns = {a for a, *_ in found}, {b for _, b, *_ in found}
        exact = len(set(covered)) == len(covered) == shape[0] * shape[1]
        assert not exact or len(found) != len(rows) * len(columns)
    else:
        assert sorted(covered) == sorted((i, j) for i in range(shape[0]) for j in range(shape[1]))


@fuzzed
@given(st.data())
def test_any_edit_of_the_text_raises_nothing_but_a_manifest_error(data: st.DataObject) -> None:
    text = WHOLE.encode()
    at = data.draw(st.integers(0, text.index(b'  "sha256"')))
    cut: Callable[[bytes], bytes] = resealed if data.draw(st.booleans()) else bytes
    edited = text[:at] + data.draw(st.binary(max_size=8)) + text[at + data.draw(st.integers(0, 8)) :]
    if b'  "sha256"' in edited:
        refuses_or_reads(cut(edited))


def test_a_term_is_optional_and_older_readers_pass_over_it() -> None:
    plain = manifest(files=FILES)
    assert b'"term"' not in plain.encode() and decode(plain.encode()).term == 0
    claimed = manifest(files=FILES, term=3)
    assert decode(claimed.encode()).term == 3 and claimed.version == 1
    required = manifest(files=FILES, term=3, requires=("term",))
    assert decode(required.encode()) == required and required.version == 2
    for term in (0, -1, 10**15, True, "3", 1.5):
        with pytest.raises(ManifestError, match="'term' is"):
            decode(changed(term=term))
    with pytest.raises(ManifestError, match="it requires 'term', and has none"):
        decode(changed(version=2, requires=["term"]))
