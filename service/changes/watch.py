"""
The verb `watch`: live queries.

A query that is watched has its rows' keys and hashes here, however many watch it. Refresh cycles
(`changes/cycle.py`) find out what is different in them, and the sessions that watch are told
(`changes/watchers.py`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.api.call import Call, Lasting, Snapshot
from service.api.dispatcher import Dispatcher, depends_on_catalog
from service.changes.cycle import Aside, Cycle, Found, Order, Outcome
from service.changes.delta import KeyRepeated
from service.changes.positions import SnapshotPosition, parse_position
from service.changes.queries import Queries, WatchLimits
from service.changes.refresh import Run
from service.changes.silence import Silence
from service.changes.watchers import (
    Query,
    Watch,
    order_of,
    orders_of,
    rests,
    resume_from,
    wanted_of,
)
from service.changes.watching_session import WatchingSession
from service.db.database import Database
from service.db.sqlstate import refusal
from service.errors import DatabaseRefused, Unavailable, first_line
from service.request.arguments import Caller
from service.request.watch_request import parse_options

log = Logger()

POLL = 1.0
"""Seconds between two cycles if nothing wakes us."""

PAUSES = (0.1, 5.0)
"""Seconds between two tries of a cycle while the database cannot be reached: first, and at most."""

MOST_AT_ONCE = 16
"""Queries that are planned anew at once, by another catalog."""

OF_WATCHES = ("since", "tx")
"""Arguments of a watch that are none of its query."""

CHECK = 60.0
"""Seconds between two checks of what the log says of a query."""


class Watches(Service):
    """
    All watches, and the cycles that keep them up to date.

    Args:
        reactor: For pauses, and to measure time.
        database: Asked what queries read.
        dispatcher: For what is served now.
        cycle: Runs the queries.
        first: Runs those that are new, which may take long, apart from the others.
        limits: How much may be watched.
        poll: Seconds between two cycles if nothing wakes us.

    Attributes:
        cycles: That were run.
        drift: Checks that found other rows than the log had led to.
    """

    def __init__(
        self,
        reactor: Any,
        database: Database,
        dispatcher: Dispatcher,
        cycle: Cycle,
        first: Cycle,
        limits: WatchLimits,
        poll: float = POLL,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._dispatcher = dispatcher
        self._cycle = cycle
        self._first = first
        self._beginning: Deferred[None] | None = None
        self._readings: set[Deferred[None]] = set()
        self._limits = limits
        self._made = Queries(database, limits)
        self._poll = poll
        self._queries: dict[Hashable, Query] = {}
        self._runs: dict[Run, Query] = {}
        self._asking: set[Query] = set()
        self._sessions: dict[Hashable, WatchingSession] = {}
        # Sessions that there may be something for, the last of them with the outcome of a cycle.
        self._moved: dict[WatchingSession, None] = {}
        self._served: Snapshot | None = None
        # What the last cycle saw, and what watchers are brought to: behind it while they are told.
        self._position: SnapshotPosition | None = None
        self._place: SnapshotPosition | None = None
        self._silence = Silence()
        self._checked = 0.0
        self._due = poll
        self._running: Deferred[None] | None = None
        self._resting: Deferred[None] | None = None
        self._woken = self._stopping = self._telling = False
        self.cycles = self.drift = 0

    def now(self) -> float:
        """Return the time, in seconds of the reactor's clock."""
        return float(self._reactor.seconds())

    def wake(self) -> None:
        """Run a cycle as soon as may be: there may be something new."""
        self._woken = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    @property
    def open(self) -> bool:
        """Whether anything is kept of any session or query."""
        return bool(self._sessions or self._queries)

    def drain(self) -> None:
        """Refuse watches from now on, and end those that are there: another service has them next."""
        self._stopping = True
        for session in list(self._sessions.values()):
            for watch in session.members:
                watch.end(_stopping())

    def departed(self, session: int | None) -> None:
        """End the watches of a session that is gone; None: all are."""
        for key, each in list(self._sessions.items()):
            if session is None or key == session:
                for watch in each.members:
                    watch.end(CancelledError())

    def wrote(self, session: int | None, tx: str) -> None:
        """Record a transaction of a session, to be told to its watches."""
        found = self._sessions.get(session)
        if found is not None:
            found.wrote(int(tx))
            self._moved[found] = None
            self._move()
            self.wake()

    async def stopService(self) -> None:
        """End all watches and close the session of the cycles."""
        super().stopService()
        self.drain()
        running, self._running = self._running, None
        if running is not None:
            self.wake()
            await running

    def stats(self) -> dict[str, Any]:
        """Return the figures as `stats` answers them."""
        queries = self._queries.values()
        return {
            "watches": sum(len(each.members) for each in self._sessions.values()),
            "queries": len(queries),
            "rows": sum(len(each.state.entries) for each in queries if each.state),
            "cycles": self.cycles,
            "drift": self.drift,
        }

    async def take(self, call: Call) -> Lasting:
        """
        Answer `watch`, until the caller ends it.

        Raises:
            InvalidArgument: Among others, the caller does not take progressive results.
            Unavailable: The session has as many watches as it may, or the service is stopping.
            DatabaseRefused: Changes of something that the query reads are not logged.
        """
        call.parts()  # or it is refused
        assert call.progress is not None
        options, _ = parse_options(call.kwargs)
        since = None if options.since is None else parse_position(options.since)
        self._check_room(call)
        run = await self._run_of(call)
        self._check_room(call)
        session = self._session(call)
        # All watches of a session share the caller's description, which is the same of each call.
        caller = session.caller if session.caller == call.caller else call.caller
        query = self._query(run, caller, call.kwargs)
        watch = Watch(session, query, call.progress, options.tx)
        resume_from(watch, since)
        query.watches = (*query.watches, watch)
        query.ask()
        session.add(watch)
        self._silence.add(watch)
        if self._running is None:
            self._start()
        self.wake()
        return watch

    def _check_room(self, call: Call) -> None:
        if self._stopping or not self.running:
            raise _stopping()
        session = self._sessions.get(call.caller.session)
        if session is not None and len(session.members) >= self._limits.session:
            raise Unavailable(
                f"this session has {len(session.members)} watches, as many as it may",
                retry_after=5.0,
                hint="cancel one that is not needed any more",
            )

    async def _run_of(self, call: Call) -> Run:
        options, kwargs = parse_options(call.kwargs)
        role = self._dispatcher.role_of(call.caller)
        return await self._made.run_of(replace(call, kwargs=kwargs), role, options.tables)

    def _query(self, run: Run, caller: Caller, kwargs: Mapping[str, Any]) -> Query:
        query = self._queries.get(run.name)
        if query is None:
            own = {name: value for name, value in kwargs.items() if name not in OF_WATCHES}
            query = self._queries[run.name] = Query(run, caller, own, self._asking)
            self._runs[run] = query
        return query

    def _drop(self, run: Run) -> None:
        """Forget how a query was run."""
        del self._runs[run]
        self._cycle.drop(run)

    def _session(self, call: Call) -> WatchingSession:
        # A router that discloses no callers would have all of them move as one, and share its bound.
        key = call.id if call.caller.session is None else call.caller.session
        session = self._sessions.get(key)
        if session is None:
            most = self._limits.max_bytes // 2
            session = self._sessions[key] = WatchingSession(
                key, call.caller, self.now, self.wake, lambda: self._place, self._remove, most
            )
        return session

    def _remove(self, watch: Watch) -> None:
        """Forget a watch that has ended, and what nobody else needs of it."""
        query, session = watch.query, watch.session
        query.watches = tuple(each for each in query.watches if each is not watch)
        if not query.watches and self._queries.get(query.name) is query:
            del self._queries[query.name]
            self._asking.discard(query)
            self._drop(query.run)
        session.remove(watch)
        if not session.members:
            self._sessions.pop(session.key, None)
        elif self._running is not None:
            # The others may have waited for its rows.
            self._moved[session] = None
            self._move()
        if not self._queries:
            self.wake()

    def _move(self) -> None:
        """Send sessions what there is for them, up to the position of the last cycle."""
        place, moved = self._place, self._moved
        if place is None or self._telling:
            return
        self._moved = {}
        for session in moved:
            session.cover(place)
            if session.written:
                self._moved[session] = None
            if session.moves:
                session.go()

    def _start(self) -> None:
        self._served = self._dispatcher.served
        self._checked = self.now()
        # Whoever watches first acts as a caller.
        self._running = Context().run(Deferred.fromCoroutine, self._keep())
        self._running.addErrback(lambda why: log.failure("live queries have ended", why))

    async def _keep(self) -> None:
        """Run cycles for as long as there are watches."""
        failures = 0
        try:
            while self._queries and self.running:
                self._woken = False
                try:
                    await self._turn()
                    failures = 0
                except CancelledError:
                    raise
                except Exception as error:
                    log.warn("cannot look for changes: {error}", error=first_line(error))
                    failures += 1
                    self._stale()
                if failures:
                    await self._rest(min(PAUSES[1], PAUSES[0] * 2**failures))
                elif not self._woken:
                    await self._rest(min(self._poll, self._due))
        finally:
            for apart in (self._beginning, *self._readings):
                if apart is not None:
                    await apart
            await self._first.close()
            await self._cycle.close()
            self._running = self._position = self._place = None
            # One may have come while the session was closed.
            if self._queries and self.running:
                self._start()

    def _stale(self) -> None:
        """Run all queries again: what was missed is not known."""
        self._position = None
        for query in self._queries.values():
            query.invalidate()

    async def _rest(self, seconds: float) -> None:
        resting = self._resting = Deferred()
        timer = self._reactor.callLater(seconds, self.wake)
        await resting
        if timer.active():
            timer.cancel()

    async def _turn(self) -> None:
        """Run one cycle, and tell the watchers."""
        if self._dispatcher.served is not self._served:
            await self._renew()
        asking = [each for each in self._asking if not (each.parked or each.aside)]
        new = [each for each in asking if each.state is None]
        if new and self._beginning is None:
            beginning = self._beginning = Deferred.fromCoroutine(self._begin(new))
            beginning.addBoth(self._end_beginning)
        asking = [each for each in asking if each.state is not None]
        wanted = {query: wanted_of(query) for query in asking}
        orders = orders_of(wanted, len(self._readings) < self._limits.asides)
        checked = self._check(orders)
        outcome = await self._cycle.run(orders, self._position)
        self.cycles += 1
        if checked:
            self._checked = self.now()
        self._telling = True
        try:
            self._take_outcome(outcome, wanted)
        finally:
            self._telling = False
            if outcome.aside is not None:  # which alone ends its transaction
                reading = Deferred.fromCoroutine(self._read(outcome.aside, wanted))
                self._readings.add(reading)
                reading.addErrback(lambda why: log.failure("cannot tell what was read", why))
                reading.addBoth(self._end_reading, reading)
                self.wake()  # there may be another group to be read
        self._place = outcome.position
        self._due = min([self._due, *rests(asking)])
        for watch in self._silence.due(self.now()):
            watch.silent = True
            watch.session.tell(watch)
            self._moved[watch.session] = None
        self._move()

    async def _begin(self, new: Sequence[Query]) -> None:
        """
        Read the rows of new queries for the first time.

        That may take seconds, which the others need not wait for: it is done in a session of its own,
        and the next cycle goes on from there, by what the log has since.
        """
        try:
            wanted = {query: wanted_of(query) for query in new}
            orders = [order_of(query, watches) for query, watches in wanted.items()]
            self._take_apart(await self._first.run_alone(orders), wanted)
        except Exception as error:
            log.warn("cannot begin live queries: {error}", error=first_line(error))
            await deferLater(self._reactor, PAUSES[0])

    def _end_beginning(self, _: object) -> None:
        self._beginning = None
        self.wake()

    async def _read(self, aside: Aside, wanted: Mapping[Query, set[Watch]]) -> None:
        """
        Read all rows of queries that take long aside, in the snapshot of the last cycle.

        The cycles go on for the others meanwhile; the sessions of these come to its position when
        their rows are there.
        """
        place = aside.moment.position
        queries = [self._runs[each.run] for each in aside.orders if each.run in self._runs]
        sessions = {watch.session: None for query in queries for watch in query.watches}
        for query in queries:
            query.begin_aside()
            self._cycle.drop(query.run)
        reading = self._cycle.read_aside(aside)  # so that its transaction ends, whatever follows
        read: Collection[Run] = ()
        try:
            try:
                for session in sessions:
                    session.cover(place)
                    session.keep(place)
            finally:
                outcome = await reading
            if outcome is not None:
                self._take_apart(outcome, wanted)
                read = outcome.found
        except Exception as error:
            log.warn("cannot look for changes: {error}", error=first_line(error))
            for query in queries:
                query.run.rest(time.monotonic())
        for query in queries:
            query.end_aside(query.run in read)  # or it was planned anew meanwhile
        self._moved |= sessions
        for session in sessions:
            session.complete(queries)

    def _end_reading(self, _: object, reading: Deferred[None]) -> None:
        self._readings.discard(reading)
        self._move()
        self.wake()

    def _take_apart(self, outcome: Outcome, wanted: Mapping[Query, set[Watch]]) -> None:
        """Store what was found apart from the cycles; the next one goes on from there."""
        for run, found in outcome.found.items():
            query = self._runs.get(run)
            if query is None or query.parked:
                continue
            if isinstance(found, Failure):
                self._failed(query, found)
                continue
            query.found_at(outcome.position)
            if found is None:
                continue
            every = query.state is None or bool(wanted[query])
            query.state = found.state
            for watch in query.watches:
                # One that has come meanwhile, and has no rows, takes all of these, too.
                new = every and watch.unseen and not watch.session.busy
                watch.find(found, new or watch in wanted[query], found.weight)

    def _take_outcome(self, outcome: Outcome, wanted: Mapping[Query, set[Watch]]) -> None:
        self._position = outcome.position
        # Planned anew meanwhile, it is run again.
        for run, found in outcome.found.items():
            query = self._runs.get(run)
            if query is not None and not query.parked:
                self._take_answer(query, found, wanted.get(query, set()))
        for run in outcome.late:
            query = self._runs.get(run)
            if query is not None:
                query.invalidate()
                query.put_off(query.late + 1)
                if run.heavy:  # until it has been read, changes by key are none of its
                    self._cycle.drop(run)
        for query in wanted:
            if query.since is not None and query.run in outcome.joined:
                query.join()
                for watch in query.watches:
                    watch.session.tell(watch)
                    self._moved[watch.session] = None
            if not (query.stale or any(watch.wanting for watch in query.watches)):
                self._asking.discard(query)
        self._due = min(outcome.late.values(), default=self._poll)

    def _take_answer(self, query: Query, found: Found | Failure | None, wanted: set[Watch]) -> None:
        if isinstance(found, Failure):
            self._failed(query, found)
            return
        was_late = query.late
        if was_late:
            query.put_off(0)
        query.stale = query.renewed = False
        if found is not None:
            self._tell(query, found, wanted)
        if found is not None or was_late:
            for watch in query.watches:
                watch.session.moves = True  # the others of the session have waited
                self._moved[watch.session] = None

    def _check(self, orders: list[Order]) -> bool:
        """Compare the rows of one query with what the log has led to, now and then."""
        if self.now() - self._checked < CHECK:
            return False
        known = [
            each
            for each in self._queries.values()
            if each.state is not None and each.since is None and each not in self._asking
            if not (each.aside or each.run.heavy)
        ]
        if known:
            orders.append(replace(order_of(random.choice(known), set()), check=True))
        return bool(known)

    def _tell(self, query: Query, found: Found, wanted: set[Watch]) -> None:
        """Pass what a cycle has found of a query on to its watches."""
        if found.drifted:
            self.drift += 1
            log.error(
                "the rows of {query} were others than the log had led to",
                query=query.run.shape.statement.name,
            )
        query.state = found.state
        weight = found.weight
        for watch in query.watches:
            watch.find(found, watch in wanted, weight)

    def _failed(self, query: Query, why: Failure) -> None:
        """End the watches of a query that is refused, unless a newer catalog may help."""
        error: Any = why.value
        if isinstance(error, KeyRepeated):
            error = DatabaseRefused(
                "two rows have the same key, which is said to be unique",
                hint="mend the comment of the view that says @key",
            )
        known = refusal(error)
        if query.renewed or known is None or not depends_on_catalog(known):
            refused = self._dispatcher.refused(error, query.run.shape.call)
            for watch in query.watches:
                watch.end(refused)
            return
        query.renewed = query.parked = True
        query.invalidate()
        self._cycle.drop(query.run)

        def looked(_: object) -> None:
            query.parked = False
            self.wake()

        Deferred.fromCoroutine(_awaited(self._dispatcher.refresh())).addBoth(looked)

    async def _renew(self) -> None:
        """
        Plan all queries anew, by what is served now.

        Raises:
            Unavailable: The database cannot be asked.
        """
        served = self._dispatcher.served
        turn = DeferredSemaphore(MOST_AT_ONCE)
        planning = [
            turn.run(Deferred.fromCoroutine, self._renew_one(query))
            for query in list(self._queries.values())
        ]
        for done, found in await DeferredList(planning, consumeErrors=True):
            if not done and isinstance(found, Failure):
                found.raiseException()
        self._served = served

    async def _renew_one(self, query: Query) -> None:
        if not query.watches:
            return
        try:
            call = self._dispatcher.renewed(query.call)
            with self._database.identity(query.run.actor.identity):
                run = await self._run_of(call)
        except Exception as error:
            if isinstance(refusal(error), Unavailable):
                raise
            refused = self._dispatcher.refused(error, query.run.shape.call)
            for watch in query.watches:
                watch.end(refused)
            return
        if not query.run.shape.same_rows(run.shape):
            query.state = query.since = None
            for watch in query.watches:
                watch.start_over()
        if self._runs.get(query.run) is query:  # nobody has cancelled it meanwhile
            self._drop(query.run)
            self._runs[run] = query
        run.last, run.whole, run.until = query.run.last, query.run.whole, query.run.until
        query.run = run
        query.invalidate()


def _stopping() -> Unavailable:
    return Unavailable("the service is stopping", reason="stopped", retry_after=0.0)


async def _awaited(work: Any) -> Any:
    return await work
