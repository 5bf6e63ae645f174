"""
What leaves by the session's connection, and whether it has left.

A router takes what it is sent, and has no word for "not so fast". What tells that it is behind
is our own socket: Twisted pauses whoever produces when its buffer is full, and has them go on
when everything has been handed to the kernel.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Outflow:
    """
    The producer of one connection, registered while a call sends parts: use it with `with`.

    A connection with a paused producer would not close, so it has none at other times.

    Args:
        transport: Of the connection.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._users = 0
        self._paused = False
        self._waiting: list[Deferred[None]] = []

    def __enter__(self) -> Outflow:
        self._users += 1
        if self._users == 1:
            self._transport.registerProducer(self, True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if not self._users:
            self._transport.unregisterProducer()
            self.resumeProducing()

    def drained(self) -> Deferred[None]:
        """Give a Deferred that fires when more may be sent; it can be cancelled."""
        done: Deferred[None] = Deferred(self._waiting_no_more)
        if self._paused:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """Take note that the buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Let everyone go on who waits."""
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def stopProducing(self) -> None:
        """Let everyone go on: they find that the connection is lost."""
        self.resumeProducing()

    def _waiting_no_more(self, done: Deferred[None]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)
