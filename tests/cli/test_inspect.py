import json
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from helpers.museum import EXHIBITS, Exhibit
from helpers.shards import committed
from helpers.support import ASKED, RESUMABLE, RUN, SCHEDULED, commit_checkpoint, fuzzed, holdfast
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.layouts.safetensors.header import HeaderError
from holdfast.state.part import Stored
from holdfast.store import files

WEIGHTS = save({"fc.weight": torch.zeros(4, 5), "fc.bias": torch.zeros(4, dtype=torch.bfloat16), "t": torch.tensor(1)})


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def described(**tensors: object) -> bytes:
    return json.dumps(tensors).encode()


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "an empty file": b"",
    "seven bytes": b"\x00" * 7,
    "a length beyond the file": struct.pack("<Q", 100) + b"{}",
    "the longest length": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no JSON": with_header(b"weights"),
    "no text": with_header(b"\xff\xfe{}"),
    "JSON without an end": with_header(b"[" * 100_000),
    "a number without an end": with_header(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a list": with_header(b"[]"),
    "a name twice": with_header(b'{"a": {}, "a": {}}'),
    "a tensor that is a number": with_header(described(a=1)),
    "a tensor without a shape": with_header(described(a={"dtype": "F32", "data_offsets": [0, 0]})),
    "bytes outside the file": with_header(described(a=GOOD), b"\x00" * 7),
    "bytes from back to front": with_header(described(a={**GOOD, "data_offsets": [8, 0]}), b"\x00" * 8),
    "bytes that do not fit the shape": with_header(described(a={**GOOD, "shape": [3]}), b"\x00" * 8),
    "a negative shape": with_header(described(a={**GOOD, "shape": [-2]}), b"\x00" * 8),
    "a shape of truths": with_header(described(a={**GOOD, "shape": [True, 2]}), b"\x00" * 8),
    "a huge shape": with_header(described(a={**GOOD, "shape": [2**62] * 100_000}), b"\x00" * 8),
    "three ends": with_header(described(a={**GOOD, "data_offsets": [0, 8, 8]}), b"\x00" * 8),
    "a type that is a list": with_header(described(a={**GOOD, "dtype": []}), b"\x00" * 8),
}


def checkpoint(root: Path, weights: bytes = WEIGHTS, **fields: object) -> Path:
    return commit_checkpoint(root, 7, {**RESUMABLE, "model.safetensors": weights}, **fields)


def test_it_tells_who_why_when_and_what(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, reasons=(SCHEDULED, ASKED), parent="b" * 32)
    found = holdfast("inspect", path)
    assert (found.returncode, found.stderr) == (0, "")
    attempt = re.search(r"^attempt +([0-9a-f]{32})$", found.stdout, re.M)
    assert attempt
    total = len(WEIGHTS) + 27
    assert found.stdout.splitlines() == [
        f"checkpoint    {path}",
        "step          7 (face logged)",
        "written       2026-01-02T03:04:05+00:00, as commit 1",
        "asked by      save_strategy steps (schedule)",
        "asked by      holdfast save (command), label before lr",
        f"run           {RUN}",
        f"attempt       {attempt[1]}",
        f"resumed from  {'b' * 32}",
        "pinned        no",
        "layout        transformers",
        "processes     1",
        f"size          {total} B in 5 files",
        "torch         2.13.0",
        "",
        "FILE                SIZE",
        f"model.safetensors   {len(WEIGHTS)} B",
        "optimizer.pt        7 B",
        "rng_state.pth       10 B",
        "scheduler.pt        8 B",
        "trainer_state.json  2 B",
        "",
        "model.safetensors: 3 tensors, 96 B",
        "TENSOR     TYPE  SHAPE   SIZE",
        "fc.bias    BF16  4       8 B",
        "fc.weight  F32   4x5     80 B",
        "t          I64   scalar  8 B",
    ]


def test_json_has_all_of_the_manifest_and_the_tensors(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, reasons=(ASKED,))
    content = json.loads(holdfast("inspect", path, "--json").stdout)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    for key, value in manifest.items():
        if key not in ("format", "version", "sha256"):
            assert content.pop(key) == value
    assert content == {
        "path": str(path),
        "bytes": len(WEIGHTS) + 27,
        "digest": manifest["sha256"],
        "pinned": False,
        "problems": [],
        "pieces": {},
        "not_finite": [],
        "requires": [],
        "settings": {},
        "more_reasons": 0,
        "term": 0,
        "tensors": {
            "model.safetensors": [
                {"name": "fc.bias", "dtype": "BF16", "shape": [4], "bytes": 8},
                {"name": "fc.weight", "dtype": "F32", "shape": [4, 5], "bytes": 80},
                {"name": "t", "dtype": "I64", "shape": [], "bytes": 8},
            ]
        },
    }


def test_tensors_in_pieces_are_shown_whole(tmp_path: Path) -> None:
    state = {"w": torch.zeros(7, 3), "plain": torch.zeros(4, dtype=torch.bfloat16)}
    path = committed(tmp_path, [("model", state, Stored({}, {"kind": "model"}))], {"w": (3, 1)}, 3)
    found = holdfast("inspect", path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "processes     3" in found.stdout
    assert found.stdout.splitlines()[-4:] == [
        "model.safetensors: 2 tensors, 92 B",
        "TENSOR  TYPE  SHAPE  SIZE  PIECES",
        "plain   BF16  4      8 B   1",
        "w       F32   7x3    84 B  3",
    ]
    content = json.loads(holdfast("inspect", path, "--json").stdout)
    assert content["pieces"] == json.loads((path / "MANIFEST.json").read_text())["tensors"]
    assert content["tensors"]["model-00002-of-00003.safetensors"] == [
        {"name": "w", "dtype": "F32", "shape": [1, 3], "bytes": 12}
    ]


@pytest.mark.parametrize("weights", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_only_says_it_holds_tensors_is_named_and_exit_code_3(tmp_path: Path, weights: bytes) -> None:
    path = checkpoint(tmp_path, weights)
    found = holdfast("inspect", path)
    assert found.returncode == 3 and "holdfast: model.safetensors: " in found.stderr
    assert "Traceback" not in found.stderr and "step          7" in found.stdout
    as_json = holdfast("inspect", path, "--json")
    assert (as_json.returncode, as_json.stderr) == (3, "")
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert problem.startswith("model.safetensors: ")


@fuzzed
@given(st.data())
def test_a_header_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = bytearray(WEIGHTS)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("header") / "file"
    path.write_bytes(changed[: data.draw(st.integers(0, len(changed)))])
    with files.open_regular(path) as fd:
        try:
            found = tensor_headers.read(fd)
        except HeaderError:
            return
    assert all(0 <= tensor.offset <= len(changed) - tensor.bytes for tensor in found)


def test_security_s05_what_is_written_in_a_checkpoint_moves_no_cursor_and_breaks_no_line(tmp_path: Path) -> None:
    """A good checkpoint whose every text holds terminal control and line breaks."""
    evil = "\x1b[2J\nfake"
    weights = with_header(described(**{evil: {"dtype": evil, "shape": [2], "data_offsets": [0, 8]}}), b"\x00" * 8)
    path = checkpoint(
        tmp_path,
        weights,
        layout=evil,
        created=evil,
        versions={evil: evil},
        boundary={"face": evil},
        reasons=({"why": evil, "door": evil, "label": [evil]},),
    )
    found = holdfast("inspect", path)
    assert found.returncode == 0, found.stderr
    assert all(line.isprintable() for line in found.stdout.splitlines())
    assert not any(line.startswith("fake") for line in found.stdout.splitlines())


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (path / "model.safetensors").rename(tmp_path / "outside")
    (path / "model.safetensors").symlink_to(tmp_path / "outside")
    found = holdfast("inspect", path)
    assert found.returncode == 3 and "model.safetensors: cannot be read: Too many levels" in found.stderr


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.kind)
def test_every_kind_of_damage_is_told_without_a_traceback(tmp_path: Path, exhibit: Exhibit) -> None:
    path = exhibit.in_a_run(tmp_path)
    found = holdfast("inspect", path)
    assert found.returncode in (2, 3) and "Traceback" not in found.stderr
    assert (found.returncode == 2) == (exhibit.kind == "foreign")


def test_what_is_no_checkpoint_is_exit_code_4(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        found = holdfast("inspect", path)
        assert (found.returncode, found.stdout) == (4, "")
