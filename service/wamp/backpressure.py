"""
Back-pressure, and limits on the calls in progress.

WAMP has no back-pressure: a router reads all that it is sent, and buffers it for a caller that reads slowly.
So the next part of an answer is sent when three conditions hold (`Pace`):

- The part before has left our socket. Twisted pauses a producer when its buffer is full, and resumes it when
  everything was handed to the kernel (`Outflow`).
- The router has processed that part, and what other sessions had sent meanwhile: it has answered a call of
  ours, and it takes the messages of a connection in order.
- The router buffers little for this caller, which `router/component` returns as the answer of that call.

Without limits (`Bounds`), the service and the router would also buffer everything for a caller that sends calls
without end, or never reads its answers. A call above a limit is refused before any work is done. Other calls
wait, in order, until their own session may run them (`Accounts`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from service.errors import StatementTimeout, Unavailable
from service.waiting import Waiters

if TYPE_CHECKING:
    from service.wamp.session import SafeSession

log = Logger()

HELD = 128 * 1024
"""Maximum number of bytes that the router may buffer for a caller when the next part is sent."""

YIELD = 0.5
"""Pause after a part, as a fraction of the time that the router took for it: other callers' share."""

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two calls that ask the router for its backlog: at first, and at most."""

STOPPING_PATIENCE = 1.0
"""Seconds for which a caller may read nothing at all while the service stops; longer than a busy client pauses."""

UNMEASURED = 32 * 1024
"""Bytes of parts sent to a caller between two queries of the router's backlog, which cost more than a part."""

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
    Waits, within one session of the service, until a caller's next part may be sent.

    Args:
        reactor: Runs timers.
        session: The service's session.
        backlog: URI of the procedure that returns how many bytes the router buffers for a caller.
        patience: Seconds for which a caller may read nothing at all.
    """

    def __init__(
        self, reactor: IReactorTime, session: SafeSession, backlog: str, patience: float
    ) -> None:
        self._reactor = reactor
        self.session = session
        self._backlog = backlog
        self._patience = patience
        self._answers = True
        self._stopping = False

    def stop(self) -> None:
        """Wait no longer for callers that read nothing, also for those that have read nothing so far."""
        self._stopping = True

    async def sent(self, caller: int | None) -> None:
        """
        Wait, after a part was sent, until the next may be sent.

        Raises:
            StatementTimeout: The caller has read nothing for too long.
            Unavailable: The same while the service stops.
        """
        await self.session.outflow().drained()
        asked = self._reactor.seconds()
        held = await self.held(caller)
        took = max(0.0, self._reactor.seconds() - asked)  # the clock of the system may be set back
        await deferLater(self._reactor, YIELD * took)
        pause, least, since = FIRST_PAUSE, held, self._reactor.seconds()
        while held > HELD:
            await deferLater(self._reactor, pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            held = await self.held(caller)
            # The timeout starts again whenever the caller has read something: slow callers are served.
            if held < least:
                least, since = held, self._reactor.seconds()
                continue
            silent = self._reactor.seconds() - since
            if self._stopping and silent > STOPPING_PATIENCE:
                raise Unavailable("the service is stopping, and the caller reads nothing")
            if silent > self._patience:
                raise StatementTimeout("the caller has read nothing for too long", clock=None)

    async def held(self, caller: int | None) -> int:
        """
        Return how many bytes the router buffers for a caller; 0 if it does not say.

        The router answers after it has processed what was sent before this call.
        """
        session = self.session
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


SWEEP = 0.25
"""Seconds between two checks for calls that have waited too long."""

SLICE = 0.005
"""Seconds for which waiting calls of one session are started before the reactor does other work."""

LONGEST_UNREAD_PAUSE = 0.5
"""Maximum seconds between two calls that ask the router for the backlog of a session that reads nothing."""

IDLE = 10_000
"""Number of accounts above which idle ones are dropped; matters if the router does not report who leaves."""


@dataclass(frozen=True)
class Bounds:
    """
    Limits on calls in progress.

    A session may also have no more than what is still free in total: a single busy session gets half of the
    total, two get a third each, so that something is always left for another one.

    Args:
        session_calls: Maximum number of calls in progress of one session.
        total_calls: Maximum number of calls in progress of all sessions.
        session_bytes: Maximum bytes of arguments, and of unread answers, of one session.
        total_bytes: The same for all sessions; the second half is for sessions that read their answers.
        running: Maximum number of calls of one session that run concurrently; others wait.
        wait: Maximum time in seconds that a call waits.
        expected: Assumed size of the first answer to a session, in bytes.
    """

    session_calls: int = 10_000
    total_calls: int = 50_000
    session_bytes: int = 32 * 2**20
    total_bytes: int = 256 * 2**20
    running: int = 64
    wait: float = 5.0
    expected: int = 4 * 2**20


class Account:
    """
    What one session has in progress.

    Attributes:
        calls: Number of calls that were not answered yet.
        running: Number of those that have begun.
        arguments: Size of their arguments in bytes.
        given: Number of its jobs that workers have.
        unread: Bytes of answers that it has not read, as far as known.
        expected: Expected size of its next answer in bytes, from the last ones.
        light: Whether that is small.
        weigh: Counts an answer that is sent, by its size.
        unmeasured: Bytes of parts sent to it since the router was last asked for its backlog.
        room: Awaited before the next part of an answer is sent.
    """

    def __init__(self, accounts: Accounts, session: int | None) -> None:
        self.session = session
        self.calls = self.running = self.arguments = self.given = self.unread = self.unmeasured = 0
        self.room: Awaitable[None] | None = None
        self.expected = accounts.bounds.expected
        self.light = self.expected <= HELD
        self.waiting: dict[Deferred[None], float] = {}
        self.asking = self.going = False
        self.weigh = partial(accounts.sent, self)
        self._accounts = accounts

    @property
    def blocked(self) -> str:
        """
        Why none of its calls may begin now, because of unread or expected answers; empty if they may.
        """
        accounts, bounds = self._accounts, self._accounts.bounds
        # Up to `HELD` the router is not asked, so these bytes may have been read long ago.
        unread = self.unread if self.unread > HELD else 0
        room = min(bounds.session_bytes, bounds.total_bytes // 2 - accounts.unread)
        if unread + self.given * self.expected < room:
            return ""
        if unread or room > 0:
            return f"this session has {self.unread} bytes of unread answers"
        # The second half of the total is for sessions that read their answers: one call at a time.
        if not self.given and accounts.unread < bounds.total_bytes:
            return ""
        return "the unread answers of all sessions are too large together"

    def given_up(self, turn: Deferred[None]) -> None:
        """Remove a waiting call that was cancelled."""
        self.waiting.pop(turn, None)


class NextPart:
    """
    An awaitable that returns when the next part of an answer may be sent to a caller.

    Args:
        pace: Asks the router for its backlog.
        account: Account of the caller.
    """

    def __init__(self, pace: Pace, account: Account) -> None:
        self._pace = pace
        self._account = account

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        if self._account.unmeasured <= UNMEASURED:
            await self._pace.session.outflow().drained()
            return
        self._account.unmeasured = 0
        await self._pace.sent(self._account.session)


class Accounts:
    """
    The accounts of all sessions.

    Args:
        reactor: Runs timers, and measures time.
        bounds: Limits on calls in progress.
        ask: Asks the router how many bytes it buffers for a session, after all that was sent before.
        freed: Called when a session has read something.

    Attributes:
        calls: Number of calls that were not answered yet.
        unread: Bytes of answers that the router buffers for all sessions, as far as known.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        bounds: Bounds,
        ask: Callable[[int | None], Awaitable[int]],
        freed: Callable[[], None],
    ) -> None:
        self.bounds = bounds
        self._reactor = reactor
        self._ask = ask
        self._freed = freed
        self._of: dict[int | None, Account] = {}
        self.unread = 0
        self.calls = self._arguments = 0
        self._sweeping = False

    def of(self, session: int | None) -> Account:
        """Return the account of a session."""
        account = self._of.get(session)
        if account is None:
            # Accounts with unread answers stay alive: `_follow` keeps them until these were read.
            if len(self._of) >= IDLE:
                self._of = {key: each for key, each in self._of.items() if each.calls}
            account = self._of[session] = Account(self, session)
        return account

    def forget(self, session: int) -> None:
        """Forget a session that has left."""
        account = self._of.pop(session, None)
        if account is not None:
            self._set(account, 0)

    def clear(self) -> None:
        """Forget all unread answers, because the router that buffered them is gone."""
        for account in self._of.values():
            self._set(account, 0)
        self._of = {}

    def full(self, session: int | None, size: int) -> Unavailable | None:
        """Return a refusal if a limit does not allow one more call with arguments of `size` bytes."""
        bounds, account = self.bounds, self._of.get(session) or self.of(session)
        if account.calls >= min(bounds.session_calls, bounds.total_calls - self.calls):
            return Unavailable(f"too many calls are in progress ({account.calls} of this session)")
        room = bounds.total_bytes - self._arguments
        more = account.arguments + size
        # With nothing else in progress any size is accepted, or a large call would be refused for ever.
        if self._arguments and (
            size > room or (account.arguments and more > min(bounds.session_bytes, room))
        ):
            return Unavailable("the arguments of the calls in progress are too large together")
        return None

    def enter(self, session: int | None, size: int) -> Account:
        """Count a call and its arguments; return the account of its session."""
        account = self._of.get(session) or self.of(session)
        account.calls += 1
        account.arguments += size
        self.calls += 1
        self._arguments += size
        return account

    def begin(self, account: Account) -> Deferred[None] | None:
        """
        Start a call: return None if it may run now, or a Deferred that fires when it may.

        The Deferred fails with `Unavailable` if the call has waited too long.
        """
        if account.waiting or account.running >= self.bounds.running or account.blocked:
            turn: Deferred[None] = Deferred(account.given_up)
            account.waiting[turn] = self._reactor.seconds() + self.bounds.wait
            self._sweep_later()
            return turn
        account.running += 1
        return None

    def end(self, account: Account) -> None:
        """Count a call that has run; the next one starts after the answer of this one was sent."""
        account.running -= 1
        if account.waiting:
            self._start_waiting_later(account)

    def leave(self, account: Account, size: int) -> None:
        """Count a call that has ended, whether it has run or not."""
        account.calls -= 1
        account.arguments -= size
        self.calls -= 1
        self._arguments -= size

    def sent(self, account: Account, size: int) -> None:
        """Count an answer that is sent."""
        # Halved, not replaced, so that one small answer among large ones does not start many calls.
        account.expected = max(size, account.expected // 2)
        account.light = account.expected <= HELD
        account.unmeasured += size
        unread = account.unread + size
        if unread <= HELD:
            account.unread = unread
            return
        self._set(account, unread)
        if not account.asking:
            account.asking = True
            asking = Deferred.fromCoroutine(self._follow(account))
            asking.addErrback(lambda why: log.failure("cannot ask the router", why))

    async def _follow(self, account: Account) -> None:
        """Ask the router what a session has read, until its unread answers are small."""
        pause = FIRST_PAUSE
        try:
            while account.unread > HELD:
                before = account.unread
                held = await self._ask(account.session)
                # Add what was sent while the router was being asked.
                self._set(account, held + max(0, account.unread - before))
                if account.unread < before:
                    pause = FIRST_PAUSE
                    self._freed()
                    self._go(account)
                if account.unread > HELD:
                    await deferLater(self._reactor, pause)
                    pause = min(2 * pause, LONGEST_UNREAD_PAUSE)
        finally:
            account.asking = False

    def _set(self, account: Account, unread: int) -> None:
        # Small amounts are not followed, so they do not count in the total.
        if unread > HELD:
            self.unread += unread
        if account.unread > HELD:
            self.unread -= account.unread
        account.unread = unread

    def _start_waiting_later(self, account: Account) -> None:
        if account.waiting and not account.going:
            account.going = True
            deferLater(self._reactor, 0, self._go, account)

    def _go(self, account: Account) -> None:
        """Start waiting calls, as many as may run, for at most `SLICE` seconds."""
        account.going = False
        end = self._reactor.seconds() + SLICE
        bounds = self.bounds
        while account.waiting and account.running < bounds.running and not account.blocked:
            if self._reactor.seconds() > end:
                self._start_waiting_later(account)
                return
            # Removed and counted before `callback`, in which the call may end, or another one may wait.
            turn = next(iter(account.waiting))
            del account.waiting[turn]
            account.running += 1
            turn.callback(None)

    def _sweep_later(self, pause: float = SWEEP) -> None:
        if not self._sweeping:
            self._sweeping = True
            deferLater(self._reactor, pause, self._sweep)

    def _sweep(self) -> None:
        """Refuse calls that have waited too long, for at most `SLICE` seconds."""
        self._sweeping = False
        now = self._reactor.seconds()
        for account in [each for each in self._of.values() if each.waiting]:
            self._go(account)
            why = account.blocked or f"{account.running} calls of this session are running"
            while account.waiting:
                turn, end = next(iter(account.waiting.items()))  # the first one is the oldest
                if end > now:
                    self._sweep_later()
                    break
                # Thousands of calls that came together time out together; to refuse them all in one go
                # blocked the reactor for seconds.
                if self._reactor.seconds() > now + SLICE:
                    self._sweep_later(0)
                    return
                del account.waiting[turn]
                turn.errback(Unavailable(f"{why}; this call has waited too long"))
