"""
Live queries without a router: a dispatcher with cycles, and watchers that maintain a copy of the rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed

from service.api.call import OngoingCall
from service.api.verbs import VERBS
from service.changes.cycle import Cycle
from service.changes.log import installed_txn
from service.changes.positions import begin_txn
from service.changes.queries import WatchLimits
from service.changes.watch import Watches
from service.changes.watchers import Watch
from service.db.session_settings import SessionSettings, open_session
from service.request.arguments import Caller
from tests.copies import Copy, as_set
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.deferreds import until


class LongCall:
    """
    A call that lasts until it is cancelled or fails, such as `watch`.

    Args:
        answer: The coroutine of the dispatcher.
        ended: Called with the error that ends the call.

    Attributes:
        ongoing: The `OngoingCall` that the handler returned; None before.
    """

    def __init__(
        self, answer: Coroutine[Any, Any, Any], ended: Callable[[Exception], None]
    ) -> None:
        self._ended = ended
        self.ongoing: OngoingCall | None = None
        self._begun: Deferred[Any] = Deferred.fromCoroutine(answer)
        self._begun.addCallbacks(self._begin, lambda why: ended(why.value))

    def _begin(self, ongoing: OngoingCall) -> None:
        self.ongoing = ongoing
        ongoing.follow(self._ended)

    def cancel(self) -> None:
        """Cancel the call, as its caller would."""
        if self.ongoing is None:
            self._begun.cancel()
        else:
            self.ongoing.end(CancelledError())


class Watcher:
    """
    A call of `watch`, with a copy of the rows.

    Attributes:
        messages: All messages received.
        copy: The copy of the rows.
        error: The error that ended the call; None before.
        held: A Deferred; until it fires, the watcher does not accept further messages.
    """

    def __init__(
        self,
        live: Live,
        caller: Caller,
        name: str,
        kwargs: dict[str, Any],
        copy: Copy | None = None,
    ) -> None:
        self.live = live
        self.caller = caller
        self.name = name
        self.kwargs = kwargs
        self.messages: list[dict[str, Any]] = []
        groups = any(each in kwargs for each in ("measures", "group"))
        self.copy = Copy(groups, copy)
        self.error: BaseException | None = None
        self.held: Deferred[None] | None = None
        verb = f"{name}.watch"
        self.call = LongCall(
            live.served.dispatcher.answer(verb, (), kwargs, caller, progress=self._take),
            self._ended,
        )

    def _take(self, message: dict[str, Any]) -> Awaitable[None]:
        self.messages.append(message)
        self.copy.take(message)
        return succeed(None) if self.held is None else self.held

    def _ended(self, error: Exception) -> None:
        self.error = error

    def hold(self) -> None:
        """Accept no further messages until `release`."""
        self.held = Deferred()

    def release(self) -> None:
        """Accept messages again."""
        held, self.held = self.held, None
        assert held is not None
        held.callback(None)

    async def first(self) -> Copy:
        """Wait until the copy is complete."""
        await until(lambda: (self.messages and self.copy.complete) or self.error is not None)
        if self.error is not None:
            raise self.error
        return self.copy

    async def same(self) -> None:
        """Wait until the copy equals the result of `find` at the time of this call."""
        await self.first()
        rows = await self.find()
        await until(lambda: self._is(rows) or self.error is not None)
        assert self.error is None, self.error

    async def find(self) -> list[Any]:
        """Return the present result of the query by `find` or `aggregate`."""
        asked = {k: v for k, v in self.kwargs.items() if k not in ("since", "tx", "tables")}
        groups = "measures" in asked or "group" in asked
        if groups:
            asked = {"measures": {}, **asked}
        verb = f"{self.name}.{'aggregate' if groups else 'find'}"
        found = await self.live.served.dispatcher.answer(verb, (), asked, self.caller)
        return found if groups else found["rows"]

    def _is(self, rows: list[Any]) -> bool:
        if self.kwargs.get("order"):
            return self.copy.values == rows
        return as_set(self.copy.values) == as_set(rows)

    async def cancel(self) -> None:
        """Cancel the call, and wait for its end."""
        self.call.cancel()
        await until(lambda: self.error is not None)
        assert isinstance(self.error, CancelledError)

    async def resumed(self, live: Live | None = None, caller: Caller | None = None) -> Watcher:
        """Cancel the call, and return a new one that resumes at its position with its copy."""
        if self.error is None:
            await self.cancel()
        kwargs = {**self.kwargs, "since": self.copy.position}
        return Watcher(live or self.live, caller or self.caller, self.name, kwargs, self.copy)


def watch_of(watcher: Watcher) -> Watch:
    """Return the service's `Watch` of a watcher's call."""
    watch = watcher.call.ongoing
    assert isinstance(watch, Watch)
    return watch


class Live:
    """A dispatcher with its live queries."""

    def __init__(self, served: DirectCaller, watches: Watches) -> None:
        self.served = served
        self.watches = watches

    def watch(self, name: str, /, caller: Caller = ANYONE, **kwargs: Any) -> Watcher:
        """Watch a query."""
        return Watcher(self, caller, name, kwargs)


def begin_epoch(dsn: str) -> None:
    """Begin the first epoch of a log, as the feed does; positions are valid only from then on."""
    connection = open_session(dsn, SessionSettings())
    try:
        if installed_txn(connection):
            begin_txn(connection, 0)
    finally:
        connection.close()


@asynccontextmanager
async def living(
    dsn: str, limits: WatchLimits | None = None, poll: float = 0.02, **how: Any
) -> AsyncIterator[Live]:
    """Serve a database with live queries for the length of the body."""
    begin_epoch(dsn)
    async with serving(dsn, **how) as served:
        cycle = Cycle(reactor, dsn, SessionSettings())
        limits = limits or WatchLimits()
        watches = Watches(reactor, served.database, served.dispatcher, cycle, limits, poll)
        served.dispatcher.register(replace(VERBS["watch"], handler=watches.watch))
        watches.startService()
        try:
            yield Live(served, watches)
        finally:
            await watches.stopService()
