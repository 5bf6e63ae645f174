"""
The verb `watch`: live queries.

For each watched query the service keeps the keys and hashes of its rows, once for all its watches. Refresh
cycles (`changes/cycle.py`) find out which rows have changed, and the deltas are sent to the watching sessions
(`changes/watchers.py`).
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.api.call import Call, OngoingCall, Snapshot
from service.api.dispatcher import Dispatcher, depends_on_catalog
from service.changes.cycle import (
    STOP_TIMEOUT,
    BackgroundRead,
    Cycle,
    NewState,
    Outcome,
    QueryTask,
)
from service.changes.delta import KeyRepeated
from service.changes.positions import SnapshotPosition, parse_position
from service.changes.queries import Queries, WatchLimits, stopping
from service.changes.refresh import Run
from service.changes.watchers import (
    AliveTimers,
    Query,
    Watch,
    WatchingSession,
    rest_times,
    task_of,
    tasks_of,
    wanted_of,
)
from service.db.database import Database, deferred
from service.db.session_settings import Outage
from service.db.sqlstate import refusal
from service.errors import Conflict, DatabaseRefused, Unavailable, first_line
from service.request.arguments import Caller
from service.request.read_request import parse_watch_options
from service.waiting import Pause, cancel_timer

log = Logger()

POLL = 1.0
"""Seconds between two cycles without a notification."""

PAUSES = (0.1, 5.0)
"""Seconds until a failed cycle is tried again: the first time, and at most."""

MOST_CONFLICTS = 5
"""How often in a row a query may meet a deadlock or another conflict before its watches end."""

MOST_AT_ONCE = 16
"""Number of queries that are planned again concurrently when the catalog has changed."""

OF_WATCHES = ("since", "tx")
"""Arguments of `watch` that are not part of the query."""

CHECK = 60.0  # the log lacks changes made under `session_replication_role = replica`, for example
"""Seconds between two self-checks, which compare one query's state with a read of all of its rows."""


class Watches(Service):
    """
    All watches, and the loop of cycles that keeps them up to date.

    Args:
        reactor: Runs timers, and measures time.
        database: Plans the queries, to find out what they read.
        dispatcher: Knows the current catalog snapshot.
        cycle: Sessions in which queries are run.
        limits: Maximum numbers and sizes of what may be watched.
        poll: Seconds between two cycles without a notification.

    Attributes:
        cycles: Number of cycles that were run.
        drift: Number of self-checks that found other rows than the log had led to.
    """

    def __init__(
        self,
        reactor: Any,
        database: Database,
        dispatcher: Dispatcher,
        cycle: Cycle,
        limits: WatchLimits,
        poll: float = POLL,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._dispatcher = dispatcher
        self._cycle = cycle
        self._first_read: Deferred[None] | None = None
        self._background_reads: set[Deferred[None]] = set()
        self._limits = limits
        self._planner = Queries(database, limits)
        self._poll = poll
        self._queries: dict[Hashable, Query] = {}
        self._runs: dict[Run, Query] = {}
        self._to_read: set[Query] = set()
        self._sessions: dict[Hashable, WatchingSession] = {}
        # Sessions for which there may be something to send, and those that have `written` something.
        # Dicts keep their order.
        self._to_send: dict[WatchingSession, None] = {}
        self._writers: dict[WatchingSession, None] = {}
        self._served: Snapshot | None = None
        # The position of the last cycle, and the position that sessions may move to. The second follows
        # the first when the outcome was passed on to all watches.
        self._position: SnapshotPosition | None = None
        self._released: SnapshotPosition | None = None
        self._alive_timers = AliveTimers()
        self._outages: dict[str, Outage] = defaultdict(Outage)
        self._checked = 0.0
        self._due = poll
        self._running: Deferred[None] | None = None
        self._pause = Pause(reactor)
        self._woken = self._stopping = self._applying = False
        self.cycles = self.drift = 0

    def now(self) -> float:
        """Return the time of the reactor's clock, in seconds."""
        return float(self._reactor.seconds())

    def wake(self) -> None:
        """Run a cycle as soon as possible: there may be new changes."""
        self._woken = True
        self._pause.end()

    @property
    def open(self) -> bool:
        """Whether any session or query is still kept."""
        return bool(self._sessions or self._queries)

    def drain(self) -> None:
        """Refuse new watches and end all others, so that their callers resume at another service."""
        self._stopping = True
        for session in list(self._sessions.values()):
            for watch in session.members:
                watch.end(stopping())

    def departed(self, session: int | None) -> None:
        """End the watches of a session that has left the router; None: of all sessions."""
        for key, each in list(self._sessions.items()):
            if session is None or key == session:
                for watch in each.members:
                    watch.end(CancelledError())

    def wrote(self, session: int | None, tx: str) -> None:
        """Record a write transaction of a session, whose watches report when they include it."""
        found = self._sessions.get(session)
        if found is not None:
            found.wrote(int(tx))
            self._writers[found] = None
            self._send_due()
            self.wake()

    async def stopService(self) -> None:
        """End all watches and close the session of the cycles."""
        super().stopService()
        self.drain()
        running, self._running = self._running, None
        if running is not None:
            self.wake()
            late = self._reactor.callLater(STOP_TIMEOUT, self._cycle.give_up)
            await running
            cancel_timer(late)

    def stats(self) -> dict[str, Any]:
        """Return the figures for `stats`."""
        queries = self._queries.values()
        return {
            "watches": sum(len(each.members) for each in self._sessions.values()),
            "queries": len(queries),
            "rows": sum(len(each.state.entries) for each in queries if each.state),
            "cycles": self.cycles,
            "drift": self.drift,
        }

    async def watch(self, call: Call) -> OngoingCall:
        """
        Start a watch, and return the call, which lasts until its caller cancels it.

        The rows follow as progressive results: the next cycle reads them, `Query.move` queues them for the
        watch, and `WatchingSession.send_steps` sends them.

        Raises:
            InvalidArgument: An argument is wrong, or the caller does not accept progressive results.
            Unavailable: The session has the maximum number of watches, or the service is stopping.
            DatabaseRefused: The query reads a table whose changes are not logged.
        """
        options, _ = parse_watch_options(call.kwargs)
        since = None if options.since is None else parse_position(options.since)
        self._check_room(call)
        run = await self._run_of(call)
        # Only to refuse a caller that does not accept progressive results. A step sends the messages of all
        # of its watches before it awaits any, and the function that this returns sends when it is awaited.
        call.parts()
        assert call.progress is not None
        # Again: while the query was planned, the session may have started more, or the service stopped.
        self._check_room(call)
        session = self._session(call)
        # All watches of a session share one Caller object, to save memory.
        caller = session.caller if session.caller == call.caller else call.caller
        query = self._query(run, caller, call.kwargs)
        watch = Watch(session, query, call.progress, options.tx)
        watch.resume_from(since)
        query.watches = (*query.watches, watch)
        query.request_read()
        session.add(watch)
        self._alive_timers.add(watch)
        if self._running is None:
            self._start()
        self.wake()
        return watch

    def _check_room(self, call: Call) -> None:
        if self._stopping or not self.running:
            raise stopping()
        session = self._sessions.get(call.caller.session)
        if session is not None and len(session.members) >= self._limits.session:
            raise Unavailable(
                f"this session has {len(session.members)} watches, the maximum",
                retry_after=5.0,
                hint="cancel one that is not needed any more",
            )

    async def _run_of(self, call: Call) -> Run:
        options, kwargs = parse_watch_options(call.kwargs)
        role = self._dispatcher.role_of(call.caller)
        asked = call._replace(kwargs=kwargs)
        return await self._database.again(lambda: self._planner.run_of(asked, role, options.tables))

    def _query(self, run: Run, caller: Caller, kwargs: Mapping[str, Any]) -> Query:
        query = self._queries.get(run.name)
        if query is None:
            own = {name: value for name, value in kwargs.items() if name not in OF_WATCHES}
            query = self._queries[run.name] = Query(run, caller, own, self._to_read)
            self._runs[run] = query
        return query

    def _drop(self, run: Run) -> None:
        """Forget a run of a query, which has another run now or is not watched any more."""
        del self._runs[run]
        self._cycle.drop(run)

    def _session(self, call: Call) -> WatchingSession:
        # If the router does not disclose callers, each call counts as a session: else all callers would
        # be one session, which moves in step and shares one memory limit.
        key = call.id if call.caller.session is None else call.caller.session
        session = self._sessions.get(key)
        if session is None:
            most = self._limits.max_bytes // 2
            session = self._sessions[key] = WatchingSession(
                key,
                call.caller,
                self.now,
                self.wake,
                lambda: self._released,
                self._remove,
                self._to_send,
                most,
            )
        return session

    def _remove(self, watch: Watch) -> None:
        """Forget a watch that has ended, and its query and session if they have no other watch."""
        query, session = watch.query, watch.session
        query.watches = tuple(each for each in query.watches if each is not watch)
        if not query.watches and self._queries.get(query.name) is query:
            del self._queries[query.name]
            self._to_read.discard(query)
            self._drop(query.run)
        session.remove(watch)
        if not session.members:
            self._sessions.pop(session.key, None)
            self._to_send.pop(session, None)
            self._writers.pop(session, None)
        elif self._running is not None:
            self._send_due()  # the other watches of the session may have waited for its rows
        if not self._queries:
            self.wake()  # the loop of cycles ends when nothing is watched

    def _send_due(self) -> None:
        """Send sessions the steps that are due, up to the position of the last cycle."""
        position = self._released
        if position is None or self._applying:
            return
        for session in list(self._writers):
            session.cover(position)
            if not session.written:
                del self._writers[session]
        due = list(self._to_send)
        self._to_send.clear()
        for session in due:
            session.send_steps()

    def _start(self) -> None:
        self._served = self._dispatcher.served
        self._checked = self.now()
        # An empty context: the first watch starts this within a call, under its caller's identity.
        self._running = Context().run(Deferred.fromCoroutine, self._run_cycles())
        self._running.addErrback(lambda why: log.failure("live queries have ended", why))

    async def _run_cycles(self) -> None:
        """Run cycles for as long as there are watches."""
        failures = 0
        try:
            while self._queries and self.running:
                self._woken = False
                try:
                    await self._run_cycle()
                    failures = 0
                    self._outages["a cycle"].end()
                except CancelledError:
                    raise
                except Exception as error:
                    self._warn("a cycle", error)
                    failures += 1
                    self._stale()
                if failures and self.running:
                    await self._pause.wait(min(PAUSES[1], PAUSES[0] * 2**failures))
                elif not self._woken:
                    await self._pause.wait(min(self._poll, self._due))
        finally:
            for apart in (self._first_read, *self._background_reads):
                if apart is not None:
                    await apart
            await self._cycle.close()
            self._running = self._position = self._released = None
            # A watch may have started while the sessions were being closed.
            if self._queries and self.running:
                self._start()

    def _warn(self, what: str, error: Exception) -> None:
        why = first_line(error)
        if self._outages[what].is_news(why, self.now()):
            log.warn("live queries: {what} failed: {why}", what=what, why=why)

    def _stale(self) -> None:
        """Run all queries again in the next cycle, because the changes since are not known."""
        self._position = None
        for query in self._queries.values():
            query.invalidate()

    async def _run_cycle(self) -> None:
        """Run one cycle, and send the watching sessions what it has found."""
        if self._dispatcher.served is not self._served:
            await self._renew()
        to_read = [each for each in self._to_read if not (each.parked or each.background)]
        new = [each for each in to_read if each.state is None]
        if new and self._first_read is None:
            reading = self._first_read = Deferred.fromCoroutine(self._read_new(new))
            reading.addBoth(self._end_first_read)
        known = [each for each in to_read if each.state is not None]
        wanted = {query: wanted_of(query) for query in known}
        tasks = tasks_of(wanted, len(self._background_reads) < self._limits.background_reads)
        checked = self._check(tasks)
        outcome = await self._cycle.run(tasks, self._position)
        self.cycles += 1
        if checked:
            self._checked = self.now()
        self._applying = True
        try:
            self._apply_cycle(outcome, wanted)
        finally:
            self._applying = False
            if outcome.background is not None:  # always: only this read ends its transaction
                reading = Deferred.fromCoroutine(
                    self._read_in_background(outcome.background, wanted)
                )
                self._background_reads.add(reading)
                reading.addErrback(lambda why: log.failure("cannot send what was read", why))
                reading.addBoth(self._end_background_read, reading)
                self.wake()  # the next cycle may start to read another group
        self._released = outcome.position
        self._due = min([self._due, *rest_times(known)])
        for watch in self._alive_timers.due(self.now()):
            watch.silent = True
            watch.session.schedule(watch)
        self._send_due()

    async def _read_new(self, new: Sequence[Query]) -> None:
        """
        Read the rows of new queries for the first time.

        A first read may take seconds. It runs in a session of its own, so that the known queries need not
        wait; the next cycle continues from its snapshot with the changes that the log has since.
        """
        again = True
        try:
            wanted = {query: wanted_of(query) for query in new}
            tasks = [task_of(query, watches) for query, watches in wanted.items()]
            self._apply_read(await self._cycle.run_alone(tasks), wanted)
            self._outages["a first read"].end()
            again = any(query.conflicts for query in new)
        except Exception as error:
            self._warn("a first read", error)
        if again:  # they are still new: the next cycle starts another attempt
            await deferLater(self._reactor, PAUSES[0])

    def _end_first_read(self, _: object) -> None:
        self._first_read = None
        self.wake()

    async def _read_in_background(
        self, background: BackgroundRead, wanted: Mapping[Query, set[Watch]]
    ) -> None:
        """
        Read all rows of slow queries in the background, in the snapshot of the last cycle.

        Meanwhile the cycles continue for other sessions. The sessions that watch these queries reach the
        snapshot's position, with all of their watches, when the rows were read.
        """
        position = background.taken.position
        queries = [self._runs[each.run] for each in background.tasks if each.run in self._runs]
        sessions = {watch.session: None for query in queries for watch in query.watches}
        for query in queries:
            query.begin_background()
            self._cycle.drop(query.run)
        reading = self._cycle.read_in_background(background)  # now, so that it ends in any case
        read: Collection[Run] = ()
        try:
            try:
                for session in sessions:
                    session.cover(position)
                    session.keep(position)
            finally:
                outcome = await reading
            if outcome is not None:
                self._apply_read(outcome, wanted)
                results = outcome.results.items()
                read = [run for run, each in results if not isinstance(each, Failure)]
            self._outages["a slow read"].end()
        except Exception as error:
            self._warn("a slow read", error)
            for query in queries:
                query.run.rest(time.monotonic())
        for query in queries:
            query.end_background(query.run in read)  # not if it was planned again meanwhile
        for session in sessions:
            session.request_send()
        for session in sessions:
            session.complete(queries)

    def _end_background_read(self, _: object, reading: Deferred[None]) -> None:
        self._background_reads.discard(reading)
        self._send_due()
        self.wake()

    def _apply_read(self, outcome: Outcome, wanted: Mapping[Query, set[Watch]]) -> None:
        """Store what was read in another session; the next cycle continues from its position."""
        for run, result in outcome.results.items():
            query = self._runs.get(run)
            if query is None or query.parked:
                continue
            if isinstance(result, Failure):
                self._failed(query, result)
                continue
            query.read_at(outcome.position)
            if result is None:
                continue
            takers = wanted[query]
            if query.state is None or takers:  # so these are all rows
                # A watch that was added meanwhile, and has no rows yet, takes them, too.
                takers = takers | {
                    each for each in query.watches if each.without_rows and not each.session.busy
                }
            query.move(result, takers)

    def _apply_cycle(self, outcome: Outcome, wanted: Mapping[Query, set[Watch]]) -> None:
        """Pass what a cycle has read on to the queries and their watches, without sending it."""
        self._position = outcome.position
        for run, result in outcome.results.items():
            # A run that is not registered any more was replaced meanwhile: its query is run again.
            query = self._runs.get(run)
            if query is not None and not query.parked:
                self._apply_result(query, result, wanted.get(query, set()))
        for run in outcome.late:
            query = self._runs.get(run)
            if query is not None:
                query.invalidate()
                query.late += 1
                if run.heavy:  # it will be read completely, so cycles need not follow its changes
                    self._cycle.drop(run)
        for query in wanted:
            if query.since is not None and query.run in outcome.joined:
                query.join()
                for watch in query.watches:
                    watch.session.schedule(watch)
            if not (query.stale or any(watch.needs_rows for watch in query.watches)):
                self._to_read.discard(query)
        self._due = min(outcome.late.values(), default=self._poll)

    def _apply_result(
        self, query: Query, result: NewState | Failure | None, wanted: set[Watch]
    ) -> None:
        """Pass what a cycle has read of a query on to its watches, `wanted` of which take all rows."""
        if isinstance(result, Failure):
            self._failed(query, result)
            return
        was_late, query.late = query.late, 0
        query.stale = query.renewed = False
        query.conflicts = 0
        if result is not None:
            if result.drifted:
                self.drift += 1
                log.error(
                    "self-check failed: the rows of {query} differ from its state",
                    query=query.run.shape.statement.name,
                )
            query.move(result, wanted)
        if was_late:
            for watch in query.watches:
                watch.session.request_send()  # its other watches have waited

    def _check(self, tasks: list[QueryTask]) -> bool:
        """Add a self-check of one random query, if `CHECK` seconds have passed since the last."""
        if self.now() - self._checked < CHECK:
            return False
        # Not slow queries, whose read would hold up the cycle.
        known = [
            each
            for each in self._queries.values()
            if each.state is not None and each.since is None and each not in self._to_read
            if not (each.background or each.run.heavy)
        ]
        if known:
            tasks.append(replace(task_of(random.choice(known), set()), check=True))
        return bool(known)

    def _failed(self, query: Query, why: Failure) -> None:
        """
        End the watches of a query that has failed, unless another run may succeed.

        It may with a newer catalog, or after a conflict: TRUNCATE and DDL can deadlock with a read.
        """
        error: Any = why.value
        if isinstance(error, KeyRepeated):
            error = DatabaseRefused(
                "two rows have the same key, which is declared to be unique",
                hint="correct @key in the comment of the view",
                sqlstate="21000",
            )
        known = refusal(error)
        if isinstance(known, Conflict) and query.conflicts < MOST_CONFLICTS:
            query.conflicts += 1
            if known.details.get("clock") == "lock" and query.conflicts == MOST_CONFLICTS:
                query.conflicts -= 1  # as often as it takes: DDL may keep its locks for long
                self._warn("a read", error)
            query.invalidate()
            query.run.rest(time.monotonic(), PAUSES[0] * 2**query.conflicts)
            query.late += 1
            self.wake()
            return
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

        deferred(self._dispatcher.refresh()).addBoth(looked)

    async def _renew(self) -> None:
        """
        Plan all queries again with the current catalog.

        Raises:
            Unavailable: The database cannot be reached.
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
        if self._runs.get(query.run) is query:  # its last watch may have ended meanwhile
            self._drop(query.run)
            self._runs[run] = query
        run.last, run.duration, run.until = query.run.last, query.run.duration, query.run.until
        query.run = run
        query.invalidate()
