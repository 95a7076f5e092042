"""Checkpoints whose manifest fits and whose files lie: what nothing but intent makes."""

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.loops import Loop, train
from helpers.tampering import with_intent
from helpers.trainings import Training
from holdfast.errors import CheckpointError
from holdfast.store.manifest import ManifestError, decode
from security.parsers import sealed

Header = dict[str, Any]


def packed(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def unpacked(file: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def of_one(**changes: Any) -> Callable[[Header, bytes], bytes]:
    """Changes what is said of the first tensor."""

    def change(header: Header, data: bytes) -> bytes:
        name = next(name for name in header if name != "__metadata__")
        return packed({**header, name: {**header[name], **changes}}, data)

    return change


def noted(note: object) -> Callable[[Header, bytes], bytes]:
    """Has the metadata say what the first tensor was before it was written."""

    def change(header: Header, data: bytes) -> bytes:
        name = next(name for name in header if name != "__metadata__")
        metadata = {**header.get("__metadata__", {}), "holdfast": json.dumps({name: note})}
        return packed({**header, "__metadata__": metadata}, data)

    return change


def overlapping(header: Header, data: bytes) -> bytes:
    """Two tensors of one size share their bytes."""
    first, *others = [name for name in header if name != "__metadata__"]
    size = len(range(*header[first]["data_offsets"]))
    twin = next((name for name in others if len(range(*header[name]["data_offsets"])) == size), others[0])
    return packed({**header, twin: {**header[twin], "data_offsets": header[first]["data_offsets"]}}, data)


def many(header: Header, data: bytes) -> bytes:
    """Five thousand tensors without elements, which nobody asked for."""
    end = len(data)
    more = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for number in range(5_000)}
    return packed({**header, **more}, data)


LIES: Mapping[str, Callable[[Header, bytes], bytes]] = {
    "nothing": lambda header, data: b"",
    "a header beyond the file": lambda header, data: (2**63 - 1).to_bytes(8, "little") + packed(header, data)[8:],
    "a header of 100 MB that is not there": lambda header, data: (100 << 20).to_bytes(8, "little") + b"{}" + data,
    "a header without an end": lambda header, data: packed(b"[" * 50_000, data),
    "a tensor twice": lambda header, data: packed(
        json.dumps(header)[:-1].encode() + b", " + json.dumps(header)[1:].encode(), data
    ),
    "no tensors": lambda header, data: packed({}, b""),
    "bytes that two tensors share": overlapping,
    "bytes of no tensor": lambda header, data: packed(header, data + b"more"),
    "bytes that are missing": lambda header, data: packed(header, data[:-4]),
    "more elements than any memory": of_one(shape=[2**31, 2**31]),
    "a product that overflows": of_one(shape=[2**32, 2**32]),
    "a negative shape": of_one(shape=[-1, -1]),
    "bytes before the file": of_one(data_offsets=[-16, 0]),
    "bytes beyond the file": of_one(data_offsets=[0, 2**62]),
    "a type that nobody has": of_one(dtype="F1024"),
    "a type that is a function of torch": noted({"dtype": "load", "shape": [1]}),
    "a shape that a note lies about": noted({"dtype": "complex128", "shape": [2**40]}),
    "a layout that nobody has": noted({"layout": "sparse_evil", "shape": [1]}),
    "a sparse tensor without its parts": noted({"layout": "sparse_coo", "shape": [2, 2], "coalesced": True}),
    "a note that is a list": noted([]),
}

# Room for torch, and none for what a lie asks for.
_MOST_MORE = 2 << 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lies")
    train(root, 2, save_steps=2)
    return root / "checkpoint-2"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("lie", LIES)
def test_security_s03_s04_a_file_of_tensors_that_lies_is_refused_by_name_and_nothing_is_changed(
    tmp_path: Path, saved: Path, lie: str, name: str
) -> None:
    """A header that lies, in a checkpoint whose manifest was made to fit it; memory and time are limited."""
    checkpoint = copied(saved, tmp_path)
    with_intent(checkpoint, name, LIES[lie](*unpacked((checkpoint / name).read_bytes())))
    refused(tmp_path, checkpoint, name.removesuffix(".safetensors"))


def test_security_s03_tensors_that_nobody_asked_for_are_refused_in_few_words_or_left_where_they_are(
    tmp_path: Path, saved: Path
) -> None:
    """Five thousand tensors more than the model, or the optimizer, has."""
    for name in ("model", "optimizer"):
        checkpoint = copied(saved, tmp_path / name)
        file = checkpoint / f"{name}.safetensors"
        with_intent(checkpoint, file.name, many(*unpacked(file.read_bytes())))
    refused(tmp_path / "model", tmp_path / "model" / "from" / saved.name, "model")
    plain, stuffed = (
        Loop(tmp_path / f"run-{number}", resume=str(path))
        for number, path in enumerate((saved, tmp_path / "optimizer" / "from" / saved.name))
    )
    for loop in (plain, stuffed):
        with loop.ckpt:
            loop.ckpt.resume()
    assert stuffed.digest() == plain.digest()


def copied(saved: Path, folder: Path) -> Path:
    checkpoint = folder / "from" / saved.name
    checkpoint.mkdir(parents=True)
    for path in saved.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    return checkpoint


def refused(folder: Path, checkpoint: Path, named: str) -> None:
    """Resumes a loop, and sees that it is refused, says of what, takes little memory and time, and changes nothing."""
    said: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    begun = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MOST_MORE, limits[1]))
    try:
        with pytest.raises(CheckpointError) as raised:
            loop = Loop(folder / "run", resume=str(checkpoint), say=said.append)
            before = loop.digest()
            with loop.ckpt:
                try:
                    loop.ckpt.resume()
                finally:
                    assert loop.digest() == before
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    told = "\n".join([str(raised.value), *said])
    assert named in told and len(told) < 4000
    assert all(line.isprintable() for line in told.split("\n"))
    assert time.monotonic() - begun < 60


JSON_LIES: Mapping[str, bytes] = {
    "nothing": b"",
    "no object": b"[]",
    "levels without an end": b'{"kind": "model", "frozen": ' + b"[" * 200_000,
    "a number without an end": b'{"kind": "model", "frozen": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"kind": NaN}',
    "a key twice": b'{"kind": "model", "kind": "model"}',
    "no text": b"\xff\xfe",
    "no kind": b"{}",
}


@pytest.mark.parametrize("name", ["model.json", "optimizer.json", "random.json", "training.json", "data.json"])
@pytest.mark.parametrize("lie", JSON_LIES)
def test_security_s04_json_that_lies_is_refused_and_nothing_is_changed(
    tmp_path: Path, saved: Path, lie: str, name: str
) -> None:
    """JSON cut short, deep, with endless numbers, or of the wrong kind, with a manifest that was made to fit it."""
    checkpoint = copied(saved, tmp_path)
    with_intent(checkpoint, name, JSON_LIES[lie])
    refused(tmp_path, checkpoint, "")


def test_security_s04_a_manifest_of_a_hundred_thousand_files_is_read_in_seconds_and_no_larger_one_is() -> None:
    """As many files as a manifest may list, and one more."""

    def listing(count: int) -> bytes:
        files = [{"path": f"f{number}", "size": 0, "xxh3_128": "0" * 32} for number in range(count)]
        fields = {"run": "a" * 32, "attempt": "b" * 32, "parent": None, "sequence": 1, "step": 7, "world_size": 1}
        rest = {"layout": "native", "created": "", "reasons": [], "boundary": {}, "versions": {}, "files": files}
        content = {"format": "holdfast-checkpoint", "version": 1, **fields, **rest}
        return sealed(json.dumps(content, indent=1).encode().removesuffix(b"\n}") + b',\n  "sha256"')

    begun = time.process_time()
    assert len(decode(listing(100_000)).files) == 100_000
    assert time.process_time() - begun < 30
    with pytest.raises(ManifestError, match="lists 100001 files"):
        decode(listing(100_001))


@pytest.mark.parametrize("boundary", [{}, {"tr_loss": [], "pending": 1}], ids=["nothing", "other kinds"])
def test_security_s04_a_boundary_that_a_trainer_cannot_go_on_from_is_named(
    training: Training, boundary: Mapping[str, Any]
) -> None:
    """The manifest of a Trainer's checkpoint says nothing of its boundary, or something of other kinds, and fits."""
    assert training.start(max_steps=2, save_strategy="steps", save_steps=2).wait() == 0
    path = training.run / "checkpoint-2" / "MANIFEST.json"
    path.write_bytes(replace(decode(path.read_bytes()), boundary=boundary).encode())
    process = training.start("--resume", "auto", max_steps=4)
    assert process.wait() == 1, process.output
    assert "its manifest does not say of the boundary what a Trainer goes on from" in process.output
    assert "Traceback" not in process.output
