"""
The verb `watch`: live queries.

A query that is watched has its rows' keys and hashes here, however many watch it. After each
refresh cycle (`changes/cycle.py`) its watchers are told what is different. The watches of one
session move together: what is sent to it next is made when what was sent before has been taken, of
the state by then, so a slow caller gets fewer and larger deltas.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.api.call import STAND, Call, Send
from service.api.dispatcher import Dispatcher, depends_on_catalog
from service.api.read import parsed_rows
from service.changes.cycle import Cycle, Found, Order
from service.changes.delta import (
    KeyRepeated,
    Message,
    Rows,
    State,
    alive_message,
    delta_message,
    difference,
    has_copies,
    snapshot_messages,
)
from service.changes.dependencies import Dependencies, dependencies_txn
from service.changes.log import Tracked, installed_txn, tracked_txn
from service.changes.positions import SnapshotPosition, parse_position
from service.changes.refresh import Run, keyed_of
from service.changes.touched import sees_all_txn
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.errors import refusal
from service.db.session import OWN_IDENTITY
from service.db.transaction import Actor
from service.errors import DatabaseRefused, ServiceError, Unavailable, UnknownName
from service.plan.aggregate import AggregatePlan
from service.plan.watch import plan_watch
from service.request.functions import CalledRequest
from service.request.read import MAX_GROUPS
from service.request.watch import WatchOptions, parse_options, parse_watched
from service.sql.aggregate import aggregate
from service.sql.select import select

log = Logger()

POLL = 0.05
"""Seconds between two cycles if nothing wakes us."""

PAUSES = (0.1, 5.0)
"""Seconds between two tries of a cycle while the database cannot be reached: first, and at most."""

ALIVE = 15.0
"""Seconds after which a watcher hears that nothing has changed."""

RUN_LIMIT = 5.0
"""Seconds that one run of a query may take: all others wait for it."""


@dataclass(frozen=True)
class WatchLimits:
    """
    How much may be watched.

    Args:
        session: Watches of one session.
        rows: Of one result.
        max_bytes: That one result, or what waits for one session, may weigh.
    """

    session: int = 100
    rows: int = 10_000
    max_bytes: int = 8 << 20


class Query:
    """
    A query that is watched, by one or more.

    Attributes:
        run: How it is run.
        state: What it was found in last; None before its first run.
        watches: Of it.
        renewed: Whether it was refused, and planned anew since.
    """

    def __init__(self, name: Hashable, run: Run) -> None:
        self.name = name
        self.run = run
        self.state: State | None = None
        self.watches: dict[Watch, None] = {}
        self.renewed = False


class Watch:
    """
    One call of `watch`.

    Attributes:
        query: What it watches.
        base: What the caller has; None until it has been sent all rows.
        reset: Whether the caller has rows that count no more.
        rows: All of them, to be sent.
        changed: Rows that are different from those that the caller has, in their last form.
        weight: Of these, roughly, in bytes.
        told: When it was sent something last.
    """

    def __init__(self, call: Call, send: Send, session: SessionWatches, query: Query) -> None:
        self.call = call
        self.send = send
        self.session = session
        self.query = query
        self.base: State | None = None
        self.reset = False
        self.rows: Rows | None = None
        self.changed: dict[Hashable, Any] = {}
        self.told = 0.0
        self.done: Deferred[None] = Deferred()

    @property
    def wanting(self) -> bool:
        """Whether all rows are wanted for it, and not there yet."""
        return self.base is None and self.rows is None

    def start_over(self) -> None:
        """Send all rows next, in place of those that the caller has."""
        self.base, self.reset, self.rows = None, True, None
        self.changed.clear()

    def end(self, why: Exception | Failure) -> None:
        """End the call with an error."""
        if not self.done.called:
            self.done.errback(why)


class SessionWatches:
    """
    The watches of one session, which move together.

    Args:
        watches: All that there are.
    """

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self.members: dict[Watch, None] = {}
        self.busy = False

    def go(self) -> None:
        """Send what there is to send, as fast as it is taken."""
        if not self.busy:
            self.busy = True
            # Whoever comes here may act as a caller, or be in a transaction.
            sending = Context().run(Deferred.fromCoroutine, self._go())
            sending.addErrback(lambda why: log.failure("cannot send to a watcher", why))

    async def _go(self) -> None:
        try:
            while step := self._step():
                await self._send(step)
        finally:
            self.busy = False

    def _step(self) -> list[tuple[Watch, Iterator[Message]]]:
        """Return what brings each watch to the last state; nothing while one waits for its rows."""
        if any(watch.wanting for watch in self.members):
            self._watches.wake()
            return []
        position = self._watches.position
        found = []
        for watch in self.members:
            messages = _next_messages(watch, position)
            if messages is not None:
                found.append((watch, messages))
        return found

    async def _send(self, step: Sequence[tuple[Watch, Iterator[Message]]]) -> None:
        sending = []
        last = step[-1][0]
        for watch, messages in step:
            message = next(messages, None)
            while message is not None:
                following = next(messages, None)
                if watch is last and following is None:
                    message["step"] = True
                sent = self._sent(watch, message)
                if following is None:
                    sending.append(sent)
                else:
                    await sent
                message = following
        await DeferredList(sending)

    def _sent(self, watch: Watch, message: Message) -> Deferred[None]:
        return Deferred.fromCoroutine(self._one(watch, message))

    async def _one(self, watch: Watch, message: Message) -> None:
        if watch.done.called:
            return
        watch.told = self._watches.now()
        try:
            await watch.send(message)
        except Exception as error:
            watch.end(error)


def _next_messages(watch: Watch, position: str) -> Iterator[Message] | None:
    """Return the messages that bring a watch to the state of its query, if it has another one."""
    state, form = watch.query.state, watch.query.run.plan.form
    if watch.rows is not None:
        rows, watch.rows = watch.rows, None
        reset, watch.reset = watch.reset, False
        watch.base = rows.state
        watch.changed.clear()
        return snapshot_messages(form, rows, position, reset)
    before = watch.base
    if before is state or before is None or state is None:
        return None
    watch.base = state
    changed, watch.changed = watch.changed, {}
    change = difference(before, state)
    if not change:
        return None
    if form.ordered and (has_copies(before) or has_copies(state)):
        # By its key it could not be told where a row goes. Such rows are their own keys.
        all_rows = {name: entry.key for name, entry in state.entries.items()}
        return snapshot_messages(form, Rows(state, all_rows), position, reset=True)
    return iter([delta_message(form, before, state, change, changed, position)])


class Watches(Service):
    """
    All watches, and the cycles that keep them up to date.

    Args:
        reactor: For pauses, and to measure time.
        database: Asked what is tracked.
        dispatcher: For what is served now.
        cycle: Runs the queries.
        limits: How much may be watched.
    """

    def __init__(
        self,
        reactor: Any,
        database: Database,
        dispatcher: Dispatcher,
        cycle: Cycle,
        limits: WatchLimits = WatchLimits(),
        timeout: float = RUN_LIMIT,
    ) -> None:
        self._reactor = reactor
        self._database = database
        self._dispatcher = dispatcher
        self._cycle = cycle
        self._limits = limits
        self._timeout = min(timeout, RUN_LIMIT)
        self._queries: dict[Hashable, Query] = {}
        self._sessions: dict[Hashable, SessionWatches] = {}
        self._served: Any = None
        self._position: SnapshotPosition | None = None
        self.position = ""
        self._running: Deferred[None] | None = None
        self._resting: Deferred[None] | None = None
        self._woken = False
        self._stopping = False
        self._looking: IDelayedCall | None = None
        self.cycles = 0

    def now(self) -> float:
        """Return the time, in seconds of the reactor's clock."""
        return float(self._reactor.seconds())

    def wake(self) -> None:
        """Run a cycle as soon as may be: there may be something new."""
        self._woken = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def startService(self) -> None:
        """Permit watches; cycles run once there is one."""
        super().startService()
        self._stopping = False

    def drain(self) -> None:
        """Refuse watches from now on, and end those that are there: another service has them next."""
        self._stopping = True
        for session in list(self._sessions.values()):
            for watch in list(session.members):
                watch.end(_stopping())

    def departed(self, session: int | None) -> None:
        """End the watches of a session that is gone; None: all are."""
        for key, each in list(self._sessions.items()):
            if session is None or key == session:
                for watch in list(each.members):
                    watch.done.cancel()

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
        return {
            "watches": sum(len(each.members) for each in self._sessions.values()),
            "queries": len(self._queries),
            "rows": sum(len(each.state.entries) for each in self._queries.values() if each.state),
            "cycles": self.cycles,
        }

    async def take(self, call: Call) -> Any:
        """
        Answer `watch`, until the caller ends it.

        Raises:
            InvalidArgument: Among others, the caller does not take progressive results.
            Unavailable: The session has as many watches as it may, or the service is stopping.
            DatabaseRefused: What the query reads is not tracked.
        """
        send = call.parts()
        options, rest = parse_options(call.kwargs)
        since = None if options.since is None else parse_position(options.since)
        self._check_room(call)
        run = await self._run_of(replace(call, kwargs=rest), options)
        self._check_room(call)
        STAND.get()()
        watch = self._add(replace(call, kwargs=rest), send, run)
        watch.reset = since is not None
        try:
            await watch.done
        finally:
            self._remove(watch)

    def _check_room(self, call: Call) -> None:
        if self._stopping or not self.running:
            raise _stopping()
        session = self._sessions.get(_key(call))
        if session is not None and len(session.members) >= self._limits.session:
            raise Unavailable(
                f"this session has {len(session.members)} watches, as many as it may",
                retry_after=5.0,
                hint="cancel one that is not needed any more",
            )

    async def _run_of(self, call: Call, options: WatchOptions) -> Run:
        """Parse and plan the query of a call, and find out what it reads."""
        limits, most = call.backend.limits, self._limits.rows
        parsed = parsed_rows(
            call,
            call.kwargs,
            lambda args, kwargs, _, rows: parse_watched(args, kwargs, limits, rows, most),
        )
        plan = plan_watch(call.snapshot.catalog, call.relation, parsed.request)
        if isinstance(plan.read, AggregatePlan):
            statement, most = aggregate(plan.read), MAX_GROUPS
        else:
            statement = select(plan.read)
        codec = call.snapshot.codec
        parameters = codec.parameters(statement.bounds, parsed.values)
        run, timeout = self._database.run, parsed.timeout
        reads = await run(dependencies_txn, statement, parameters, retry=True, timeout=timeout)
        with self._database.identity(OWN_IDENTITY):
            tracked = await run(_tracked_txn, retry=True, timeout=timeout)
        values = list(parsed.values)
        catalog, logged = (
            call.snapshot.catalog,
            _logged(call, reads, tracked.values(), options.tables),
        )
        keyed = keyed_of(catalog, codec, plan, values, reads, tracked.values(), most)
        if keyed is not None:
            with self._database.identity(OWN_IDENTITY):
                shared = await run(
                    sees_all_txn, keyed.plan, tracked.values(), retry=True, timeout=timeout
                )
            keyed = replace(keyed, shared=shared)
            if keyed.shown is not None and plan.read.limit is not None:
                values[plan.read.limit.slot] = keyed.shown + keyed.spare
        return Run(
            plan,
            statement,
            codec,
            values,
            most,
            self._limits.max_bytes,
            Actor(self._database.acting_as),
            min(self._timeout, parsed.timeout or self._timeout),
            isinstance(parsed.request, CalledRequest),
            logged,
            keyed,
        )

    def _add(self, call: Call, send: Send, run: Run) -> Watch:
        name = (
            run.statement.text,
            # As Python writes them: equal numbers of other types may be other parameters.
            repr(run.values),
            run.actor.identity,
            run.plan.form,
            run.timeout,
            run.reads,
        )
        query = self._queries.get(name)
        if query is None:
            query = self._queries[name] = Query(name, run)
        session = self._sessions.get(_key(call))
        if session is None:
            session = self._sessions[_key(call)] = SessionWatches(self)
        watch = Watch(call, send, session, query)
        watch.told = self.now()
        query.watches[watch] = session.members[watch] = None
        if self._running is None:
            self._served = self._dispatcher.served
            self._running = Context().run(Deferred.fromCoroutine, self._keep())
        self.wake()
        return watch

    def _remove(self, watch: Watch) -> None:
        """Forget a watch, and what nobody else needs of it."""
        query, session = watch.query, watch.session
        query.watches.pop(watch, None)
        if not query.watches and self._queries.get(query.name) is query:
            del self._queries[query.name]
        session.members.pop(watch, None)
        if not session.members:
            key = _key(watch.call)
            if self._sessions.get(key) is session:
                del self._sessions[key]
        else:
            session.go()

    async def _keep(self) -> None:
        """Run cycles for as long as there are watches."""
        failures = 0
        try:
            while self._queries and self.running:
                self._woken = False
                try:
                    await self._turn()
                    failures = 0
                    pause = POLL
                except CancelledError:
                    raise
                except Exception as error:
                    log.warn("cannot look for changes: {error}", error=_first_line(error))
                    # The session is new the next time: what was missed is not known.
                    self._position = None
                    pause = min(PAUSES[1], PAUSES[0] * 2**failures)
                    failures += 1
                if failures or not self._woken:
                    await self._rest(pause)
        finally:
            self._running = None
            await self._cycle.close()
            self._position = None
        if self._queries and self.running:
            self._running = Context().run(Deferred.fromCoroutine, self._keep())

    async def _rest(self, seconds: float) -> None:
        resting = self._resting = Deferred()
        timer = self._reactor.callLater(seconds, self.wake)
        await resting
        if timer.active():
            timer.cancel()

    async def _turn(self) -> None:
        """Run one cycle, and tell the watchers."""
        self._renew()
        queries = list(self._queries.values())
        wanted = {
            query: {watch for watch in query.watches if watch.wanting and not watch.session.busy}
            for query in queries
        }
        orders = [Order(query.run, query.state, bool(wanted[query])) for query in queries]
        outcome = await self._cycle.run(orders, self._position)
        self.cycles += 1
        self._position, self.position = outcome.position, str(outcome.position)
        sessions: dict[SessionWatches, None] = {}
        for query, run, found in zip(queries, (o.run for o in orders), outcome.found, strict=True):
            # Planned anew meanwhile, it is run again.
            if found is None or query.run is not run:
                continue
            if isinstance(found, Failure):
                self._failed(query, found)
                continue
            query.renewed = False
            self._tell(query, found, wanted[query])
            sessions.update(dict.fromkeys(watch.session for watch in query.watches))
        for session in sessions:
            session.go()
        self._keep_alive()

    def _tell(self, query: Query, found: Found, wanted: set[Watch]) -> None:
        """Give the watches of a query what a cycle has found."""
        query.state = found.state
        for watch in query.watches:
            if watch in wanted and watch.wanting:
                watch.rows = Rows(found.state, dict(found.rows))
            elif watch.base is not None:
                watch.changed.update(found.rows)

    def _failed(self, query: Query, why: Failure) -> None:
        """End the watches of a query that is refused; by a newer catalog it may not be."""
        error: Any = why.value
        if isinstance(error, KeyRepeated):
            error = DatabaseRefused(
                "two rows have the same key, which is said to be unique",
                hint="mend the comment of the view that says @key",
            )
        known = error if isinstance(error, ServiceError) else refusal(error)
        if not query.renewed and known is not None and depends_on_catalog(known):
            query.renewed = True
            looking = self._dispatcher.refresh()
            Deferred.fromCoroutine(_awaited(looking)).addBoth(lambda _: self.wake())
            return
        for watch in list(query.watches):
            watch.end(error)

    def _renew(self) -> None:
        """Plan all queries anew if another catalog is served."""
        served = self._dispatcher.served
        if served is self._served:
            return
        self._served = served

    def _keep_alive(self) -> None:
        now = self.now()
        for session in self._sessions.values():
            if session.busy:
                continue
            for watch in session.members:
                state = watch.query.state
                if state is not None and watch.base is state and now - watch.told >= ALIVE:
                    session._sent(watch, alive_message(state, self.position))


def _key(call: Call) -> Hashable:
    # A router that discloses no callers would have all of them move as one, and share its bound.
    return call.id if call.caller.session is None else call.caller.session


def _stopping() -> Unavailable:
    return Unavailable("the service is stopping", reason="stopped", retry_after=0.0)


async def _awaited(work: Any) -> Any:
    return await work


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _tracked_txn(connection: PgConnection) -> dict[int, Tracked]:
    return tracked_txn(connection) if installed_txn(connection) else {}


def _logged(
    call: Call, reads: Dependencies, tracked: Collection[Tracked], tables: Sequence[str]
) -> frozenset[int]:
    """
    Return what of the log may change the rows of a query.

    Raises:
        DatabaseRefused: Changes of something that it reads are not logged.
        UnknownName: The caller has named a table that is none.
    """
    catalog = call.snapshot.catalog
    known = {name for schema, table in catalog.relations for name in (table, f"{schema}.{table}")}
    untracked = reads.untracked(tracked)
    if untracked:
        # A policy, say, may ask a table that the caller does not know.
        shown = [name for name in untracked if name.replace('"', "") in known]
        raise DatabaseRefused(
            f"changes of {shown[0]} are not logged, so it cannot be watched"
            if shown
            else "changes of a table that this reads are not logged, so it cannot be watched",
            relation=shown[0] if shown else None,
            hint=f"rowcast track {shown[0]}" if shown else "rowcast track …, of all that it reads",
        )
    found = reads.tracked(tracked)
    if not reads.opaque:
        return found
    if not tables:
        return frozenset(each.id for each in tracked)
    named = set()
    for at, table in enumerate(tables):
        schema, dot, name = table.rpartition(".")
        place = (schema if dot else catalog.schemas[0], name)
        if place not in catalog.relations:
            raise UnknownName("table", table, sorted(known), path=f"tables.{at}")
        ids = [each.id for each in tracked if (each.schema, each.name) == place]
        if not ids:
            raise DatabaseRefused(
                f"changes of {table} are not logged", hint=f"rowcast track {table}"
            )
        named.update(ids)
    return found | named
