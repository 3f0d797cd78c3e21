"""Bounds on what clients may hold: connections, time, bytes. A slow or hostile one never shuts the others out.

Each request has a deadline for its head and one for its body, however slowly the bytes drip in. Where all places are
taken, the connection that has waited longest for its client gives way to the new one.
"""

import contextlib
import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONNECTIONS = 64  # at a time
IDLE, HEAD, BODY, ANSWER = 30.0, 10.0, 30.0, 30.0  # seconds between requests, and for each part of one
HEAD_BYTES = 2**17
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
BODY_BYTES = 2**28  # of all bodies that are being received


class TooMuch(Exception):
    """The bodies of all requests together are larger than this server holds."""


class BoundedServer(ThreadingHTTPServer):
    """A server whose connections are bounded in number and in time; its handler is a `BoundedHandler`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type["BoundedHandler"]):
        """Binds the address. Raises OSError where that cannot be."""
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._lock, self._bodies = threading.Lock(), 0
        self._receiving: dict[socket.socket, float] = {}  # connection -> since when its client is waited for
        super().__init__(address, handler)

    def process_request(self, request: Any, address: Any) -> None:
        """Handles a connection in a thread; where there are too many, in place of one whose client is slow."""
        if not self._free.acquire(blocking=False):
            self._give_way()
            if not self._free.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        super().process_request(request, address)

    def process_request_thread(self, request: Any, address: Any) -> None:
        """Gives the place back when the connection ends."""
        try:
            super().process_request_thread(request, address)
        finally:
            self._free.release()

    def _give_way(self) -> None:
        with self._lock:
            slowest = min(self._receiving, key=self._receiving.get, default=None)
            if slowest is not None:
                with contextlib.suppress(OSError):
                    slowest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and goes

    @contextlib.contextmanager
    def receiving(self, connection: socket.socket) -> Iterator[None]:
        """Marks a connection whose client is waited for."""
        with self._lock:
            self._receiving[connection] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._receiving.pop(connection, None)

    def hold(self, count: int) -> None:
        """Counts bytes of a body, or gives them back where `count` is negative. Raises TooMuch."""
        with self._lock:
            if count > 0 and self._bodies + count > BODY_BYTES:
                raise TooMuch
            self._bodies += count


class BoundedHandler(BaseHTTPRequestHandler):
    """One connection, with deadlines."""

    server: BoundedServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        """Waits for a request and answers it."""
        self._incoming.allow(IDLE, HEAD_BYTES)
        self._held = 0
        with contextlib.ExitStack() as self._head:
            self._head.enter_context(self.server.receiving(self.connection))
            try:
                there = self.rfile.peek(1)
            except TimeoutError:
                there = b""
            if not there:
                self.close_connection = True
                return
            self._incoming.allow(HEAD, HEAD_BYTES)
            try:
                super().handle_one_request()
            finally:
                self.server.hold(-self._held)

    def parse_request(self) -> bool:
        """Reads the head; what follows is an answer, for which the client waits.

        Bytes of the address that are not ASCII, as curl sends what is typed, are taken for percent-encoded ones.
        """
        self.raw_requestline = _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], self.raw_requestline)
        try:
            return super().parse_request()
        finally:
            self._head.close()

    def read_body(self, length: int) -> bytes:
        """Returns a body; one that ends early, or does not arrive in time, is shorter.

        Raises:
          TooMuch: other bodies leave no room for it.
        """
        self._incoming.allow(BODY, length)
        parts = []
        with self.server.receiving(self.connection), contextlib.suppress(TimeoutError):
            while length and (part := self.rfile.read1(min(length, 2**16))):
                self.server.hold(len(part))
                self._held += len(part)
                parts.append(part)
                length -= len(part)
        return b"".join(parts)

    def flush_headers(self) -> None:
        """Sends the head of an answer; it and what follows must be taken in a bounded time each."""
        self.connection.settimeout(ANSWER)
        super().flush_headers()


class _Incoming(io.RawIOBase):
    """What a client sends, up to a number of bytes and a point in time."""

    def __init__(self, connection: socket.socket):
        self._connection, self._until, self._left = connection, 0.0, 0

    def allow(self, seconds: float, count: int) -> None:
        """Sets what may still be received: in how many seconds, and how many bytes."""
        self._until, self._left = time.monotonic() + seconds, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._until - time.monotonic()
        if seconds <= 0 or self._left <= 0:
            raise TimeoutError("the client is too slow, or sends too much")
        self._connection.settimeout(seconds)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count
