import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import object_servers
from helpers.breaking_proxy import BreakingProxy, Rule
from helpers.memory_store import MemoryStore
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, needs
from holdfast.errors import ConfigError, MirrorAccessError, MirrorUnavailableError
from holdfast.remote.object_store import Item
from holdfast.remote.opening import open_store, require_usable


@needs("obstore", "botocore", "nanio")
def test_a_store_that_ignores_put_if_absent_is_refused(tmp_path: Path) -> None:
    variables = S3_ENVIRONMENT | {"AWS_SECRET_ACCESS_KEY": object_servers.NANIO_SECRET}
    with object_servers.nanio(tmp_path) as port, object_servers.environment(variables, tmp_path):
        endpoint = f"http://127.0.0.1:{port}"
        store = open_store(f"s3://{BUCKET}/x", endpoint)
        with pytest.raises(MirrorAccessError, match="where there is one already"):
            require_usable(store)
        assert [*store.listed()] == [], "what it was tried with is gone"
        with object_servers.environment(S3_ENVIRONMENT, tmp_path):
            with pytest.raises(MirrorAccessError, match="403 SignatureDoesNotMatch") as caught:
                require_usable(open_store(f"s3://{BUCKET}/x", endpoint))
            assert "look at the credentials" in str(caught.value.hint)


class Ignoring(MemoryStore):
    def put_absent(self, key: str, data: bytes) -> bool:
        self.objects[key] = data
        return True


class Forgetting(MemoryStore):
    def listed(self, prefix: str = "") -> Iterator[Item]:
        yield from ()


class Keeping(MemoryStore):
    def delete(self, key: str) -> None:
        """Deletes nothing."""


@pytest.mark.parametrize(
    ("store", "error", "words"),
    [
        (Ignoring(), MirrorAccessError, "conditional writes"),
        (Forgetting(), MirrorUnavailableError, "is not listed"),
        (Keeping(), MirrorUnavailableError, "is still there"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_store_that_does_not_do_what_it_says_is_refused(store: MemoryStore, error: type, words: str) -> None:
    with pytest.raises(error) as caught:
        require_usable(store)
    assert words in f"{caught.value} {getattr(caught.value, 'hint', None)}"


@needs("obstore", "botocore", "moto", "flask", "flask_cors")
def test_a_bucket_that_lets_itself_be_written_and_not_deleted_from_is_refused_at_once(
    s3_port: int, tmp_path: Path
) -> None:
    with BreakingProxy(s3_port) as proxy:
        with object_servers.environment(S3_ENVIRONMENT, tmp_path):
            proxy.break_on(Rule("DELETE", "error", "AccessDenied", 100))
            with pytest.raises(MirrorAccessError, match=r"deleting .* AccessDenied"):
                require_usable(open_store(f"s3://{BUCKET}/x", proxy.url))
            with pytest.raises(MirrorAccessError, match="no such bucket"):
                require_usable(open_store("s3://another/x", proxy.url))
        # The environment has the endpoint as well; what is given counts for more.
        with object_servers.environment(S3_ENVIRONMENT | {"AWS_ENDPOINT_URL_S3": proxy.url}, tmp_path):
            proxy.break_on()
            require_usable(open_store(f"s3://{BUCKET}/x"))
            with pytest.raises(MirrorUnavailableError):
                open_store(f"s3://{BUCKET}/x", f"http://127.0.0.1:{object_servers.free_port()}").delete("a")


def test_a_bad_address_or_endpoint_is_refused() -> None:
    for url, endpoint, region in (
        ("bucket/x", None, None),
        (f"s3://{BUCKET}/x", "bucket", None),
        (f"s3://{BUCKET}/x", "ftp://host", None),
        (f"s3://{BUCKET}/x", "", None),
        ("file:///x/y", "http://host", None),
        ("file:///x/y", None, "eu-central-1"),
        (f"gs://{BUCKET}/x", None, "eu-central-1"),
    ):
        with pytest.raises(ConfigError):
            open_store(url, endpoint, region)


@needs("obstore", "botocore")
def test_what_the_environment_says_is_looked_at_as_what_is_given(tmp_path: Path) -> None:
    for name, value, words in (
        ("AWS_ENDPOINT_URL", "127.0.0.1:9", "AWS_ENDPOINT_URL: '127.0.0.1:9' is no address"),
        ("AWS_ENDPOINT_URL_S3", "http://a:hunter2@host", "AWS_ENDPOINT_URL_S3 has no user"),
        ("AWS_REGION", "a b", "'a b' is no name of a region"),
    ):
        with object_servers.environment(S3_ENVIRONMENT | {name: value}, tmp_path):
            with pytest.raises(ConfigError) as caught:
                open_store(f"s3://{BUCKET}/x")
            assert words in str(caught.value) and "hunter2" not in f"{caught.value}{caught.value.hint}"


@needs("obstore", "botocore")
def test_a_panic_of_the_library_is_one_line(tmp_path: Path) -> None:
    with object_servers.environment(S3_ENVIRONMENT, tmp_path):
        store = open_store(f"s3://{BUCKET}/x", f"http://127.0.0.1:{object_servers.free_port()}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("holdfast.remote.credentials.AwsCredentials.__call__", lambda self: _UNSENDABLE)
            with pytest.raises(MirrorAccessError, match="no request can be made"):
                store.put_absent("a", b"")


_UNSENDABLE = {"access_key_id": "a\n", "secret_access_key": "b", "token": None, "expires_at": None}


def test_a_directory_needs_neither_obstore_nor_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from holdfast.remote.opening import open_store, require_usable\n"
        f"require_usable(open_store({(tmp_path / 'mirror').as_uri()!r}))\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'obstore', 'botocore', 'torch', 'numpy'})"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == []
