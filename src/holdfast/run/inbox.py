"""Requests and answers on disk. A request's file goes away only after its answer is durable."""

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from holdfast.errors import WaitTimeoutError
from holdfast.run.directory import RunDirectory
from holdfast.run.request import MOST_BYTES, Answer, MalformedError, Request, decode_answer, decode_request
from holdfast.store import files, names
from holdfast.store.folder import Folder, Place, exists, status_of

_SUFFIX = ".json"
# Answers are kept for askers that come back late; the oldest beyond this many go when a run starts.
_ANSWERS_KEPT = 1000
_POLL_SECONDS = 0.05
# The errors of `files.read` for something that is no file of ours, and never will be. Other errors may pass.
_NO_FILE = (errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO)


class Inbox:
    """The pending requests of a run, and the place of their answers."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._reported: set[str] = set()

    def submit(self, request: Request) -> None:
        """Puts a request where the run will find it, durably."""
        files.replace(self._file(request.id), request.encode())

    def pending(self) -> tuple[list[Request], list[tuple[str, str]]]:
        """Returns the requests without an answer, oldest first; and the files that are none, each with the reason.

        Each is reported once. A file that is no request is removed; one that cannot be read at the moment is not.
        """
        requests, broken = [], []
        folder = self._directory.requests
        for name in folder.names():
            stem = name.removesuffix(_SUFFIX)
            if stem == name or not names.is_token(stem):
                continue
            try:
                request = decode_request(files.read(folder / name, limit=MOST_BYTES))
                if request.id != stem:
                    raise MalformedError("its identity is not its name")
                requests.append(request)
            except FileNotFoundError:
                continue
            except (OSError, MalformedError) as error:
                if name not in self._reported:
                    broken.append((name, str(error)))
                self._reported.add(name)
                if isinstance(error, MalformedError) or error.errno in _NO_FILE:
                    with suppress(OSError):
                        files.remove(folder / name)
        return sorted(requests, key=lambda request: (request.asked_at, request.id)), broken

    def answer(self, request: Request, answer: Answer) -> None:
        """Answers a request: the answer first, durably, then the request's file goes."""
        answer = replace(answer, claimed=self.claimed(request))
        files.replace(self._directory.answers / f"{request.id}{_SUFFIX}", answer.encode(request.id))
        with suppress(FileNotFoundError):
            files.remove(self._file(request.id))

    def claimed(self, request: Request) -> str:
        """Returns where the trigger file of a request is kept; an empty text where it had none, or none with text."""
        if request.door != "trigger_file":
            return ""
        try:
            with Folder.open(self._directory.claimed) as folder:
                kept = folder / request.id
                return str(kept.path.absolute()) if exists(kept) else ""
        except OSError:
            return ""

    def answer_to(self, request: str) -> Answer | None:
        """Returns the answer to the request of that id, if there is one already."""
        try:
            return decode_answer(files.read(self._directory.answers / f"{request}{_SUFFIX}", limit=MOST_BYTES))
        except (OSError, MalformedError):
            return None

    def wait(self, request: str, timeout: float | None, check: Callable[[], None]) -> Answer:
        """Waits for the answer to a request.

        Args:
            request: The request's id.
            timeout: Seconds to wait at most; None waits as long as the run is alive.
            check: Called between looks; raises when there is nothing to wait for any more.

        Raises:
            WaitTimeoutError: The time is up. The request stands.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if (answer := self.answer_to(request)) is not None:
                return answer
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"no answer within {timeout:g} s; the request {request} stands and may still be served",
                    hint="ask again with a longer timeout, or look at: holdfast status",
                )
            check()
            time.sleep(_POLL_SECONDS)

    def forget_old_answers(self) -> None:
        """Removes the oldest answers beyond a thousand."""
        folder = self._directory.answers
        places = [folder / name for name in folder.names() if name.endswith(_SUFFIX)]
        for place in sorted(places, key=_age)[:-_ANSWERS_KEPT]:
            with suppress(OSError):
                files.remove(place)

    def _file(self, request: str) -> Place:
        return self._directory.requests / f"{request}{_SUFFIX}"


def _age(place: Place) -> float:
    try:
        return status_of(place).st_mtime
    except OSError:
        return 0.0
