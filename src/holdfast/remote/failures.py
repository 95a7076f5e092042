"""The meaning of a bucket's refusal, from the text that obstore makes of it.

The text has the request's address, with a signature in it where a token is part of it, and the whole answer. None of
it goes further than this file but the status, the code and the message of the answer, or the cause of there being none.
"""

import re
from dataclasses import dataclass

from holdfast.errors import AbsentError, MirrorAccessError, MirrorError, MirrorNameError, MirrorUnavailableError
from holdfast.text import one_line

_STATUS = re.compile(r"(?:status code: |\(code: )([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]{1,400})")  # what may follow it is what was signed
_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([A-Za-z0-9.-]{1,255})")
_CAUSE = re.compile(r'(?:message|error): "([^"\n]{1,200})"')
_FRAME = re.compile(r"(?:Generic \w+ error: |Error performing .* - )", re.DOTALL)
_QUERY = re.compile(r"\?\S*")
_USER = re.compile(r"//[^/@\s]*@")
_DEBUG = "\n\nDebug source"
# Of a server that answers with the whole object instead.
_BEYOND = "Wanted range starting at"

_NO_PATH = "Encountered object with invalid path"

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "InvalidResourceName")
# Refusals by their status that pass: a store that is busy says so in many ways.
_BUSY = ("SlowDown", "Throttl", "Quota", "RateLimit", "TooManyRequests", "ServerBusy")
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "RequestExpired")
_CLOCK = ("RequestTimeTooSkewed", "RequestInTheFuture")
_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")
_FULL = ("StorageFull", "Quota", "InsufficientStorage")
_UNKNOWN_NAME = ("Name or service not known", "No address associated with hostname", "nodename nor servname")
# Of what a store calls the request's own fault, what the next request need not have: its bytes were lost on the way.
_CUT_SHORT = ("Timeout", "Incomplete", "Digest", "Mismatch", "Md5", "BlockList", "NoSuchUpload")

_SERVER = (
    "is it the right server? Look at mirror_endpoint: http or https, the port, and for Azure's emulator the account"
)
_CREDENTIALS = (
    "look at the credentials: those of the environment come before a profile's, and those before the instance's"
)

_ENVIRONMENT = (
    "look at what the environment says: the credentials (is there a line break in one?), and all else that begins"
    " with AWS_, GOOGLE_ or AZURE_"
)
CONDITIONAL = "two trainings could not be told apart there; use one with conditional writes (If-None-Match)"
"""The way out where a store stores an object where there is one."""


@dataclass(frozen=True)
class Answer:
    """All that is known of a request that went wrong.

    Args:
        status: The status of the answer; None where none came.
        code: The store's own word for it; empty where it has none.
        words: The words for people.
        is_beyond_the_end: True where a range was asked for of which the object has no byte.
    """

    status: int | None
    code: str
    words: str
    is_beyond_the_end: bool = False

    @property
    def is_absent(self) -> bool:
        """True where the object is not there. Where its bucket is not, nothing is known of the object."""
        return self.status == 404 and self.code not in _NO_BUCKET


def answer_in(text: str) -> Answer:
    """Reads the text of an error of obstore's, and leaves out of it what is not to be shown."""
    plain, _, debug = text.partition(_DEBUG)
    status, code, message = _STATUS.search(plain), _CODE.search(plain), _MESSAGE.search(plain)
    if status is not None:
        words = " ".join(filter(None, (status[1], code and code[1], message and f"({_public(message[1])})")))
        return Answer(int(status[1]), code[1] if code else "", words, status[1] == "416")
    causes = _CAUSE.findall(debug)
    first = _FRAME.sub("", plain) or "no reason was given"
    return Answer(None, "", _public(causes[-1] if causes else first), _BEYOND in plain)


def failure_of(url: str, what: str, text: str, *, of_object: bool) -> MirrorError:
    """Returns the error that an error of obstore's is.

    Args:
        url: The place.
        what: What was to be done, such as `listing a/`.
        text: The error's text.
        of_object: One object was asked for: that it is absent is an answer. What is sent cannot be absent.
    """
    answer = answer_in(text)
    line = f"{url}: {what} failed: {answer.words}"
    if any(words in answer.words for words in _UNKNOWN_NAME):
        host = _HOST.search(text)
        return MirrorNameError(
            f"{url}: no server is known by the name {host[1] if host else 'that it has'}",
            hint="look at mirror_endpoint, the region, or the account's name; or has this machine no network?",
        )
    if of_object and answer.is_absent:
        return AbsentError(line)
    if answer.code in _NO_BUCKET:
        return MirrorAccessError(f"{url}: there is no such bucket", hint="make it, or correct the name")
    if answer.code in _CLOCK:
        return MirrorAccessError(line, hint="set this machine's clock: the store takes no request of another time")
    if answer.code in _REGION or answer.status in (301, 307) or "incorrectly configured region" in text:
        return MirrorAccessError(line, hint="mirror_region: or AWS_REGION says where the bucket is")
    if answer.code in _EXPIRED:
        return MirrorAccessError(line, hint="the credentials have run out: renew them")
    if any(word in answer.code for word in _FULL) or answer.status == 507:
        return MirrorUnavailableError(
            f"{line}: it has no room, or no quota", hint="make room there, or have its quota raised"
        )
    if any(word in answer.code for word in _BUSY):
        return MirrorUnavailableError(line)
    if answer.status == 501:
        return MirrorAccessError(line, hint=CONDITIONAL)
    if answer.status in (401, 403):
        return MirrorAccessError(line, hint=_CREDENTIALS)
    if answer.status == 400 and "Auth" in answer.code:
        return MirrorAccessError(line, hint=_CREDENTIALS)
    if answer.status in (400, 404, 405) and not any(word in answer.code for word in _CUT_SHORT):
        return MirrorAccessError(line, hint=_SERVER)
    if "certificate" in text:
        return MirrorAccessError(line, hint="its certificate is not one that this machine believes")
    if "InvalidContentType" in text:  # of what should have been TLS
        hint = "mirror_endpoint: http://..., if all may go over the network in plain text"
        return MirrorAccessError(f"{url}: the server does not speak https", hint=hint)
    if _NO_PATH in text:  # obstore gives no listing then
        return MirrorAccessError(line, hint="somebody has put that there: delete it, or give a prefix of its own")
    if "Azure Cli" in answer.words:
        return MirrorAccessError(line, hint="install `az`, and log in with `az login`")
    return MirrorUnavailableError(line)


def failure_of_opening(url: str, text: str) -> MirrorAccessError:
    """Returns the error that obstore's error is where a store could not even be made of what there is."""
    return MirrorAccessError(f"{url} cannot be opened: {answer_in(text).words}", hint=_ENVIRONMENT)


def failure_of_panic(url: str, error: BaseException) -> MirrorAccessError | None:
    """Returns the error for a panic of obstore, which is no `Exception`; None for any other end, such as Ctrl+C.

    It is what becomes of a text that cannot be part of a request.
    """
    if type(error).__name__ != "PanicException":
        return None
    return MirrorAccessError(f"{url}: no request can be made of what there is", hint=_ENVIRONMENT)


def _public(text: str) -> str:
    """Returns words as one short line without the parts of an address that may hold a secret."""
    return one_line(_USER.sub("//", _QUERY.sub("", text)))[:300]
