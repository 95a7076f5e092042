"""A place beyond this disk is opened, and tried before anything is promised of it."""

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from holdfast.errors import AbsentError, ConfigError, MirrorAccessError, MirrorError, MirrorUnavailableError
from holdfast.remote import credentials, keys
from holdfast.remote.bucket import Bucket
from holdfast.remote.directory import DirectoryStore
from holdfast.remote.failures import CONDITIONAL, failure_of_opening
from holdfast.remote.location import DIRECTORY, Location, endpoint_of, location_of
from holdfast.remote.object_store import ObjectStore
from holdfast.text import quoted

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")


def open_store(url: str, endpoint: str | None = None, region: str | None = None) -> ObjectStore:
    """Opens a place. Credentials are looked for; the place itself is not asked for anything yet.

    A bucket is for a process of its own: what has used one hangs in the children that it forks.

    Args:
        url: Its address.
        endpoint: The server, where it is none of the cloud's own; else what the environment says.
        region: The bucket's region; else what the environment or the profile says.

    Raises:
        ConfigError: One of them is no address.
        MirrorAccessError: There are no credentials, or the extra is not installed.
    """
    location = location_of(url)
    _require_meaning(location, endpoint, region)
    if location.scheme == DIRECTORY:
        return DirectoryStore(Path(location.path), location.url)
    credentials.require_sendable(location.scheme)
    server = _from_environment(location.scheme) if endpoint is None else endpoint_of(endpoint)
    try:
        import obstore  # noqa: F401 - that it is there
    except ImportError as error:
        raise credentials.lacking(error) from error
    return _OPENED[location.scheme](location, server, region)


def require_usable(store: ObjectStore) -> None:
    """Tries a place with an object of its own: everything that a mirror will ask for.

    Raises:
        MirrorAccessError: It refuses something, or stores an object where there is one.
        MirrorUnavailableError: It does not answer.
    """
    key, first, second = keys.trial(secrets.token_hex(16)), b"first\n", b"second\n"
    try:
        if not store.put_absent(key, first) or store.put_absent(key, second) or store.get_range(key, 0, 16) != first:
            raise MirrorAccessError(
                f"{store.url}: this store puts an object where there is one already, although it is asked not to",
                hint=CONDITIONAL,
            )
        if key not in (item.key for item in store.listed(keys.TRIALS)):
            raise MirrorUnavailableError(f"{store.url}: an object that was stored is not listed")
    except MirrorError:
        with suppress(MirrorError):
            store.delete(key)
        raise
    store.delete(key)
    with suppress(AbsentError):
        store.get_range(key, 0, 16)
        raise MirrorUnavailableError(f"{store.url}: an object that was deleted is still there")


def _require_meaning(location: Location, endpoint: str | None, region: str | None) -> None:
    """Refuses a server or a region where the place has none."""
    if location.scheme == DIRECTORY and endpoint is not None:
        raise ConfigError(["mirror_endpoint: has no meaning for a directory"], hint="leave it out")
    if location.scheme != "s3" and region is not None:
        raise ConfigError([f"mirror_region: has no meaning for {location.scheme}://"], hint="leave it out")


def _from_environment(scheme: str) -> str | None:
    name = next((name for name in _ENDPOINTS[scheme] if os.environ.get(name)), None)
    return None if name is None else endpoint_of(os.environ[name], name)


def _s3(location: Location, server: str | None, region: str | None) -> Bucket:
    from obstore.store import S3Store

    # Bulk deletes are not what every server of the kind has. The environment could switch conditional puts off.
    config: dict[str, Any] = {"disable_bulk_delete": True, "conditional_put": "etag"}
    if server:
        config["aws_endpoint_url_s3"] = server
    of_aws = credentials.AwsCredentials()
    config["region"] = name = (of_aws.region or "us-east-1") if region is None else region
    if not _REGION.fullmatch(name):
        source = "AWS_REGION or the profile's region" if region is None else "mirror_region"
        raise ConfigError([f"{source}: {quoted(name)} is no name of a region"], hint="such as eu-central-1")
    return _bucket(location, S3Store, server, config, of_aws)


def _gcs(location: Location, server: str | None, region: str | None) -> Bucket:
    from obstore.store import GCSStore

    credentials.require_of_gcs()
    return _bucket(location, GCSStore, server, {"base_url": server} if server else {})


def _azure(location: Location, server: str | None, region: str | None) -> Bucket:
    from obstore.store import AzureStore

    credentials.require_of_azure()
    host = (urlsplit(server).hostname or "") if server else ""
    account = os.environ.get(_ACCOUNT) or (host.partition(".")[0] if ".blob." in host else "")
    if not account:
        raise MirrorAccessError(
            f"{location.url}: whose account it is in is not known",
            hint=f"set {_ACCOUNT}, or mirror_endpoint: https://ACCOUNT.blob.core.windows.net",
        )
    return _bucket(location, AzureStore, server, {"account_name": account} | ({"endpoint": server} if server else {}))


_OPENED = {"s3": _s3, "gs": _gcs, "az": _azure}


def _bucket(
    location: Location,
    store: Callable[..., Any],
    server: str | None,
    config: dict[str, Any],
    of_aws: credentials.AwsCredentials | None = None,
) -> Bucket:
    from obstore.exceptions import BaseError

    def make(client_options: dict[str, Any], retry_config: dict[str, Any]) -> Any:
        return store(
            location.bucket,
            prefix=location.path or None,
            config=config,
            client_options=client_options | {"allow_http": bool(server and server.startswith("http://"))},
            retry_config=retry_config,
            credential_provider=of_aws,
        )

    try:
        return Bucket(location.url, make, lambda: of_aws.problem if of_aws else None)
    except (BaseError, OSError, ValueError) as error:
        raise failure_of_opening(location.url, str(error)) from None
