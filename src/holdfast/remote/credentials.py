"""The credentials for a bucket: looked for before training begins, and never shown, kept or journalled.

They come from the environment, from files in the home directory (profiles and single sign-on for AWS), or from the
instance. An instance is asked only where its firmware says that it is one of that cloud: elsewhere the address that
all clouds have for that is somebody else's, or nobody's, and is waited for.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import MirrorAccessError, MirrorError, MirrorUnavailableError
from holdfast.text import one_line, quoted

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session

FIRMWARE = Path("/sys/class/dmi/id")
# What the firmware of a machine of theirs says, in the file of that name; of what begins with a dot, how that ends.
_CLOUDS = {
    "s3": {
        **dict.fromkeys(("sys_vendor", "bios_vendor", "board_vendor"), "Amazon EC2"),
        **dict.fromkeys(("bios_version", "product_version"), ".amazon"),  # the older ones, whose vendor is Xen
    },
    "gs": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "az": {"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
}

_SECRET = "AWS_SECRET_ACCESS_KEY"
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_JSON = "GOOGLE_SERVICE_ACCOUNT_KEY"
# Of each alternative, all must be set.
_OF_GCS = (
    ("GOOGLE_BEARER_TOKEN",),
    (_JSON,),
)
_FILES_OF_GCS = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
_DEFAULT_OF_GCS = Path(".config/gcloud/application_default_credentials.json")
_KINDS_OF_GCS = ("service_account", "authorized_user")
_OF_AZURE = (
    ("AZURE_STORAGE_ACCOUNT_KEY",),
    ("AZURE_STORAGE_ACCESS_KEY",),
    ("AZURE_STORAGE_MASTER_KEY",),
    ("AZURE_STORAGE_SAS_KEY",),
    ("AZURE_STORAGE_SAS_TOKEN",),
    ("AZURE_STORAGE_TOKEN",),
    ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"),
    ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TENANT_ID"),
    ("AZURE_IDENTITY_ENDPOINT",),
    ("AZURE_MSI_ENDPOINT",),
    ("AZURE_USE_AZURE_CLI",),
)
# obstore asks anew when less than five minutes are left, so it does each time, and what is renewed is used at once.
_VALID = timedelta(minutes=1)


def is_of_cloud(scheme: str, firmware: Path = FIRMWARE) -> bool:
    """Tells whether this machine is an instance of the cloud whose buckets have a scheme, as its firmware says."""
    for name, mark in _CLOUDS[scheme].items():
        try:
            text = (firmware / name).read_text(errors="replace").strip()
        except OSError:
            continue
        if text == mark or (mark.startswith(".") and text.endswith(mark)):
            return True
    return False


def require_sendable(scheme: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses variables of a cloud that have a character in them of which no request can be made: obstore panics.

    Raises:
        MirrorAccessError: One has.
    """
    variables = [name for name in environment if name.startswith(_VARIABLES[scheme]) and name != _JSON]
    if bad := sorted(name for name in variables if not environment[name].isprintable()):
        raise MirrorAccessError(
            f"{', '.join(bad)}: has a character in it that cannot be sent, such as a line break at its end",
            hint=f"take it out: export {bad[0]}=$(cat FILE) leaves line breaks at the end out",
        )


class AwsCredentials:
    """AWS's credentials from wherever its own tools find them; obstore calls this for each new signature.

    Args:
        firmware: The directory that says which cloud this machine is of.

    Raises:
        MirrorAccessError: There are none.
    """

    def __init__(self, firmware: Path = FIRMWARE) -> None:
        self.problem: MirrorError | None = None
        self._session = _session(firmware)
        credentials = _of_aws("credentials", lambda: self._session.get_credentials())
        if credentials is None:
            half = ": AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not" if os.environ.get(_SECRET) else ""
            raise MirrorAccessError(
                f"there are no credentials for s3://: none in the environment, in ~/.aws, or of the instance{half}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or log in with `aws sso login`",
            )
        self._credentials: Credentials = credentials
        self()

    @property
    def region(self) -> str | None:
        """The region that the environment or the profile names."""
        region = _of_aws("the region", lambda: self._session.get_config_variable("region"))
        return region or os.environ.get("AWS_REGION")

    def __call__(self) -> dict[str, Any]:
        """Returns the credentials as they are now."""
        try:
            frozen = _of_aws("credentials", self._credentials.get_frozen_credentials)
        except MirrorError as error:
            self.problem = error  # obstore has but the text of it, among much else
            raise
        self.problem = None
        if not all(part is None or (part.isascii() and part.isprintable()) for part in frozen):
            self.problem = MirrorAccessError(
                "the credentials for s3:// have a character that cannot be sent, such as a line break at an end",
                hint="look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or at the profile",
            )
            raise self.problem
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _VALID,
        }


def _session(firmware: Path) -> "Session":
    try:
        from botocore.session import Session
    except ImportError as error:
        raise lacking(error) from error
    logging.getLogger("botocore").setLevel(logging.CRITICAL)  # it logs with a trace what it raises as well
    session = Session()
    if not is_of_cloud("s3", firmware):
        _of_aws("the profile", lambda: session.get_component("credential_provider").remove("iam-role"))
    return session


def _of_aws(what: str, ask: Callable[[], Any]) -> Any:
    from botocore import exceptions

    try:
        return ask()
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
        raise MirrorUnavailableError(f"{what} for s3:// cannot be asked for: {one_line(str(error))}") from None
    except (exceptions.PartialCredentialsError, exceptions.NoCredentialsError) as error:
        raise MirrorAccessError(
            f"{what} for s3:// cannot be had: {one_line(str(error))}",
            hint="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together, with AWS_SESSION_TOKEN for a session's",
        ) from None
    except (exceptions.BotoCoreError, exceptions.ClientError, OSError, ValueError, LookupError) as error:
        # The last three: files that are not there or are no JSON, programs that cannot be run or answer something else.
        raise MirrorAccessError(
            f"{what} for s3:// cannot be had: {one_line(str(error))}",
            hint="AWS_PROFILE names a profile of ~/.aws/config; `aws sso login` renews a single sign-on",
        ) from None


def require_of_gcs(environment: Mapping[str, str] = os.environ, firmware: Path = FIRMWARE) -> None:
    """Checks that there are credentials for GCS.

    Raises:
        MirrorAccessError: There are none, or none that can be used.
    """
    if _any_set(_OF_GCS, environment):
        return
    for name in _FILES_OF_GCS:
        if environment.get(name):
            return _require_key_file(Path(environment[name]), name)
    default = Path(environment.get("HOME", "/")) / _DEFAULT_OF_GCS
    if default.exists():
        return _require_key_file(default, "gcloud's default credentials")
    if not is_of_cloud("gs", firmware):
        raise MirrorAccessError(
            "there are no credentials for gs://: none in the environment, of gcloud, or of the instance",
            hint="set GOOGLE_APPLICATION_CREDENTIALS to a key's file, or log in with"
            " `gcloud auth application-default login`",
        )


def _require_key_file(path: Path, source: str) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise MirrorAccessError(f"{source}: {quoted(str(path))} cannot be read: {problem}") from None
    kind = content.get("type") if isinstance(content, dict) else None
    # One for a server of one's own has no type.
    if kind not in _KINDS_OF_GCS and not (isinstance(content, dict) and content.get("disable_oauth") is True):
        raise MirrorAccessError(
            f"{source}: {quoted(str(path))} has credentials of the kind {quoted(kind)}, which cannot be used",
            hint="of a service account or of a user (`gcloud auth application-default login`) they can",
        )


def require_of_azure(environment: Mapping[str, str] = os.environ, firmware: Path = FIRMWARE) -> None:
    """Checks that there are credentials for Azure.

    Raises:
        MirrorAccessError: There are none.
    """
    if not _any_set(_OF_AZURE, environment) and not is_of_cloud("az", firmware):
        raise MirrorAccessError(
            "there are no credentials for az://: none in the environment, or of the instance"
            + _half_of_azure(environment),
            hint="set AZURE_STORAGE_ACCOUNT_KEY, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET,"
            " or AZURE_USE_AZURE_CLI=true after `az login`",
        )


def _half_of_azure(environment: Mapping[str, str]) -> str:
    """Returns words for the alternative of which something is set, and not all; none where nothing is."""
    for names in _OF_AZURE:
        if (have := [name for name in names if environment.get(name)]) and len(have) < len(names):
            lacks = ", ".join(name for name in names if name not in have)
            return f": beside {' and '.join(have)} there is no {lacks}"
    return ""


def _any_set(alternatives: tuple[tuple[str, ...], ...], environment: Mapping[str, str]) -> bool:
    return any(all(environment.get(name) for name in names) for names in alternatives)


def lacking(error: ImportError) -> MirrorAccessError:
    """Returns the error for a package that the extra has, and this environment has not."""
    return MirrorAccessError(
        f"a mirror in a bucket needs {error.name or 'a package'}, which is not installed",
        hint="pip install 'holdfast-torch[remote]'",
    )
