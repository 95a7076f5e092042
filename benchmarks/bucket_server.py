"""A server of S3 that takes as little of the machine as it can: what is measured beside it has the rest.

`python -m benchmarks.bucket_server PORT` serves one bucket, whatever it is called, from memory. A request to
`/settings?NAME=VALUE` sets one of `Settings`: it waits for nothing itself.
"""

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

HEAD_BYTES = 4 << 20
"""The bytes that are kept of an object where the rest is forgotten: it is read back as if they came again and again."""

_LIMIT_SECONDS = 30.0
_PIECE = 1 << 20
# What a line that is slow carries at once.
_SLOW_PIECE = 32 << 10
_TAG = 'ETag: "x"\r\n'


@dataclass
class Settings:
    """Slowness, and what is kept.

    Args:
        delay: Seconds that each answer takes longer.
        rate: Bytes a second of all requests and answers together; 0 for as many as there can be.
        forget: 1 has the beginning of each new object kept, and no more.
    """

    delay: float = 0.0
    rate: float = 0.0
    forget: float = 0.0


@dataclass
class _Part:
    size: int
    content: bytearray


@dataclass
class _Bucket:
    settings: Settings = field(default_factory=Settings)
    objects: dict[str, list[_Part]] = field(default_factory=dict)
    uploads: dict[str, dict[int, _Part]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent_until: float = 0.0

    def pieces(self, size: int) -> int:
        """Waits until the line has carried some of so many bytes, and returns how many."""
        if not self.settings.rate:
            return min(size, _PIECE)
        size = min(size, _SLOW_PIECE)
        with self.lock:
            self.sent_until = max(self.sent_until, time.monotonic()) + size / self.settings.rate
            until = self.sent_until
        time.sleep(max(0.0, until - time.monotonic()))
        return size


def address(port: int) -> str:
    """Returns the endpoint of a server."""
    return f"http://127.0.0.1:{port}"


@contextmanager
def serving() -> Iterator[int]:
    """Runs a server in a process of its own until the context ends, and gives its port when it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bucket_server", str(port)])
    try:
        end = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                tell(port)
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def tell(port: int, **settings: float) -> None:
    """Changes settings of a server; what is under way ends by the new ones."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_SECONDS)
    connection.request("POST", "/settings?" + "&".join(f"{name}={value}" for name, value in settings.items()))
    connection.getresponse().read()
    connection.close()


def main() -> None:
    """Serves until the process is killed."""
    bucket = _Bucket()
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_serve, args=(connection, bucket), daemon=True).start()


def _serve(connection: socket.socket, bucket: _Bucket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unread, scratch = bytearray(), memoryview(bytearray(_PIECE))
    with connection, suppress(OSError):
        while True:
            while (end := unread.find(b"\r\n\r\n")) < 0:
                if not (more := connection.recv(64 << 10)):
                    return
                unread += more
            request = _Request(bytes(unread[:end]).decode())
            del unread[: end + 4]
            part = _received(connection, bucket, request, unread, scratch)
            status, headers, content = _answer(bucket, request, part)
            if request.path != "/settings":
                time.sleep(bucket.settings.delay)
            _send(connection, bucket, f"HTTP/1.1 {status} -\r\n{headers}\r\n".encode(), content)


class _Request:
    def __init__(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        self.method, address, _ = first.split(" ")
        self.path, _, query = address.partition("?")
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.key = unquote(self.path.lstrip("/")).partition("/")[2]
        self.size = int(self.headers.get("content-length", 0))


def _received(
    connection: socket.socket, bucket: _Bucket, request: _Request, unread: bytearray, scratch: memoryview
) -> _Part:
    """Takes the body of a request: as much as is kept to its place, and the rest to nowhere, without a copy."""
    is_first = request.query.get("partNumber", "1") == "1"
    kept = min(request.size, HEAD_BYTES * is_first) if bucket.settings.forget else request.size
    part = _Part(request.size, bytearray(kept))
    at = min(len(unread), request.size)
    early = min(at, kept)
    part.content[:early] = unread[:early]
    del unread[:at]
    view = memoryview(part.content)
    while at < request.size:
        size = bucket.pieces(request.size - at)
        while size:
            if at < kept:
                count = connection.recv_into(view[at:], min(size, kept - at))
            else:
                count = connection.recv_into(scratch, size, socket.MSG_TRUNC)
            if not count:
                raise ConnectionError
            at, size = at + count, size - count
    return part


def _send(connection: socket.socket, bucket: _Bucket, head: bytes, content: list[memoryview]) -> None:
    size = sum(map(len, content))
    connection.sendall(head.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % size))
    for view in content:
        while view:
            count = bucket.pieces(len(view))
            connection.sendall(view[:count])
            view = view[count:]


def _answer(bucket: _Bucket, request: _Request, part: _Part) -> tuple[int, str, list[memoryview]]:
    match request.method:
        case "POST" if request.path == "/settings":
            for name, value in request.query.items():
                setattr(bucket.settings, name, float(value))
            return 200, "", []
        case "POST":
            return 200, "", [memoryview(_multipart(bucket, request).encode())]
        case "PUT" if "uploadId" in request.query:
            bucket.uploads[request.query["uploadId"]][int(request.query["partNumber"])] = part
            return 200, _TAG, []
        case "PUT":
            with bucket.lock:
                if request.headers.get("if-none-match") == "*" and request.key in bucket.objects:
                    return 412, "", []
                bucket.objects[request.key] = [part]
            return 200, _TAG, []
        case "DELETE":
            bucket.objects.pop(request.key, None)
            return 204, "", []
        case _ if "list-type" in request.query:
            return 200, "", [memoryview(_listing(bucket, request.query.get("prefix", "")).encode())]
        case _:
            return _range(bucket, request)


def _multipart(bucket: _Bucket, request: _Request) -> str:
    if "uploads" in request.query:
        with bucket.lock:
            name = str(len(bucket.uploads))
            bucket.uploads[name] = {}
        kind, content = "InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>"
    else:
        parts = bucket.uploads[request.query["uploadId"]]
        bucket.objects[request.key] = [parts.pop(number) for number in sorted(parts)]
        kind, content = "CompleteMultipartUploadResult", '<ETag>"x"</ETag>'
    return f"<{kind}>{content}</{kind}>"


def _listing(bucket: _Bucket, prefix: str) -> str:
    items = [
        f"<Contents><Key>{key}</Key><Size>{sum(part.size for part in parts)}</Size><ETag>x</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, parts in sorted(bucket.objects.items())
        if key.startswith(prefix)
    ]
    return f"<ListBucketResult>{''.join(items)}</ListBucketResult>"


def _range(bucket: _Bucket, request: _Request) -> tuple[int, str, list[memoryview]]:
    parts = bucket.objects.get(request.key)
    if parts is None:
        return 404, "", [memoryview(b"<Error><Code>NoSuchKey</Code></Error>")]
    size = sum(part.size for part in parts)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    begin, end = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
    if wanted and begin >= size:
        return 416, "", []
    headers = f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n{_TAG}Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    return 206 if wanted else 200, headers, list(_content(parts, begin, end))


def _content(parts: list[_Part], begin: int, end: int) -> Iterator[memoryview]:
    """Yields a range of an object; of one that was forgotten its beginning, again and again."""
    if sum(len(part.content) for part in parts) < sum(part.size for part in parts):
        head = memoryview(parts[0].content)
        while begin < end:
            first = begin % len(head)
            yield (piece := head[first : first + end - begin])
            begin += len(piece)
        return
    for part in parts:
        if piece := memoryview(part.content)[max(0, begin) : max(0, end)]:
            yield piece
        begin, end = begin - part.size, end - part.size


if __name__ == "__main__":
    main()
