"""
Cheap callers: sessions with one call in flight each, all in one thread.

Calls are encoded before the measurement, and of a result only the message type is read. A call takes
the caller about 15 µs, a tenth of what a client with autobahn takes on the same two processors.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

import cbor2

FIRST_REQUEST = 1_000_000
"""The first request id; ids from here on have one length, so they can be replaced in encoded messages."""


class Transport(Protocol):
    """
    A WAMP transport with a serializer, over a blocking socket.

    Attributes:
        result: The first bytes of a RESULT message.
    """

    result: bytes

    def greet(self, connection: socket.socket, url: str) -> None:
        """Run the handshake of the transport."""

    def frame(self, message: Sequence[Any]) -> bytes:
        """Return an encoded message with its framing."""

    def id(self, request: int) -> bytes:
        """Return the encoded request id, as it occurs in a message."""

    def split(self, received: bytearray) -> tuple[int, int] | None:
        """Return the start and end of the first message, or None if it is incomplete."""

    def read(self, body: bytes) -> Any:
        """Return a decoded message."""


class RawSocketCbor:
    """RawSocket with CBOR."""

    result = b"\x84\x18\x32"

    def greet(self, connection: socket.socket, url: str) -> None:
        """Run the handshake: messages of up to 16 MiB, CBOR."""
        connection.sendall(b"\x7f\xf3\x00\x00")
        assert connection.recv(4, socket.MSG_WAITALL)[1] & 15 == 3

    def frame(self, message: Sequence[Any]) -> bytes:
        """Return an encoded message after its length."""
        body = cbor2.dumps(message)
        return struct.pack(">I", len(body)) + body

    def id(self, request: int) -> bytes:
        """Return the encoded request id, as it occurs in a message."""
        return struct.pack(">I", request)

    def split(self, received: bytearray) -> tuple[int, int] | None:
        """Return the start and end of the first message, or None if it is incomplete."""
        if len(received) < 4:
            return None
        end = 4 + int.from_bytes(received[:4], "big")
        return (4, end) if len(received) >= end else None

    def read(self, body: bytes) -> Any:
        """Return a decoded message."""
        return cbor2.loads(body)


class WebSocketJson:
    """WebSocket with JSON."""

    result = b"[50,"

    def greet(self, connection: socket.socket, url: str) -> None:
        """Run the opening handshake."""
        key = base64.b64encode(os.urandom(16)).decode()
        where = urlsplit(url)
        connection.sendall(
            f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: wamp.2.json\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1)
        assert b" 101 " in answer, answer

    def frame(self, message: Sequence[Any]) -> bytes:
        """Return a message as one text frame; the mask, which clients must send, is zero."""
        body = json.dumps(message, separators=(",", ":")).encode()
        size = len(body)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        return b"\x81" + head + bytes(4) + body

    def id(self, request: int) -> bytes:
        """Return the encoded request id, as it occurs in a message."""
        return b"%d" % request

    def split(self, received: bytearray) -> tuple[int, int] | None:
        """Return the start and end of the first message, or None if it is incomplete."""
        if len(received) < 2:
            return None
        size, start = received[1], 2
        if size > 125:
            wide = 2 if size == 126 else 8
            start += wide
            if len(received) < start:
                return None
            size = int.from_bytes(received[2:start], "big")
        return (start, start + size) if len(received) >= start + size else None

    def read(self, body: bytes) -> Any:
        """Return a decoded message."""
        return json.loads(body)


@dataclass(frozen=True)
class Template:
    """
    An encoded CALL message without its request id.

    Args:
        head: The bytes before the request id.
        tail: The bytes after the request id.
    """

    head: bytes
    tail: bytes


@dataclass(frozen=True)
class Turn:
    """
    The results of one measurement.

    Args:
        calls: Number of answered calls.
        rate: Calls per second.
        latencies: Latencies in seconds, sorted.
    """

    calls: int
    rate: float
    latencies: Sequence[float]

    def quantile(self, part: float) -> float:
        """Return a quantile of the latencies, in seconds."""
        return self.latencies[int(part * (len(self.latencies) - 1))]


class Callers:
    """
    Sessions at one router, joined for the body of a `with`.

    Args:
        url: URL of the router.
        transport: The transport and serializer.
        many: Number of sessions.
    """

    def __init__(self, url: str, transport: Transport, many: int) -> None:
        self._url = url
        self._transport = transport
        self._many = many
        self._selector = selectors.DefaultSelector()
        self._open: list[_Session] = []

    def __enter__(self) -> Callers:
        where = urlsplit(self._url)
        address = where.hostname or "", where.port or 0
        hello = [1, "realm1", {"roles": {"caller": {}}}]
        for _ in range(self._many):
            connection = socket.create_connection(address, 10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transport.greet(connection, self._url)
            session = _Session(connection)
            connection.sendall(self._transport.frame(hello))
            while (body := self._body(session)) is None:
                session.receive()
            assert self._transport.read(body)[0] == 2, body
            self._selector.register(connection, selectors.EVENT_READ, session)
            self._open.append(session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._selector.close()
        for session in self._open:
            session.connection.close()

    def template(self, uri: str, kwargs: dict[str, Any]) -> Template:
        """Return an encoded call of a procedure."""
        whole = self._transport.frame([48, FIRST_REQUEST, {}, uri, [], kwargs])
        head, _, tail = whole.partition(self._transport.id(FIRST_REQUEST))
        return Template(head, tail)

    def run(self, templates: Sequence[Template], seconds: float) -> Turn:
        """
        Call for some seconds; each session calls again as soon as it is answered.

        Raises:
            RuntimeError: A call was refused.
        """
        source = cycle(templates)
        began = time.perf_counter()
        end, latencies = began + seconds, []
        for session in self._open:
            self._send(session, source)
        waiting = len(self._open)
        while waiting:
            for key, _ in self._selector.select():
                session = key.data
                session.receive()
                body = self._body(session)
                if body is None:
                    continue
                now = time.perf_counter()
                if not body.startswith(self._transport.result):
                    self._check(body)
                latencies.append(now - session.sent)
                if now < end:
                    self._send(session, source)
                else:
                    waiting -= 1
        took = time.perf_counter() - began
        return Turn(len(latencies), len(latencies) / took, sorted(latencies))

    def _send(self, session: _Session, source: Iterator[Template]) -> None:
        template, session.request = next(source), session.request + 1
        message = template.head + self._transport.id(session.request) + template.tail
        session.sent = time.perf_counter()
        session.connection.sendall(message)

    def _body(self, session: _Session) -> bytes | None:
        found = self._transport.split(session.received)
        if found is None:
            return None
        start, end = found
        body = bytes(session.received[start:end])
        del session.received[:end]
        return body

    def _check(self, body: bytes) -> None:
        answer = self._transport.read(body)
        if answer[0] != 50:
            raise RuntimeError(f"refused: {answer[4:]}")


class _Session:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.request = FIRST_REQUEST
        self.sent = 0.0

    def receive(self) -> None:
        data = self.connection.recv(1 << 18)
        if not data:
            raise RuntimeError("the router has closed the connection")
        self.received += data
