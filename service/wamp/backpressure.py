"""
How fast the parts of an answer leave.

A router takes all that it is sent, and holds it for a caller that is slower than we are. So a
part follows the one before it when three things are so: that one has left our socket; the
router has dealt with it, and so with what others had sent meanwhile, which it tells by
answering a call of ours; and it holds no more than a little for this caller, which is the
answer, where `router/component` runs in it.

WAMP has no backpressure. The only sign of a router that is behind is our own socket: Twisted
pauses a producer when its buffer is full, and resumes it when everything has been handed to
the kernel.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from service.errors import StatementTimeout

if TYPE_CHECKING:
    from service.wamp.session import SafeSession

HELD = 128 * 1024
"""Bytes that the router may hold for a caller when the next part leaves."""

YIELD = 0.5
"""How much of the time that the router had to do with a part is left to others after it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two questions to the router."""

ANYTHING = "wamp.session.count"
"""Called at a router without the procedure: that it answers is all that is wanted."""


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
        self.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Count one more call that sends parts."""
        self._users += 1
        if self._users == 1:
            self._transport.registerProducer(self, True)

    def leave(self) -> None:
        """Count one less."""
        self._users -= 1
        if not self._users:
            # Twisted resumes no producer that it no longer knows: what waits is let go by us.
            self._transport.unregisterProducer()
            self.resumeProducing()

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when more may be sent; it can be cancelled."""
        done: Deferred[None] = Deferred(self._waiting_no_more)
        if self._paused:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """Record that the buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Fire what waits for the buffer."""
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def stopProducing(self) -> None:
        """Fire what waits: it finds that the connection is lost."""
        self.resumeProducing()

    def _waiting_no_more(self, done: Deferred[None]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)


class Pace:
    """
    The pace of a session.

    Args:
        reactor: For the pauses.
        backlog: The procedure that returns how much the router holds for a caller.
        patience: Seconds that a caller may take nothing at all.
    """

    def __init__(self, reactor: IReactorTime, backlog: str, patience: float) -> None:
        self._reactor = reactor
        self._backlog = backlog
        self._patience = patience
        self._answers = True

    def begin(self) -> None:
        """Reset: another router may have the procedure."""
        self._answers = True

    async def sent(self, session: SafeSession, caller: int | None) -> None:
        """
        Wait until another part may follow.

        Raises:
            StatementTimeout: The caller has taken nothing for too long.
        """
        await session.outflow().drained()
        asked = self._reactor.seconds()
        held = await self.held(session, caller)
        await deferLater(self._reactor, YIELD * (self._reactor.seconds() - asked))
        pause, least, since = FIRST_PAUSE, held, self._reactor.seconds()
        while held > HELD:
            await deferLater(self._reactor, pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            held = await self.held(session, caller)
            # Patience begins anew with whatever is taken: slow callers are served.
            if held < least:
                least, since = held, self._reactor.seconds()
            elif self._reactor.seconds() - since > self._patience:
                raise StatementTimeout("the caller has taken nothing for too long", clock=None)

    async def held(self, session: SafeSession, caller: int | None) -> int:
        """
        Ask the router how much it holds for a caller; 0 if it does not know.

        Its answer comes after it has dealt with what we sent before.
        """
        if session.lost:
            return 0
        try:
            if self._answers and caller is not None:
                return int(await kept(session.call(self._backlog, caller)))
            await kept(session.call(ANYTHING))
        except ApplicationError as error:
            if error.error == ApplicationError.NO_SUCH_PROCEDURE:
                # Not asked again at this router: each question in vain is a round trip.
                self._answers = False
        return 0


def kept(asked: Deferred[Any]) -> Deferred[Any]:
    """Wait for an answer that comes at once, without cancelling its call."""
    answer: Deferred[Any] = Deferred()

    def fire(result: Any) -> None:
        if not answer.called:
            answer.callback(result)

    asked.addBoth(fire)
    return answer
