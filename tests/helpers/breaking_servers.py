"""Servers of S3, Azure and GCS behind a proxy that breaks, with any number of places on each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from helpers import object_servers
from helpers.breaking_proxy import BreakingProxy
from helpers.object_servers import BUCKET, needs
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.opening import open_store

FOR_EVER = 1000
_NUMBERS = count()


@dataclass
class Server:
    """A server behind a proxy. This process has its credentials.

    Args:
        scheme: The scheme of its addresses.
        proxy: The proxy in front of it.
        endpoint: Where the proxy is.
        variables: What another process needs in its environment.
        url: The place that is used now.
    """

    scheme: str
    proxy: BreakingProxy
    endpoint: str
    variables: dict[str, str]
    url: str = ""

    def new_place(self) -> None:
        self.url = f"{self.scheme}://{BUCKET}/elsewhere-{next(_NUMBERS)}"
        self.proxy.break_on()

    def store(self) -> ObjectStore:
        """The place, as a process that has just begun has it."""
        return open_store(self.url, self.endpoint)

    @property
    def of_list(self) -> str:
        """A pattern of a request that lists."""
        return "comp=list" if self.scheme == "az" else "list-type=2|prefix="


@contextmanager
def s3(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    variables = object_servers.S3_ENVIRONMENT
    with (
        BreakingProxy(request.getfixturevalue("s3_port")) as proxy,
        object_servers.environment(variables, folder),
    ):
        yield Server("s3", proxy, proxy.url, variables)


@contextmanager
def azure(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    variables = object_servers.AZURE_ENVIRONMENT
    with (
        object_servers.azurite(folder) as port,
        BreakingProxy(port) as proxy,
        object_servers.environment(variables, folder),
    ):
        yield Server("az", proxy, object_servers.azure_endpoint(proxy.port), variables)


@contextmanager
def gcs(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    variables = object_servers.GCS_ENVIRONMENT
    with (
        object_servers.localbucket(folder) as port,
        BreakingProxy(port, gcs=True) as proxy,
        object_servers.environment(variables, folder),
    ):
        yield Server("gs", proxy, proxy.url, variables)


S3 = pytest.param(s3, marks=needs("obstore", "botocore", "moto", "flask", "flask_cors"), id="s3")
SERVERS = (
    S3,
    pytest.param(azure, marks=[needs("obstore"), object_servers.needs_azurite()], id="azure"),
    pytest.param(gcs, marks=needs("obstore", "localbucket"), id="gcs"),
)
"""Each makes one, from the request of a fixture and a folder of its own."""
