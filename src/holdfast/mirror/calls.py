"""The calls of a start to its mirror, as training makes them: through a process of their own, and as often as it takes.

A store that does not answer is asked again, until nothing has come for ten minutes; one of a name that nobody knows,
which is most likely mistyped, for one.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from holdfast import errors
from holdfast.errors import DamagedCheckpointError, HoldfastError, MirrorError, MirrorNameError, MirrorUnavailableError
from holdfast.mirror import child
from holdfast.mirror.seen import Remote, Seen
from holdfast.remote.terms import Claimed
from holdfast.store.folder import Folder
from holdfast.text import shown

_MODULE = "holdfast.mirror.start"
PATIENCE_SECONDS = 600.0
"""The time for which a store that does not answer is asked again."""
NAME_PATIENCE_SECONDS = 60.0
"""The time for which one is whose name nobody knows: for a network that is not there yet."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_SHOW_SECONDS = 1.0
_END_SECONDS = 2.0
# A process that ends by itself before it says anything does so the next time as well.
_MOST_SILENT_ENDS = 3
_MOST_LINE = 64 << 20
# What the process may say went wrong; nothing else of its answers becomes a class.
_KINDS = {
    kind.__name__: kind
    for kind in (
        errors.AbsentError,
        errors.ConfigError,
        errors.DamagedCheckpointError,
        errors.MirrorAccessError,
        errors.MirrorNameError,
        errors.MirrorTakenError,
        errors.MirrorUnavailableError,
        errors.NoSpaceError,
        errors.UnsupportedError,
    )
}


@dataclass(frozen=True)
class Doing:
    """The call that a start waits for, for people to see. Times are seconds since the epoch.

    Args:
        url: The address of the mirror.
        doing: What it is: `looking`, `claiming`, `pulling`.
        step: The step of the checkpoint that is pulled; None for none.
        bytes: Those of it that are here.
        of: Those that it has.
        failing_since: The time of the first try that failed and that nothing has come after.
        why: The reason of the last failure.
        next_try_at: The time of the next try.
        gives_up_at: The time at which no other try is made, unless something has come by then.
    """

    url: str
    doing: str
    step: int | None = None
    bytes: int = 0
    of: int = 0
    failing_since: float | None = None
    why: str = ""
    next_try_at: float | None = None
    gives_up_at: float | None = None


class Calls:
    """The mirror of one start. Use it as a context manager: its process ends with it.

    Args:
        url: The address of the mirror.
        endpoint: The address of the server; None: the cloud's own.
        region: The region of the bucket; None: as the environment has it.
        root: The run directory, held open.
        show: Shows what is being waited for; called once a second or so.
    """

    def __init__(
        self, url: str, endpoint: str | None, region: str | None, root: Folder, show: Callable[[Doing], None]
    ) -> None:
        self.url = url
        self._root = root
        self._show = show
        self._opening = {"url": url, "endpoint": endpoint, "region": region, "fd": root.fd, "path": str(root.path)}
        self._process: subprocess.Popen[bytes] | None = None
        self._silent_ends = 0
        self._unread = b""
        self._heard_at = self._progress_at = time.monotonic()

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def look(self, run: str, token: str) -> Seen:
        """Looks at the mirror.

        Args:
            run: The run that is to be seen where the place belongs to none yet.
            token: The identity of the start, whose own claims are passed over.

        Raises:
            MirrorError: It cannot be looked at.
        """
        return Seen.of(self._call(Doing(self.url, "looking"), "look", run=run, token=token))

    def claim(self, run: str, token: str, parent: str | None, least: int) -> Claimed:
        """Claims a run, by what was seen last.

        Args:
            run: The identity of the run.
            token: The identity of the start.
            parent: The attempt that it goes on from; None where it begins anew.
            least: The least number that its term may have.

        Raises:
            MirrorTakenError: The place belongs to another run by now.
            MirrorError: It cannot be claimed.
        """
        claim = {"run": run, "token": token, "host": socket.gethostname(), "parent": parent, "least": least}
        try:
            return Claimed(**self._call(Doing(self.url, "claiming"), "claim", tries_again=False, **claim))
        except MirrorUnavailableError:
            return Claimed(None, is_current=False)  # it may be claimed all the same: the next look shows it

    def pull(self, remote: Remote) -> Path:
        """Brings a checkpoint into the run directory, and returns its path there.

        Raises:
            AbsentError: It is not there any more.
            DamagedCheckpointError: Something of it is not what was sent.
            MirrorError: It does not come.
            NoSpaceError: The disk has no room for it.
            OSError: The disk does not take it.
        """
        doing = Doing(self.url, "pulling", remote.step, 0, remote.size)
        return self._root.path / str(self._call(doing, "pull", key=list(remote.key)))

    def _call(self, doing: Doing, verb: str, *, tries_again: bool = True, **arguments: Any) -> Any:
        since, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                if self._process is None:
                    self._begin()
                    self._answer(doing, {"verb": "open", **self._opening})
                return self._answer(doing, {"verb": verb, **arguments})
            except MirrorUnavailableError as error:
                if self._progress_at > since:
                    since, pause = self._progress_at, _FIRST_PAUSE
                self._end()
                if self._silent_ends == _MOST_SILENT_ENDS:
                    hint = f"it is run by {sys.executable}; what it has printed is the reason"
                    raise MirrorError(
                        f"{error}, before it said anything, each of {_MOST_SILENT_ENDS} times", hint=hint
                    ) from error
                if not tries_again:
                    raise
                patience = NAME_PATIENCE_SECONDS if isinstance(error, MirrorNameError) else PATIENCE_SECONDS
                left = patience - (time.monotonic() - since)
                if left < pause:
                    raise _given_up(self.url, error, patience) from error
                doing = self._wait(doing, pause, left, error)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait(self, doing: Doing, seconds: float, left: float, error: MirrorUnavailableError) -> Doing:
        """Waits before the next try, and shows it; returns what is shown from then on."""
        now, why = time.time(), f"{error}: {error.hint}" if error.hint else str(error)
        times = {"failing_since": doing.failing_since or now, "next_try_at": now + seconds, "gives_up_at": now + left}
        doing = Doing(**{**vars(doing), **times, "why": why})
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._show(doing)
            time.sleep(min(left, _SHOW_SECONDS))
        return doing

    def _begin(self) -> None:
        """Starts the process.

        Raises:
            MirrorUnavailableError: There is none to be had.
        """
        try:
            self._process = child.start(_MODULE, stdout=subprocess.PIPE, pass_fds=(self._root.fd,))
        except OSError as error:
            self._silent_ends += 1
            raise MirrorUnavailableError(f"the process that talks to the store cannot be started: {error}") from error
        self._unread = b""
        self._heard_at = time.monotonic()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # deep in the kernel, at a disk that hangs
                process.wait(_END_SECONDS)
        process.stdout.close()

    def _answer(self, doing: Doing, request: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            pass  # it has ended, which the reading says
        while True:
            line = self._line(doing)
            if "progress" in line:
                self._progress_at = time.monotonic()
                arrived = {"bytes": line["progress"], "failing_since": None, "why": "", "gives_up_at": None}
                doing = Doing(**{**vars(doing), **arrived})
                self._show(doing)
            elif "done" in line:
                return line["done"]
            else:
                _raise(line["error"])

    def _line(self, doing: Doing) -> dict[str, Any]:
        """Returns the next line of the process.

        Raises:
            MirrorUnavailableError: It has ended, or says nothing for as long as anybody waits.
        """
        process = self._process
        assert process is not None and process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(_SHOW_SECONDS):
                    self._show(doing)
                    if time.monotonic() - self._heard_at > PATIENCE_SECONDS:
                        raise MirrorUnavailableError(f"nothing has come for {PATIENCE_SECONDS:g} s")
                    continue
                data = os.read(process.stdout.fileno(), 1 << 20)
                if not data or len(self._unread) > _MOST_LINE:
                    code = process.wait()
                    self._silent_ends += code > 0  # and nobody has ended it
                    raise MirrorUnavailableError(f"the process that talks to the store has ended ({code})")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self._heard_at = time.monotonic()
        self._silent_ends = 0
        content: dict[str, Any] = json.loads(line)
        return content


def _raise(error: dict[str, Any]) -> NoReturn:
    message, hint, problems = error["message"], error.get("hint"), error.get("problems", [])
    if error["kind"] == "OSError":
        raise OSError(message)
    if error["kind"] == errors.ConfigError.__name__:
        raise errors.ConfigError(problems or [message], hint=hint)
    if error["kind"] == DamagedCheckpointError.__name__:
        raise DamagedCheckpointError(message, problems, hint=hint)
    kind: type[HoldfastError] = _KINDS.get(error["kind"], MirrorError)
    raise kind(message, hint=hint)


def _given_up(url: str, error: MirrorUnavailableError, patience: float) -> MirrorUnavailableError:
    return type(error)(
        f"{shown(url)} has not answered for {patience / 60:g} min: {error}",
        hint=f"{error.hint or 'start again when it does'}; to go on with what is on this disk, and leave the mirror"
        " alone: --resume local (in Python, resume='local')",
    )
