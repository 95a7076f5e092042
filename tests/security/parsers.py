"""Every parser of what somebody else may have written, in one table: fuzzed by the tests and by `fuzz.py`."""

import contextlib
import functools
import hashlib
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from holdfast.cli.status import status
from holdfast.errors import ConfigError, HoldfastError
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.layouts.safetensors.header import HeaderError
from holdfast.run import lease, request
from holdfast.run.directory import RunDirectory
from holdfast.run.request import Answer, MalformedError, Request
from holdfast.store import digest, manifest
from holdfast.store.manifest import ManifestError
from holdfast.train.config import yaml as config_yaml

# What is printed of a file that was refused: a line or two, not the file.
MOST_SAID = 2000


@dataclass(frozen=True)
class Parser:
    """One parser.

    Args:
        parse: Reads some bytes.
        refusals: All that it may raise.
        seeds: Bytes that it takes; changed ones are tried.
        content: The JSON that it takes, where it does; changed one is tried, too.
        pack: Makes bytes of JSON.
    """

    parse: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    content: Any = None
    pack: Callable[[Any], bytes] = lambda content: json.dumps(content, indent=2).encode()

    def survives(self, data: bytes) -> None:
        """Has it read the bytes. It may refuse them in a few words that can be printed, and do nothing else."""
        try:
            self.parse(data)
        except self.refusals as error:
            said = str(error)
            assert len(said) <= MOST_SAID, f"{len(said)} characters are said of it: {said[:200]}"
            assert all(line.isprintable() for line in said.split("\n")), f"this would be printed: {said!r}"


def sealed(data: bytes) -> bytes:
    """The bytes of a manifest file, with a digest that fits them, as somebody with intent would make it."""
    body = data[: data.rfind(b'  "sha256"')]
    return body + f'  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


_folders: list["tempfile.TemporaryDirectory[str]"] = []


@functools.cache
def _run(*, alive: bool) -> RunDirectory:
    """A run directory, in which files are put that are then read from there; it is there until the process ends."""
    _folders.append(tempfile.TemporaryDirectory(prefix="fuzzed-"))
    directory = RunDirectory.create(Path(_folders[-1].name))
    if alive:
        lease.Lease.take(directory, None)
    return directory


def _manifest(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        manifest.decode(data)
    found = manifest.decode(sealed(data))
    assert manifest.decode(found.encode()) == found


def _header(data: bytes) -> None:
    fd = os.memfd_create("header")
    try:
        os.write(fd, data)
        found = tensor_headers.read(fd)
    finally:
        os.close(fd)
    assert all(0 <= tensor.offset <= len(data) - tensor.bytes for tensor in found)


def _label(data: bytes) -> None:
    found = request.clean_label(data)
    assert found == "" or found.isprintable()


def _lease(data: bytes) -> None:
    run = _run(alive=False)
    run.lease.path.write_bytes(data)
    if (found := lease.read(run)) is not None:
        lease.is_alive(run, found)


def _status(data: bytes) -> None:
    run = _run(alive=True)
    run.status.path.write_bytes(data)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status(run.root)
    assert all(line.isprintable() for line in said.getvalue().split("\n")), (
        f"this would be printed: {said.getvalue()!r}"
    )


def _outcome(data: bytes) -> None:
    run = _run(alive=False)
    run.lease.path.write_text(json.dumps({**_HOLDER, "released": True}))
    run.outcome.path.write_bytes(data)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(typer.Exit):
        status(run.root, ended=True)
    assert said.getvalue().rstrip("\n").isprintable(), f"this would be printed: {said.getvalue()!r}"


def _yaml(data: bytes) -> None:
    path = _run(alive=False).root / "config.yml"
    path.write_bytes(data)
    found = config_yaml.read(path)
    assert all(line.text.isprintable() for line in found.problems)


def _as_tensor_file(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


def _as_manifest(content: Any) -> bytes:
    return sealed(json.dumps(content, indent=2).encode().removesuffix(b"\n}") + b',\n  "sha256"')


_MANIFEST = {
    "format": manifest.FORMAT,
    "version": 1,
    "layout": "native",
    "run": "a" * 32,
    "attempt": "b" * 32,
    "parent": None,
    "sequence": 5,
    "step": 7,
    "world_size": 2,
    "created": "2026-01-02T03:04:05+00:00",
    "reasons": [{"id": "0" * 32, "door": "command", "why": "holdfast save", "label": "", "asked_at": 1.0}],
    "boundary": {"face": "update"},
    "versions": {"torch": "2.13.0"},
    "files": [
        {"path": "model-00000-of-00002.safetensors", "size": 1, "xxh3_128": "c" * 32},
        {"path": "large", "size": digest.BLOCK_BYTES + 1, "xxh3_128": "d" * 64},
    ],
    "tensors": {
        "model": {
            "w": {
                "shape": [2],
                "pieces": [{"file": "model-00000-of-00002.safetensors", "offset": [0], "lengths": [2]}],
            }
        }
    },
    "not_finite": ["model.v", "model.w"],
}
_HEADER = {
    "__metadata__": {"format": "pt"},
    "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}
_ANSWER = json.loads(Answer(True, path="out", not_finite=("model.w",), finite="checkpoint-6").encode("a" * 32))
_HOLDER = {
    "run": "a" * 32,
    "token": "b" * 32,
    "generation": 1,
    "host": socket.gethostname(),
    "boot": "",
    "pid": 1,
    "started": 1.0,
    "released": False,
}
_OUTCOME = {
    "run": "a" * 32,
    "token": "b" * 32,
    "generation": 1,
    "pid": 1,
    "parent": "c" * 32,
    "began_at": 1.0,
    "outcome": "stopped",
    "code": 75,
    "ended_at": 2.5,
}
_STATUS = {
    "run": "a" * 32,
    "pid": 1,
    "phase": "saving",
    "step": 7,
    "max_steps": 9,
    "rate": 1.5,
    "loss": 0.5,
    "last_checkpoint": {
        "path": "out/checkpoint-7",
        "step": 7,
        "bytes": 9,
        "seconds": 0.1,
        "not_finite": ["model.w"],
        "at": 1.0,
    },
    "pending": [{"why": "SIGTERM", "asked_at": 1.0, "label": "mine"}],
    "failed_saves": 1,
    "last_failure": "the disk is full",
    "capture": "at boundaries",
    "copied_buffers": {"mean": 4},
    "body": "a save waits",
    "held_seconds": 0.5,
    "ranks": [{"rank": 1, "step": 7, "phase": "training", "held": False, "age": 0.1, "host": "host"}],
    "written_at": 1.0,
}
_YAML = (
    b"base_model: &a ./model\ndatasets:\n  - path: *a\n    type: completion\nlearning_rate: 1e-3\n<<: {seed: 0x10}\n",
    b"a: [1, 2.5, yes, ~, 2001-02-03, 'text']\nb: |\n  long\n  text\nc: !!binary aGk=\n? d\n: !!python/none\n",
)


def _of_json(
    parse: Callable[[bytes], object],
    refusals: tuple[type[Exception], ...],
    content: Any,
    pack: Callable[[Any], bytes] = lambda content: json.dumps(content, indent=2).encode(),
) -> Parser:
    return Parser(parse, refusals, (pack(content),), content, pack)


PARSERS: dict[str, Parser] = {
    "manifest": _of_json(_manifest, (ManifestError,), _MANIFEST, _as_manifest),
    "tensor header": _of_json(_header, (HeaderError,), _HEADER, _as_tensor_file),
    "request": _of_json(
        request.decode_request, (MalformedError,), json.loads(Request("command", label="mine").encode())
    ),
    "answer": _of_json(request.decode_answer, (MalformedError,), _ANSWER),
    "trigger file": Parser(_label, (), (b"before the learning rate falls\n", "gr\u00f6\u00dfer\x1b[2J".encode())),
    "lease": _of_json(_lease, (), _HOLDER),
    "status": _of_json(_status, (HoldfastError,), _STATUS),
    "outcome": _of_json(_outcome, (HoldfastError,), _OUTCOME),
    "configuration": Parser(_yaml, (ConfigError,), _YAML),
}
