import json
from pathlib import Path

from cli.test_push import a_run
from helpers import object_servers
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, needs
from helpers.remote import start
from helpers.support import RUN, holdfast, holdfast_begun
from holdfast.remote.opening import open_store


def test_a_place_is_tried_and_described_and_is_left_as_it_was(tmp_path: Path) -> None:
    url = (tmp_path / "mirror").as_uri()
    free = holdfast("mirror", "check", url)
    assert free.returncode == 0 and "can be used" in free.stdout and "belongs to no run yet" in free.stdout
    assert "for unfinished uploads it needs nothing" in free.stdout
    assert [*open_store(url).listed()] == []
    assert holdfast("push", a_run(tmp_path / "run"), "--to", url).returncode == 0
    start(open_store(url), host="spot-1")
    told = holdfast("mirror", "check", url).stdout
    assert f"it belongs to run {RUN}, last started on spot-1 (term 1)" in told
    assert "it has 2 checkpoints, 86 B, the newest of step 9" in told
    described = json.loads(holdfast("mirror", "check", url, "--json").stdout)
    assert (described["run"], described["term"], described["checkpoints"], described["newest_step"]) == (RUN, 1, 2, 9)


def test_a_place_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url, words in (
        ("s3:/bucket", "is no address of a mirror"),
        ("ftp://host/x", "ftp:// is not known"),
        ((tmp_path / "file").as_uri(), "Not a directory"),
        ((tmp_path / "none" / "mirror").as_uri(), "mount the disk, or make it"),
    ):
        told = holdfast("mirror", "check", url)
        assert told.returncode == 2 and words in told.stderr and "Traceback" not in told.stderr, url


@needs("obstore", "botocore", "moto", "flask", "flask_cors")
def test_the_verbs_do_the_same_with_a_bucket(s3_port: int, tmp_path: Path) -> None:
    root, url = a_run(tmp_path / "run"), f"s3://{BUCKET}/verbs"
    with object_servers.environment(S3_ENVIRONMENT, tmp_path):
        endpoint = ("--endpoint", f"http://127.0.0.1:{s3_port}")
        for arguments, code, words in (
            (("mirror", "check", url), 0, "AbortIncompleteMultipartUpload, DaysAfterInitiation: 7"),
            (("push", root, "--to", url), 0, "checkpoint-9: mirrored"),
            (("list", url), 0, "checkpoint-7"),
            (("verify", url), 0, "checkpoint-9: good"),
            (("pull", url, tmp_path / "got"), 0, "checkpoint-7: is here"),
            (("mirror", "check", "s3://another/run"), 2, "there is no such bucket"),
        ):
            asked = holdfast_begun(*arguments, *endpoint)
            output, errors = asked.communicate(timeout=60)
            assert asked.returncode == code and words in output + errors, output + errors
        assert (tmp_path / "got" / "checkpoint-9" / "optimizer.pt").read_bytes() == b"moments"
