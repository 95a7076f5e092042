import pytest

from holdfast.arguments import is_address
from holdfast.errors import ConfigError
from holdfast.remote.location import Location, endpoint_of, location_of

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "location", "url"),
    [
        ("s3://bucket/team/run_1", Location("s3", "bucket", "team/run_1"), "s3://bucket/team/run_1"),
        ("s3://bucket/team=a/lr+2/", Location("s3", "bucket", "team=a/lr+2"), "s3://bucket/team=a/lr+2"),
        ("S3://My.Bucket", Location("s3", "My.Bucket", ""), "s3://My.Bucket"),
        ("gs://b_1-x/run", Location("gs", "b_1-x", "run"), "gs://b_1-x/run"),
        ("az://container/a/b", Location("az", "container", "a/b"), "az://container/a/b"),
        ("file:///other/disk/run", Location("file", "", "/other/disk/run"), "file:///other/disk/run"),
        ("file://localhost/a/b/", Location("file", "", "/a/b"), "file:///a/b"),
        ("file:///my%20disk/ü", Location("file", "", "/my disk/ü"), "file:///my%20disk/%C3%BC"),
        ("file:////a//b/./c", Location("file", "", "/a/b/c"), "file:///a/b/c"),
    ],
)
def test_an_address_is_read_and_its_own_text_is_the_same_place(text: str, location: Location, url: str) -> None:
    assert location_of(text) == location
    assert location.url == url
    assert location_of(url) == location


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no address"),
        ("bucket/run", "no address"),
        ("/other/disk", "no address"),
        ("file:/other/disk", "no address"),
        ("s3:bucket", "no address"),
        ("http://bucket/run", "http:// is not known"),
        ("s3a://bucket/run", "s3a:// is not known"),
        ("s3://", "no name of a bucket"),
        ("s3:///run", "no name of a bucket"),
        ("s3://b:9000/run", "no name of a bucket"),
        ("az://c/run", "no name of a container"),
        ("s3://[/run", "no address"),
        ("s3://bucket/a//b", "cannot be a part"),
        ("s3://bucket/../b", "cannot be a part"),
        ("s3://bucket/.hidden", "cannot be a part"),
        ("s3://bucket/a b", "cannot be a part"),
        ("s3://bucket/a%20b", "cannot be a part"),
        ("s3://bucket/a\nb", "cannot be printed"),
        ("s3://bucket/" + "a" * 101, "cannot be a part"),
        ("s3://bucket/" + "a/" * 300, "longer than"),
        ("file://other/disk", "would be a host"),
        ("file:///", "the root"),
        ("file://", "the root"),
        ("file:///a/../b", r"has \.\."),
        ("file:///a/%2e%2e/b", r"has \.\."),
        ("file:///a%00b", "cannot be printed"),
        ("file:///a%0ab", "cannot be printed"),
    ],
)
def test_what_is_no_address_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        location_of(text)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://key:{SECRET}@bucket/run",
        f"s3://bucket/run?secret={SECRET}",
        f"az://container/run?sv=1&sig={SECRET}",
        f"file:///disk/run#{SECRET}",
        f"gs://{SECRET}@[/",
    ],
)
def test_a_secret_in_an_address_is_refused_and_never_repeated(text: str) -> None:
    for read in (location_of, endpoint_of):
        with pytest.raises(ConfigError, match="has no user, password") as caught:
            read(text)
        assert SECRET not in f"{caught.value}{caught.value.hint}"


def test_an_endpoint_is_the_address_of_a_server() -> None:
    assert endpoint_of("http://127.0.0.1:5000/account/") == "http://127.0.0.1:5000/account"
    assert endpoint_of("https://minio.example.org") == "https://minio.example.org"
    for text in (
        "minio.example.org:9000",
        "https://",
        "ftp://host",
        "http://host:0",
        "http://host:99999",
        "http://h/a b",
    ):
        with pytest.raises(ConfigError, match="no address of a server"):
            endpoint_of(text)


def test_what_is_meant_as_an_address_is_told_from_a_path() -> None:
    assert all(is_address(text) for text in ("s3://b", "s4://b", "S3://b", "file:///x"))
    assert not any(is_address(text) for text in ("runs/small", "./s3:/b", "/x", "", "s3:", "a/s3://b"))
