import pytest

from holdfast.errors import AbsentError, MirrorAccessError, MirrorError, MirrorNameError, MirrorUnavailableError
from holdfast.remote.failures import answer_in, failure_of, failure_of_opening

SECRET = "hunter2"
# As obstore words it, with a token in the address.
SENT = f"Error performing PUT https://a:{SECRET}@account.example.org/c/x?sv=1&sig={SECRET} in 1.2s, after 5 retries"
DEBUG = f'\n\nDebug source:\nGeneric {{\n uri: "https://account.example.org/c/x?sig={SECRET}",\n inner: Http(\n'


def answered(status: str, code: str = "", message: str = "") -> str:
    body = (
        f"<Error><Code>{code}</Code><Message>{message}</Message><Signature>{SECRET}</Signature></Error>" if code else ""
    )
    return f"Generic S3 error: {SENT} - Server returned non-2xx status code: {status}: {body}{DEBUG}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (answered("503 Service Unavailable", "SlowDown", "please"), "503 SlowDown (please)"),
        (answered("404 Not Found"), "404"),
        (
            answered("400 Bad Request", "X", f"see https://b:{SECRET}@c/d?sig={SECRET} there"),
            "400 X (see https://c/d there)",
        ),
        (answered("400 Bad Request", "X", "one\ntwo\x1b[31m"), "400 X (one)"),
        (f"Generic S3 error: {SENT} - HTTP error: error sending request{DEBUG}", "HTTP error: error sending request"),
        (f'Generic S3 error: {SENT} - HTTP error{DEBUG} message: "Connection refused",', "Connection refused"),
        (f"Invalid address https://b:{SECRET}@c/d?sig={SECRET}", "Invalid address https://c/d"),
        ("", "no reason was given"),
    ],
)
def test_of_an_answer_nothing_is_shown_that_could_be_secret(text: str, words: str) -> None:
    assert answer_in(text).words == words
    for error in (
        failure_of("s3://bucket", "reading x", text, of_object=False),
        failure_of_opening("s3://bucket", text),
    ):
        assert words in str(error) and SECRET not in f"{error}{error.hint}"


@pytest.mark.parametrize(
    ("text", "of_object", "error"),
    [
        (answered("404 Not Found", "NoSuchKey"), True, AbsentError),
        (answered("404 Not Found"), True, AbsentError),
        ("Bulk delete request failed for key x: The specified blob does not exist. (code: 404)", True, AbsentError),
        (answered("404 Not Found", "NoSuchUpload"), False, MirrorUnavailableError),
        (answered("404 Not Found"), False, MirrorAccessError),
        (answered("400 Bad Request", "OutOfRangeInput"), False, MirrorAccessError),
        (answered("400 Bad Request", "RequestTimeout"), False, MirrorUnavailableError),
        (answered("400 Bad Request", "InvalidBlockList"), False, MirrorUnavailableError),
        (answered("501 Not Implemented", "NotImplemented"), False, MirrorAccessError),
        (f"{SENT} - HTTP error{DEBUG} error: InvalidMessage(InvalidContentType)", False, MirrorAccessError),
        ("'az account get-access-token' command failed: Azure Cli not installed", False, MirrorAccessError),
        (f'{SENT}{DEBUG} error: "failed to lookup: Name or service not known",', True, MirrorNameError),
        (
            f'{SENT}{DEBUG} error: "failed to lookup: Temporary failure in name resolution",',
            True,
            MirrorUnavailableError,
        ),
        (answered("404 Not Found", "NoSuchBucket"), True, MirrorAccessError),
        (answered("404 Not Found", "ContainerNotFound"), False, MirrorAccessError),
        (answered("403 Forbidden", "UserRateLimitExceeded"), False, MirrorUnavailableError),
        (answered("403 Forbidden", "SignatureDoesNotMatch"), False, MirrorAccessError),
        (answered("401 Unauthorized"), False, MirrorAccessError),
        (answered("301 Moved Permanently", "PermanentRedirect"), False, MirrorAccessError),
        (
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
            False,
            MirrorAccessError,
        ),
        (answered("400 Bad Request", "AuthorizationHeaderMalformed"), False, MirrorAccessError),
        (answered("507 Insufficient Storage", "XMinioStorageFull"), False, MirrorUnavailableError),
        (f"{SENT} - HTTP error{DEBUG} invalid peer certificate: UnknownIssuer", False, MirrorAccessError),
        ("anything else", True, MirrorUnavailableError),
    ],
)
def test_what_passes_is_told_from_what_does_not_and_from_what_is_absent(
    text: str, of_object: bool, error: type[MirrorError]
) -> None:
    assert type(failure_of("s3://bucket", "reading x", text, of_object=of_object)) is error


def test_what_can_be_done_is_said() -> None:
    unknown = f'{SENT}{DEBUG} error: "failed to lookup: Name or service not known",'
    for text, words in (
        (unknown, "no server is known by the name account.example.org look at mirror_endpoint"),
        (answered("507 Insufficient Storage", "XMinioStorageFull"), "it has no room, or no quota make room there"),
        (answered("403 Forbidden", "QuotaExceeded"), "it has no room, or no quota make room there"),
        (answered("403 Forbidden", "RequestTimeTooSkewed"), "set this machine's clock"),
        (answered("501 Not Implemented", "NotImplemented"), "conditional writes"),
        ('Encountered object with invalid path: Path "p/a//b" contained empty path segment', "delete it, or give"),
    ):
        error = failure_of("s3://bucket", "reading x", text, of_object=False)
        assert words in f"{error} {error.hint}" and SECRET not in f"{error}{error.hint}"


def test_a_range_beyond_the_end_is_told() -> None:
    assert answer_in(answered("416 Range Not Satisfiable", "InvalidRange")).is_beyond_the_end
    assert answer_in("Wanted range starting at 10, but object was only 10 bytes long").is_beyond_the_end
    assert not answer_in(answered("404 Not Found")).is_beyond_the_end
