"""
A relay between PostgreSQL clients and the server that records queries and can stall or cut connections.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import psycopg2

CLEANING = b"SET SESSION AUTHORIZATION DEFAULT;"


class Relay:
    """
    A TCP relay to the server that records the queries.

    Args:
        dsn: DSN of the server.
        slow_cancel: Seconds for which a cancel request is delayed.

    Attributes:
        dsn: DSN that leads through the relay.
        messages: The text of each simple query sent to the server.
        flows: While this event is cleared, nothing is forwarded, though TCP acknowledges what is sent.
        lost: Whether the connection for which `lose` waits has been cut.
    """

    def __init__(self, dsn: str, slow_cancel: float = 0.0) -> None:
        given = psycopg2.extensions.parse_dsn(dsn)
        self._target = f"{given['host']}/.s.PGSQL.{given.get('port', '5432')}"
        self._slow_cancel = slow_cancel
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = psycopg2.extensions.make_dsn(
            dsn,
            host="127.0.0.1",
            port=self._listener.getsockname()[1],
            sslmode="disable",
            gssencmode="disable",
        )
        self.messages: list[bytes] = []
        self.flows = threading.Event()
        self.flows.set()
        self._losing: tuple[bytes, bool] | None = None
        self.lost = False

    @property
    def statements(self) -> list[bytes]:
        """The messages without those that only reset the session."""
        return [each for each in self.messages if not each.startswith(CLEANING)]

    def lose(self, word: bytes, arrives: bool) -> None:
        """Cut the connection at the next query that contains `word`, before or after the server receives it."""
        self._losing, self.lost = (word, arrives), False

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # close() alone does not interrupt a blocked accept()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        with client, server, contextlib.suppress(OSError, EOFError):
            server.connect(self._target)  # fails while the server is down
            back.start()
            first = _read(client, 4)
            rest = _read(client, struct.unpack("!i", first)[0] - 4)
            if len(rest) == 12:  # a cancel request: code, process, secret
                time.sleep(self._slow_cancel)
            self.flows.wait()
            server.sendall(first + rest)
            while True:
                head = _read(client, 5)
                body = _read(client, struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] == b"Q":
                    self.messages.append(body[:-1])
                self.flows.wait()
                losing = self._losing
                if losing is not None and head[:1] == b"Q" and losing[0] in body:
                    self._losing = None
                    client.shutdown(socket.SHUT_RDWR)
                    if losing[1]:
                        server.sendall(head + body)
                        server.shutdown(socket.SHUT_WR)
                        back.join(5)  # until the server has closed the connection
                    self.lost = True
                    return
                server.sendall(head + body)
        if back.ident is not None:
            back.join(5)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
