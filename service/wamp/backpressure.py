"""
Back-pressure for progressive results.

WAMP has none: a router reads all that it is sent, and buffers it for a caller that reads slowly. So the next
part of an answer is sent when three conditions hold:

- The part before has left our socket. Twisted pauses a producer when its buffer is full, and resumes it when
  everything was handed to the kernel.
- The router has processed that part, and what other sessions had sent meanwhile: it has answered a call of
  ours, and it takes the messages of a connection in order.
- The router buffers little for this caller, which `router/component` returns as the answer of that call.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from service.errors import StatementTimeout, Unavailable
from service.waiting import Waiters

if TYPE_CHECKING:
    from service.wamp.session import SafeSession

HELD = 128 * 1024
"""Maximum number of bytes that the router may buffer for a caller when the next part is sent."""

YIELD = 0.5
"""Pause after a part, as a fraction of the time that the router took for it: other callers' share."""

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two calls that ask the router for its backlog: at first, and at most."""

STOPPING_PATIENCE = 1.0
"""Seconds for which a caller may read nothing at all while the service stops; longer than a busy client pauses."""

PROBE = "wamp.session.count"
"""Called at a router without our component, only to wait for its answer."""


@implementer(IPushProducer)
class Outflow:
    """
    The producer of one connection, registered while calls send parts; a context manager.

    It is not registered all the time, because a connection with a paused producer does not close.

    Args:
        transport: Transport of the connection.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._users = 0
        self._paused = False
        self._waiting = Waiters()

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
        """Count another call that sends parts, and register the producer for the first."""
        self._users += 1
        if self._users == 1:
            self._transport.registerProducer(self, True)

    def leave(self) -> None:
        """Count one call less, and unregister the producer after the last."""
        self._users -= 1
        if not self._users:
            # Twisted does not resume an unregistered producer, so resume what waits here.
            self._transport.unregisterProducer()
            self.resumeProducing()

    def drained(self) -> Deferred[None]:
        """Return a Deferred, which can be cancelled, that fires when the socket takes more data."""
        return self._waiting.wait() if self._paused else succeed(None)

    def pauseProducing(self) -> None:
        """Record that the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Fire the Deferreds that wait for the buffer."""
        self._paused = False
        self._waiting.fire()

    def stopProducing(self) -> None:
        """Fire the Deferreds that wait; those who wait then find that the connection is lost."""
        self.resumeProducing()


class Pace:
    """
    Waits until a caller's next part may be sent.

    Args:
        reactor: Runs timers.
        backlog: URI of the procedure that returns how many bytes the router buffers for a caller.
        patience: Seconds for which a caller may read nothing at all.
    """

    def __init__(self, reactor: IReactorTime, backlog: str, patience: float) -> None:
        self._reactor = reactor
        self._backlog = backlog
        self._patience = patience
        self._answers = True
        self._stopping = False

    def begin(self) -> None:
        """Reset for a new session: its router may have the procedure."""
        self._answers = True
        self._stopping = False

    def stop(self) -> None:
        """Wait no longer for callers that read nothing, also for those that have read nothing so far."""
        self._stopping = True

    async def sent(self, session: SafeSession, caller: int | None) -> None:
        """
        Wait, after a part was sent, until the next may be sent.

        Raises:
            StatementTimeout: The caller has read nothing for too long.
            Unavailable: The same while the service stops.
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
            # The timeout starts again whenever the caller has read something: slow callers are served.
            if held < least:
                least, since = held, self._reactor.seconds()
                continue
            silent = self._reactor.seconds() - since
            if self._stopping and silent > STOPPING_PATIENCE:
                raise Unavailable("the service is stopping, and the caller reads nothing")
            if silent > self._patience:
                raise StatementTimeout("the caller has read nothing for too long", clock=None)

    async def held(self, session: SafeSession, caller: int | None) -> int:
        """
        Return how many bytes the router buffers for a caller; 0 if it does not say.

        The router answers after it has processed what was sent before this call.
        """
        if session.lost:
            return 0
        try:
            if self._answers and caller is not None:
                return int(await shielded(session.call(self._backlog, caller)))
            await shielded(session.call(PROBE))
        except ApplicationError as error:
            if error.error == ApplicationError.NO_SUCH_PROCEDURE:
                # Not called again in this session: each vain call costs a round trip.
                self._answers = False
        return 0


def shielded(asked: Deferred[Any]) -> Deferred[Any]:
    """Return a Deferred with the outcome of another; cancelling it does not cancel the other."""
    answer: Deferred[Any] = Deferred()

    def fire(result: Any) -> None:
        if not answer.called:
            answer.callback(result)

    asked.addBoth(fire)
    return answer
