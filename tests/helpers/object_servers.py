"""Servers of object stores on this machine, each a process that ends with its context.

moto (S3), nanio (S3, which ignores put-if-absent), and localbucket (S3) behind a proxy that speaks GCS are Python's;
azurite (Azure) is Node's. `make test-remote` brings what is not there.
"""

import base64
import hmac
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path

import pytest

from holdfast.remote import bucket

ROOT = Path(__file__).parents[2]
BUCKET = "bucket"
NANIO_SECRET = "test-secret"
_LIMIT_SECONDS = 60.0

_ACCOUNT = "devstoreaccount1"
# Everybody's: it is in azurite's documentation.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_CLOUD_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "CLOUDSDK_")


def azurite_program() -> str | None:
    """Where azurite is, if it is."""
    local = ROOT / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    return str(local) if local.exists() else shutil.which("azurite-blob")


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips a test where a package of these is not installed; where all are asked for, it fails."""
    return _needed([module for module in modules if find_spec(module) is None])


def needs_azurite() -> pytest.MarkDecorator:
    """Skips a test where azurite is not installed."""
    return _needed([] if azurite_program() else ["azurite"])


def _needed(lacking: list[str]) -> pytest.MarkDecorator:
    skipped = bool(lacking) and not os.environ.get("HOLDFAST_REMOTE")
    return pytest.mark.skipif(skipped, reason=f"{', '.join(lacking)} not installed: make test-remote")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], port: int) -> Iterator[int]:
    """Runs a server until the context ends, and gives its port when it answers there."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_CLOUD_VARIABLES)}
    variables |= {"NANIO_ACCESS_KEY": "test", "NANIO_SECRET_KEY": NANIO_SECRET}
    # A file and no pipe: servers log each request, and one that nobody reads from stands still once a pipe is full.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        try:
            end = time.monotonic() + _LIMIT_SECONDS
            while not _answers(port):
                log.seek(0)
                assert process.poll() is None, f"{command} ended: {log.read()!r}"
                assert time.monotonic() < end, f"{command} does not answer"
                time.sleep(0.05)
            yield port
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def moto() -> Iterator[int]:
    """A server of S3 with one bucket."""
    port = free_port()
    with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        _request(port, "PUT", f"/{BUCKET}", {})
        yield port


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of a server of S3 with one bucket, in which each test takes places of its own."""
    with moto() as port:
        yield port


@contextmanager
def localbucket(folder: Path) -> Iterator[int]:
    """Another server of S3 with one bucket, which stands for GCS behind the proxy."""
    port = free_port()
    (folder / BUCKET).mkdir()
    with serving([sys.executable, "-m", "localbucket", "--port", str(port), str(folder)], port):
        yield port


@contextmanager
def azurite(folder: Path) -> Iterator[int]:
    """A server of Azure's with one container."""
    program, port = azurite_program(), free_port()
    assert program is not None
    options = ["-l", str(folder), "-s", "--skipApiVersionCheck", "--disableTelemetry"]
    with serving([program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options], port):
        _make_container(port)
        yield port


@contextmanager
def nanio(folder: Path) -> Iterator[int]:
    """A server of S3 that stores an object where there is one, although it is asked not to."""
    port = free_port()
    (folder / BUCKET).mkdir()
    options = ["--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    with serving([sys.executable, "-m", "nanio", "serve", *options], port):
        yield port


S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
AZURE_ENVIRONMENT = {"AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": _KEY}
GCS_ENVIRONMENT = {
    "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
        {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    )
}
"""With each, `open_store` finds credentials for the server of the kind."""


def azure_endpoint(port: int) -> str:
    """The endpoint of azurite, or of a proxy in front of it."""
    return f"http://127.0.0.1:{port}/{_ACCOUNT}"


@contextmanager
def short_pauses() -> Iterator[None]:
    """Has the stores that this process opens try again as often as ever, and sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, "_FIRST_PAUSE", timedelta(milliseconds=5))
        yield


@contextmanager
def environment(variables: dict[str, str], home: Path) -> Iterator[None]:
    """Gives this process those variables for clouds, and no others; its home has no profiles."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_CLOUD_VARIABLES)]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def _make_container(port: int) -> None:
    date, version = formatdate(usegmt=True), "2021-12-02"
    target = f"/{_ACCOUNT}/{BUCKET}"
    signed = f"PUT\n{chr(10) * 11}x-ms-date:{date}\nx-ms-version:{version}\n/{_ACCOUNT}{target}\nrestype:container"
    digest = hmac.new(base64.b64decode(_KEY), signed.encode(), "sha256").digest()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
    _request(port, "PUT", f"{target}?restype=container", headers)


def _request(port: int, method: str, path: str, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_SECONDS)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status < 300, f"{method} {path}: {answer.status} {text!r}"
