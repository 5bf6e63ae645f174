"""
A client that can send any message, as a list, over RawSocket and CBOR.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cbor2
from twisted.internet.threads import deferToThread

HELLO, WELCOME = 1, 2
ERROR, CALL = 8, 48


class Raw:
    """
    A blocking client, used from a thread.

    Args:
        at: The router's port on 127.0.0.1, or the path of its socket for the service.
        realm: The realm to join.
        hello: Further HELLO details.
    """

    def __init__(self, at: int | Path, realm: str, **hello: Any) -> None:
        if isinstance(at, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(10)
            self._socket.connect(str(at))
        else:
            self._socket = socket.create_connection(("127.0.0.1", at), 10)
        try:
            self.session = self._join(realm, hello)
        except BaseException:
            self.close()
            raise

    def _join(self, realm: str, hello: dict[str, Any]) -> int:
        self._socket.sendall(b"\x7f\xf3\x00\x00")  # RawSocket, 16 MiB, CBOR
        self._take(4)
        roles = {key: {} for key in ("caller", "callee", "publisher", "subscriber")}
        self.send(HELLO, realm, {"roles": roles, **hello})
        welcome = self.read()
        assert welcome[0] == WELCOME, welcome
        session: int = welcome[1]
        return session

    def send(self, *message: Any) -> None:
        """Send a message."""
        self.send_encoded(cbor2.dumps(list(message)))

    def send_encoded(self, body: bytes) -> None:
        """Send a message that is encoded already."""
        self._socket.sendall(struct.pack(">I", len(body)) + body)

    def read(self, seconds: float = 10) -> list[Any]:
        """
        Return the next message; an empty list at the end of the connection.

        Raises:
            TimeoutError: No message arrives.
        """
        found = self.read_encoded(seconds)
        return list(cbor2.loads(found)) if found else []

    def read_encoded(self, seconds: float = 10) -> bytes:
        """Return the next message as CBOR; nothing at the end of the connection."""
        self._socket.settimeout(seconds)
        try:
            (size,) = struct.unpack(">I", self._take(4))
            return self._take(size)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _take(self, size: int) -> bytes:
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            taken = self._socket.recv_into(rest)
            if not taken:
                raise ConnectionError
            rest = rest[taken:]
        return bytes(found)


async def raw(at: int | Path, realm: str, **hello: Any) -> Raw:
    """Join as a `Raw` client, without blocking the reactor."""
    return await deferToThread(Raw, at, realm, **hello)


def refusals(port: int, uri: str, seconds: float = 60) -> Counter[str]:
    """
    Call in a new session each time, until a call is answered.

    Returns:
        The number of each error before that.

    Raises:
        TimeoutError: No call is answered.
    """
    end, errors = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < end:
        time.sleep(0.02)
        try:
            client = Raw(port, "realm1")
        except OSError:
            continue
        try:
            client.send(CALL, 1, {}, uri)
            answer = client.read()
        except OSError:
            continue
        finally:
            client.close()
        if answer and answer[0] != ERROR:
            return errors
        if answer:
            errors[answer[4]] += 1
    raise TimeoutError(str(errors))
