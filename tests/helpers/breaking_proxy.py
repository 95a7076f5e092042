"""A proxy on this machine that breaks on purpose, between a client and a server of the tests.

`python breaking_proxy.py PORT UPSTREAM [gcs] [delay_seconds=0.03] [bytes_per_second=1e7]` is one of its own; a
`BreakingProxy` is one in this process. With `gcs` it speaks what GCS's XML interface has beyond S3's, in front of a
server of S3.
"""

import http.client
import http.server
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

_OF_REQUESTS = ("connection", "host", "transfer-encoding", "content-length", "expect")
_OF_ANSWERS = ("connection", "transfer-encoding", "content-length", "date", "server")
_ERRORS = {
    "SlowDown": 503,
    "InternalError": 500,
    "ExpiredToken": 400,
    "AccessDenied": 403,
    "RequestTimeTooSkewed": 403,
    "NoSuchBucket": 404,
    "QuotaExceeded": 403,
}


@dataclass
class Rule:
    """What becomes of the next requests that match.

    Args:
        match: A pattern in `METHOD /path?query`, as people read it: clients escape in several ways.
        do: `error` (a code of `_ERRORS` is answered, nothing is done), `cut` (the connection is closed after so many
            bytes of the request), `hang` (nothing is answered until the proxy ends), `lost` (it is done, and the answer
            is lost), `twice` (it is done twice; the second answer is given), `late` (the connection is closed, and it
            is done when the proxy is told), `short` (the answer is cut after so many bytes).
        argument: The code, or the number of bytes.
        times: The number of requests that it is for.
        signed: What is in the request's signature: the key that it was signed with.
    """

    match: str
    do: str
    argument: Any = None
    times: int = 1
    signed: str = ""


@dataclass
class _State:
    rules: list[Rule] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    late: list[Callable[[], None]] = field(default_factory=list)
    page_size: int = 0
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    sent_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def rule_for(self, line: str, signature: str) -> Rule | None:
        with self.lock:
            self.log.append(line)
            for rule in self.rules:
                if rule.times > 0 and re.search(rule.match, line) and rule.signed in signature:
                    rule.times -= 1
                    return rule
        return None

    def pass_bytes(self, count: int) -> None:
        """Waits until the line has carried so many bytes, of all connections together."""
        if not self.bytes_per_second:
            return
        with self.lock:
            self.sent_until = max(self.sent_until, time.monotonic()) + count / self.bytes_per_second
            left = self.sent_until - time.monotonic()
        self.closing.wait(left)


class BreakingProxy:
    """The proxy, while its context lasts."""

    def __init__(self, upstream: int, *, gcs: bool = False, port: int = 0) -> None:
        self.state = _State()
        handler = type("Handler", (_Handler,), {"state": self.state, "upstream": upstream, "gcs": gcs})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.request_queue_size = 128
        self._server.server_bind()
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> list[str]:
        """The requests so far."""
        with self.state.lock:
            return [*self.state.log]

    def break_on(self, *rules: Rule) -> None:
        """Replaces all rules, and begins a new log."""
        with self.state.lock:
            self.state.rules[:] = rules
            self.state.log.clear()

    def do_the_late_ones(self) -> None:
        """Does what has come and was kept."""
        with self.state.lock:
            late = [*self.state.late]
            self.state.late.clear()
        for request in late:
            request()

    def __enter__(self) -> "BreakingProxy":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.state.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    state: _State
    upstream: int
    gcs: bool
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client has left

    def _any(self) -> None:
        rule = self.state.rule_for(unquote(f"{self.command} {self.path}"), self.headers.get("authorization") or "")
        size = int(self.headers.get("content-length") or 0)
        do = rule.do if rule else ""
        if rule and do == "cut":
            self.rfile.read(min(size, rule.argument))
            return self._close()
        received = bytearray()
        while len(received) < size:
            part = self.rfile.read(min(64 << 10, size - len(received)))
            if not part:
                return self._close()
            self.state.pass_bytes(len(part))
            received += part
        body = bytes(received)
        if self.state.delay_seconds:
            self.state.closing.wait(self.state.delay_seconds)
        if do == "hang":
            self.state.closing.wait()
            return self._close()
        if rule and do == "error":
            text = f'<?xml version="1.0"?><Error><Code>{rule.argument}</Code><Message>by the proxy</Message></Error>'
            return self._answer(_ERRORS[rule.argument], {}, text.encode())
        if do == "late":
            self.state.late.append(lambda: self._ask(body) and None)
            return self._close()
        if do == "twice":
            self._ask(body)
        status, headers, content = self._ask(body)
        if do == "lost":
            return self._close()
        self._answer(status, headers, content, rule.argument if rule and do == "short" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_REQUESTS}
        headers["Host"] = self.headers.get("host", "localhost")
        if self.gcs and headers.pop("x-goog-if-generation-match", None) == "0":
            headers["If-None-Match"] = "*"
        path = self.path
        if self.state.page_size and "list-type=2" in path:
            path += f"&max-keys={self.state.page_size}"
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            given = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_ANSWERS}
            if self.command == "HEAD" and (length := answer.getheader("content-length")):
                given["Content-Length"] = length
            if self.gcs and answer.status < 300:
                given["x-goog-generation"] = str(time.time_ns())
            return answer.status, given, content
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, most: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        view = memoryview(content)[:most]
        while view:
            self.state.pass_bytes(min(len(view), 64 << 10))
            self.wfile.write(view[: 64 << 10])
            view = view[64 << 10 :]
        if most is not None and most < len(content):
            self.wfile.flush()
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


if __name__ == "__main__":
    with BreakingProxy(int(sys.argv[2]), gcs="gcs" in sys.argv, port=int(sys.argv[1])) as proxy:
        for word in sys.argv[3:]:
            name, _, value = word.partition("=")
            if value:
                setattr(proxy.state, name, float(value))
        threading.Event().wait()
