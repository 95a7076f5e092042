import json
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import object_servers
from helpers.object_servers import BUCKET, needs
from holdfast.errors import MirrorAccessError, MirrorUnavailableError
from holdfast.remote.credentials import (
    AwsCredentials,
    is_of_cloud,
    require_of_azure,
    require_of_gcs,
    require_sendable,
)
from holdfast.remote.opening import open_store

SECRET = "hunter2"
NOWHERE = Path("/nowhere")

of_aws = needs("botocore")


@pytest.fixture(autouse=True)
def no_cloud(tmp_path: Path) -> Any:
    with object_servers.environment({}, tmp_path):
        yield


def refused(do: Any) -> str:
    with pytest.raises(MirrorAccessError) as caught:
        do()
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    line = f"{caught.value} {caught.value.hint}"
    assert SECRET not in line
    return line


@pytest.mark.parametrize(
    ("scheme", "name", "text"),
    [
        ("s3", "sys_vendor", "Amazon EC2\n"),
        ("s3", "bios_version", "4.11.amazon\n"),
        ("gs", "product_name", "Google Compute Engine\n"),
        ("az", "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n"),
    ],
)
def test_the_firmware_says_which_cloud_a_machine_is_of(tmp_path: Path, scheme: str, name: str, text: str) -> None:
    assert not any(is_of_cloud(each, tmp_path) for each in ("s3", "gs", "az"))
    (tmp_path / name).write_text(text)
    assert [each for each in ("s3", "gs", "az") if is_of_cloud(each, tmp_path)] == [scheme]
    (tmp_path / name).write_text("Microsoft Corporation\n")  # Hyper-V is everybody's
    assert not any(is_of_cloud(each, tmp_path) for each in ("s3", "gs", "az"))


@of_aws
def test_without_credentials_one_line_says_what_to_do() -> None:
    assert "there are no credentials for s3://" in refused(lambda: AwsCredentials(NOWHERE))
    assert "GOOGLE_APPLICATION_CREDENTIALS" in refused(lambda: require_of_gcs(firmware=NOWHERE))
    assert "AZURE_STORAGE_ACCOUNT_KEY" in refused(lambda: require_of_azure(firmware=NOWHERE))


@of_aws
def test_an_instance_is_asked_where_this_machine_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    providers = []
    resolver = "botocore.credentials.CredentialResolver.load_credentials"
    monkeypatch.setattr(resolver, lambda self: providers.append([each.METHOD for each in self.providers]))
    for _ in range(2):
        refused(lambda: AwsCredentials(tmp_path))
        (tmp_path / "sys_vendor").write_text("Amazon EC2")
    assert ["iam-role" in methods for methods in providers] == [False, True]
    for require in (require_of_gcs, require_of_azure):
        (tmp_path / "sys_vendor").write_text("Google")
        (tmp_path / "chassis_asset_tag").write_text("7783-7084-3265-9085-8269-3286-77")
        require(firmware=tmp_path)


PROFILES = """
[profile plain]
aws_access_key_id = key
aws_secret_access_key = hunter2
region = eu-west-9
[profile broken]
aws_access_key_id = key
aws_secret_access_key = hunter2
aws_session_token = one\ttwo
[profile unrunnable]
credential_process = /nowhere/program
[profile talkative]
credential_process = /bin/echo hunter2
[profile sso]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 1
sso_role_name = role
[profile lost]
source_profile = nobody
role_arn = arn:aws:iam::1:role/x
"""


@of_aws
def test_profiles_and_single_sign_on_are_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(PROFILES)
    monkeypatch.setenv("AWS_PROFILE", "plain")
    found = AwsCredentials()
    assert (found.region, found()["access_key_id"], found()["token"]) == ("eu-west-9", "key", None)
    words_of = {
        "nobody": "(nobody)",
        "sso": "aws sso login",
        "lost": "does not exist",
        "broken": "cannot be sent",
        "unrunnable": "/nowhere/program",
        "talkative": "cannot be had",
    }
    for profile, words in words_of.items():
        monkeypatch.setenv("AWS_PROFILE", profile)
        assert words in refused(AwsCredentials)
    assert caplog.records == [], "the library's own words, with a trace"
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert "missing: AWS_SECRET_ACCESS_KEY" in (line := refused(AwsCredentials)) and "belong together" in line
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert "AWS_ACCESS_KEY_ID is not" in refused(AwsCredentials)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    assert "/nowhere/token" in refused(AwsCredentials)
    (tmp_path / ".aws" / "config").write_text("[[[")
    assert "config" in refused(AwsCredentials)


@needs("botocore", "obstore")
def test_what_runs_out_is_renewed_and_what_cannot_be_is_said_until_it_can(tmp_path: Path) -> None:
    home, renewed = tmp_path, tmp_path / "renewed"
    script = home / "process.py"
    script.write_text(
        "import datetime, json, pathlib, sys\n"
        f"if not pathlib.Path({str(renewed)!r}).exists(): sys.exit('log in again')\n"
        # So little is left that botocore renews them for each request.
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=300)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'a', 'SecretAccessKey': 'b', 'SessionToken': 'c',"
        " 'Expiration': end.isoformat()}))\n"
    )
    (home / ".aws").mkdir()
    (home / ".aws" / "config").write_text(f"[profile own]\ncredential_process = {sys.executable} {script}\n")
    with object_servers.environment({"AWS_PROFILE": "own"}, home):
        renewed.touch()
        store = open_store(f"s3://{BUCKET}/x", f"http://127.0.0.1:{object_servers.free_port()}")
        for is_there in (True, False, True):
            renewed.touch() if is_there else renewed.unlink()
            error = MirrorUnavailableError if is_there else MirrorAccessError
            with pytest.raises(error, match="Connection refused" if is_there else "log in again"):
                store.get_range("a", 0, 1)


def test_a_variable_of_which_no_request_can_be_made_is_named_and_not_shown() -> None:
    for scheme, name in (("s3", "AWS_SESSION_TOKEN"), ("gs", "GOOGLE_BEARER_TOKEN"), ("az", "AZURE_STORAGE_TOKEN")):
        assert name in refused(lambda: require_sendable(scheme, {name: f"{SECRET}\n"}))  # noqa: B023 - called at once
        require_sendable(scheme, {name: SECRET, "OTHER": "\n"})
    require_sendable("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{\n}"})
    half = {"AZURE_CLIENT_ID": "a", "AZURE_TENANT_ID": "b"}
    assert "there is no AZURE_CLIENT_SECRET" in refused(lambda: require_of_azure(half, NOWHERE))


def test_of_gcs_a_key_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    for text, words in {
        "{": "no JSON",
        "[]": "of the kind None",
        json.dumps({"type": "external_account", "secret": SECRET}): "'external_account'",
    }.items():
        path.write_text(text)
        for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"):
            assert words in refused(lambda name=name: require_of_gcs({name: str(path)}, NOWHERE))
    assert "No such file" in refused(
        lambda: require_of_gcs({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "x")}, NOWHERE)
    )
    path.write_text(json.dumps({"type": "authorized_user"}))
    require_of_gcs({"GOOGLE_APPLICATION_CREDENTIALS": str(path)}, NOWHERE)
    of_gcloud = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    of_gcloud.parent.mkdir(parents=True)
    path.rename(of_gcloud)
    require_of_gcs({"HOME": str(tmp_path)}, NOWHERE)


def test_of_azure_all_of_an_alternative_is_needed() -> None:
    part = {"AZURE_CLIENT_ID": "a", "AZURE_TENANT_ID": "b"}
    refused(lambda: require_of_azure(part, NOWHERE))
    require_of_azure(part | {"AZURE_CLIENT_SECRET": "c"}, NOWHERE)
    require_of_azure({"AZURE_STORAGE_ACCESS_KEY": "a"}, NOWHERE)


@needs("obstore")
def test_credentials_that_obstore_does_not_take_are_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", f"no base64 {SECRET}")
    assert "whose account" in refused(lambda: open_store(f"az://{BUCKET}/x"))
    assert "cannot be opened" in refused(lambda: open_store(f"az://{BUCKET}/x", "https://account.blob.example.org"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert "cannot be opened" in refused(lambda: open_store(f"az://{BUCKET}/x"))
    key = {"type": "service_account", "private_key": SECRET, "private_key_id": SECRET, "client_email": "a"}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    assert "cannot be opened" in refused(lambda: open_store(f"gs://{BUCKET}/x"))


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "holdfast-torch[remote]" in refused(lambda: open_store(f"s3://{BUCKET}/x"))
