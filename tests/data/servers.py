"""Servers of files for tests, in threads of their own: a web server with faults on order, and a small Cloud Storage."""

import json
import re
import select
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    """What a server was asked for; `nth` counts the same question from 0."""

    name: str
    range: str
    nth: int


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for every thread, so that none can be left behind unnoticed
    request_queue_size = 64

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()
        self._counts, self._lock = Counter(), threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, name: str, byte_range: str) -> Request:
        with self._lock:
            request = Request(name, byte_range, self._counts[name, byte_range])
            self._counts[name, byte_range] += 1
            self.requests.append(request)
        return request

    def forget(self) -> None:
        """Forgets what it was asked for, so that faults come again."""
        self.requests.clear()
        self._counts.clear()

    def handle_error(self, request, client_address):
        """A client that goes away is a part of the tests."""


class FaultyServer(_Server):
    """A web server of `files`, name -> content.

    Attributes:
        faults: name -> (kind, how many times): what happens to the first requests of each range of a file. Kinds: a
            status such as "503"; "half" (the connection closes in the middle), "short" (a whole answer with fewer
            bytes), "reset", "drop" (no answer), "drip", "hang", "plain" (ranges are ignored), "flood" (also, and the
            file never ends), "endless" (a range whose content never ends), "shifted" (other bytes than asked for).
        targets: what was asked for, as it was written.
        tags: name -> ETag.
        latency: seconds before each answer.
    """

    def __init__(self):
        super().__init__(_FileHandler)
        self.faults: dict[str, tuple[str, int]] = {}
        self.tags: dict[str, str] = {}
        self.targets: list[str] = []
        self.latency = 0.0


class GoogleStorage(_Server):
    """The few calls of Cloud Storage's JSON interface that reading, listing and small writes need; any bucket."""

    def __init__(self):
        super().__init__(_GoogleHandler)
        self.generations: Counter[str] = Counter()

    def put(self, name: str, content: bytes) -> None:
        """Stores `bucket/object`."""
        self.files[name] = content
        self.generations[name] += 1


@contextmanager
def serving(server: _Server) -> Iterator[_Server]:
    """Runs a server; at the end its threads are gone."""
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        for connection in list(server.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # clients keep theirs open
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self):
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        """Not to the screen."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def bounds(self, size: int) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match[1]), min(int(match[2]) + 1, size)) if match else None


class _FileHandler(_Handler):
    def do_GET(self):
        server = self.server
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        server.targets.append(self.path)
        request = server.note(name, self.headers.get("Range", ""))
        server.closing.wait(server.latency)
        kind, times = server.faults.get(name, ("", 0))
        kind = kind if request.nth < times else ""
        if kind.isdigit() or name not in server.files:
            self.answer(int(kind or 404))
            return
        content = server.files[name]
        bounds = None if kind in ("plain", "flood") else self.bounds(len(content))
        tag = {"ETag": server.tags[name]} if name in server.tags else {}
        if bounds and bounds[0] >= len(content):
            self.answer(416, Content_Range=f"bytes */{len(content)}", **tag)
            return
        start, end = bounds or (0, len(content))
        if kind == "short":
            end -= (end - start) // 2
        if kind == "shifted":
            start, end = start + 1, end + 1
        where = {"Content_Range": f"bytes {start}-{end - 1}/{len(content)}"} if bounds else {}
        body = content[start:end]
        if kind == "endless":
            self._never_end(where)
        elif kind in ("half", "reset", "drop", "drip", "hang", "flood"):
            self._break(kind, body, where)
        else:
            self.answer(206 if bounds else 200, body, **where, **tag)

    def _never_end(self, where: dict[str, str]) -> None:
        self.close_connection = True
        self.send_response(206)
        self.send_header("Content-Range", where["Content_Range"])
        self.end_headers()
        sent = 0
        while sent < 2**30 and not self.server.closing.is_set():
            try:
                sent += self.wfile.write(bytes(2**16))
            except OSError:  # the client has gone away
                return

    def _break(self, kind: str, body: bytes, where: dict[str, str]) -> None:
        self.close_connection = True
        if kind == "drop":
            return
        if kind != "hang":
            self.send_response(206 if where else 200)
            for name, value in where.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
        if kind in ("hang", "flood"):
            while not (self.server.closing.wait(0.01) or select.select([self.connection], [], [], 0)[0]):
                pass  # until the client goes away
            return
        if kind == "drip":
            for byte in body:
                if self.server.closing.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))
        self.wfile.write(body[: len(body) // 2])
        if kind == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class _GoogleHandler(_Handler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket, name = re.search(r"/b/([^/]+)/o/?(.*)", url.path).groups()
        name = urllib.parse.unquote(name)
        self.server.note(f"{bucket}/{name}", self.headers.get("Range", ""))
        if not name:
            self._send(self._listing(bucket, query.get("prefix", ""), query.get("delimiter", "")))
        elif f"{bucket}/{name}" not in self.server.files:
            self.answer(404)
        elif query.get("alt") == "media":
            content = self.server.files[f"{bucket}/{name}"]
            start, end = self.bounds(len(content)) or (0, len(content))
            self.answer(206, content[start:end]) if start < len(content) else self.answer(416)
        else:
            self._send(self._describe(bucket, name))

    def do_POST(self):
        bucket = re.search(r"/b/([^/]+)/o", self.path)[1]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        mark = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        described, content = (part.split(b"\n\n", 1)[1] for part in re.split(b"\r?\n?--" + mark, body)[1:3])
        name = json.loads(described)["name"]
        self.server.put(f"{bucket}/{name}", content)
        self._send(self._describe(bucket, name))

    def _send(self, value: dict) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe(self, bucket: str, name: str) -> dict:
        path = f"{bucket}/{name}"
        size, generation = len(self.server.files[path]), self.server.generations[path]
        times = dict.fromkeys(("timeCreated", "updated"), "2024-01-01T00:00:00.000Z")
        return dict(
            kind="storage#object", bucket=bucket, name=name, size=str(size), generation=str(generation), **times
        )

    def _listing(self, bucket: str, prefix: str, delimiter: str) -> dict:
        names = [path.removeprefix(f"{bucket}/") for path in sorted(self.server.files) if path.startswith(f"{bucket}/")]
        names = [name for name in names if name.startswith(prefix)]
        deep = [name for name in names if delimiter and delimiter in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].partition("/")[0] + "/" for name in deep}
        items = [self._describe(bucket, name) for name in names if name not in deep]
        return dict(kind="storage#objects", items=items, prefixes=sorted(folders))
