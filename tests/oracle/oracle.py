"""
Watching generated queries beside writers, and comparing the watchers' rows with past tables.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from typing import Any

import psycopg2
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.logger import LogLevel, capturedLogs, eventAsText

from schema import changes
from service.changes.watch import WatchLimits
from service.changes.watchers import WatchingSession
from service.errors import InternalError, ServiceError
from tests.conftest import execute
from tests.copies import Copy, as_set
from tests.db.dispatchers import DirectCaller, serving
from tests.db.watched import Live, LongCall, living
from tests.deferreds import pause, until
from tests.oracle.calls import draw_call
from tests.oracle.past import Past
from tests.oracle.queries import Query, draw, equivalent
from tests.oracle.world import FILL, MAKE, OWNER, ROLES, TABLES, Writers

TRACK = f"SELECT rowcast.track(t) FROM unnest('{{{','.join(TABLES)}}}'::regclass[]) t;"
DATABASE = f"{MAKE}{changes.install()}{TRACK}"
"""SQL for the watched tables. They are tracked while empty, so the log has all of their rows."""
LIMITS = WatchLimits(session=1000, rows=5000)
LOSE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'rowcast'"
    " AND pid <> pg_backend_pid()"
)
TRANSACTIONS = 40
"""Number of transactions of each writer in a burst."""
CALLS = 30
"""Number of writing calls in a burst."""
SAMPLES = 30
"""Number of intermediate states that are checked after a burst."""
ALTERATIONS = (
    "ALTER TABLE people ADD extra text",
    "REVOKE SELECT ON people FROM oracle_reader; GRANT SELECT (id, team, name) ON people TO oracle_reader",
    "ALTER TABLE people DROP extra",
    "GRANT SELECT ON people TO oracle_reader; REVOKE SELECT ON notes FROM oracle_reader",
    "CREATE POLICY late ON tasks TO oracle_reader USING (done)",
    "DROP POLICY late ON tasks; GRANT SELECT ON notes TO oracle_reader",
)
"""Changes of tables and rights, applied one after another; the last ones restore the initial state."""
TWINS = 0.15
"""Share of the queries for which an equivalent query is watched too."""


@dataclass
class Report:
    """
    The result of a run.

    Attributes:
        comparisons: Number of copies compared.
        wrong: Copies that differed from `find`: the query, the position, the copy, the rows of `find`.
        written: Number of calls that wrote something.
        refused: Number of generated queries that `find` refused; they are not watched.
        resets: Number of resets, in which a watcher receives all rows again.
        needless: Queries that were reset although the log had their missed changes.
        steps: Number of steps that watchers received.
        errors: Log events of the service at level error or critical, and watches that ended with an error.
    """

    comparisons: int = 0
    wrong: list[tuple[Query, str, Any, Any]] = field(default_factory=list)
    written: int = 0
    refused: int = 0
    resets: int = 0
    needless: list[Query] = field(default_factory=list)
    steps: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """The rows of all watchers of a session at a position."""

    position: str
    copies: list[tuple[Query, list[Any]]]


class Watcher:
    """
    A client that watches a query, and resumes at its position when it reconnects.

    Attributes:
        copy: Its copy of the rows.
        twin: The watcher of an equivalent query, if there is one.
        heard: Whether it has received a message since it called `watch`.
        error: The error that ended the call.
    """

    def __init__(self, query: Query, session: int) -> None:
        self.query = replace(query, caller=replace(query.caller, session=session))
        self.copy = Copy(groups=query.grouped)
        self.heard = False
        self.error: BaseException | None = None
        self.call: LongCall | None = None
        self.twin: Watcher | None = None
        self.on_step: Callable[[str], None] = lambda position: None

    def begin(self, served: DirectCaller) -> None:
        """Call `watch`, from the position of the copy if it is complete."""
        self.error, self.heard = None, False
        kwargs = dict(self.query.kwargs)
        if self.copy.complete:
            kwargs["since"] = self.copy.position
            self.copy = Copy(groups=self.query.grouped, since=self.copy)
        answer = served.dispatcher.answer(
            f"{self.query.name}.watch", (), kwargs, self.query.caller, progress=self._take
        )
        self.call = LongCall(answer, self._ended)

    def _take(self, message: dict[str, Any]) -> Awaitable[None]:
        self.copy.take(message)
        self.heard = True
        if message.get("step"):
            self.on_step(message["position"])
        return succeed(None)

    def _ended(self, error: Exception) -> None:
        self.error = error

    async def leave(self) -> None:
        """Cancel the call, as a disconnecting client does."""
        if self.call is not None and self.error is None:
            self.call.cancel()
            await until(lambda: self.error is not None)


async def answer_of(served: DirectCaller, query: Query) -> list[Any]:
    """Return the rows of the query by `find`, or by `aggregate` if it has measures."""
    verb = "aggregate" if query.grouped else "find"
    # Not `call`: it also compares the answer with its JSON Schema, which other tests do.
    name = f"{query.name}.{verb}"
    found = await served.dispatcher.answer(name, (), query.kwargs, query.caller)
    return list(found if query.grouped else found["rows"])


def same(query: Query, copy: Sequence[Any], rows: Sequence[Any]) -> bool:
    """Return whether a copy has the rows, in the same order if the query has one."""
    # Without a primary key, rows with equal sort keys may come in any order.
    if query.ordered and query.keyed:
        return list(copy) == list(rows)
    return as_set(list(copy)) == as_set(list(rows))


class Oracle:
    """
    One run.

    Args:
        past: Rebuilds the past tables.
        then: Serves the past tables.
        dice: Draws queries and samples.
        dsn: DSN of the database with the watched tables.
        past_dsn: DSN of the database with the past tables.

    Attributes:
        live: The service that serves the live queries.
    """

    def __init__(
        self, past: Past, then: DirectCaller, dice: random.Random, dsn: str, past_dsn: str
    ) -> None:
        self.past = past
        self.then = then
        self.dice = dice
        self.dsn = dsn
        self.past_dsn = past_dsn
        self.live: Live
        self._service = AsyncExitStack()
        self.report = Report()
        self.sessions: list[list[Watcher]] = []
        self.samples: list[Sample] = []

    async def start(self) -> None:
        """Start the service, and let the existing watchers resume."""
        self.live = await self._service.enter_async_context(living(self.dsn, LIMITS, roles=ROLES))
        for watcher in self.watchers:
            watcher.begin(self.live.served)
        if self.sessions:
            await self.settled()

    async def stop(self) -> None:
        """Stop the service, and wait until all watches have ended."""
        await self._service.aclose()
        await until(lambda: all(watcher.error is not None for watcher in self.watchers))

    async def watch(self, queries: Sequence[Query], sessions: int) -> None:
        """Watch queries, distributed over sessions; leave out those that `find` refuses."""
        first = len(self.sessions) + 1
        hands: list[list[Watcher]] = [[] for _ in range(sessions)]
        for at, query in enumerate(queries):
            try:
                await answer_of(self.live.served, query)
            except ServiceError:
                self.report.refused += 1
                continue
            hand, session = hands[at % sessions], first + at % sessions
            hand.append(Watcher(query, session))
            if self.dice.random() < TWINS and (twin := equivalent(self.dice, query)):
                hand.append(Watcher(twin, session))
                hand[-2].twin = hand[-1]
        for hand in hands:
            self.sessions.append(hand)
            for watcher in hand:
                watcher.on_step = partial(self._stepped, hand)
                watcher.begin(self.live.served)
        await self.settled()

    def _stepped(self, session: list[Watcher], position: str) -> None:
        self.report.steps += 1
        # A watcher that reconnected has the position of the session only after its first message.
        if not all(watcher.heard and watcher.copy.complete for watcher in session):
            return
        # All watches of a session move together, so a step also holds for those without a message.
        copies = [(watcher.query, list(watcher.copy.values)) for watcher in session]
        self.samples.append(Sample(position, copies))

    @property
    def watchers(self) -> Iterator[Watcher]:
        """Yield the watchers of all sessions."""
        for session in self.sessions:
            yield from session

    async def settled(self) -> None:
        """Wait until each watcher has its rows, with all changes that are committed now."""
        now = str(execute(self.dsn, "SELECT pg_current_snapshot()::text")[0][0])
        least = int(now.split(":")[1])
        watches = self.live.watches
        here = lambda watcher: (watcher.heard and watcher.copy.complete) or watcher.error  # noqa: E731
        await until(lambda: all(map(here, self.watchers)), 120)
        self.report.errors += (
            f"{watcher.query}: {watcher.error!r}"
            for watcher in self.watchers
            if watcher.error is not None and not isinstance(watcher.error, CancelledError)
        )
        await until(
            lambda: (
                watches._position is not None
                and watches._position.snapshot.xmin >= least
                and not any(map(_behind, watches._sessions.values()))
            ),
            120,
        )
        await pause(0.05)

    async def burst(self, seed: int, writers: int, transactions: int) -> None:
        """Run writers in threads and by calls, and wait until the watchers have all changes."""
        at_work = Writers(self.dsn, seed, writers, transactions)
        await self._write(random.Random(seed))
        while at_work.busy:
            await pause(0.02)
        await self.settled()

    async def _write(self, dice: random.Random) -> None:
        for _ in range(CALLS):
            name, kwargs = draw_call(dice)
            try:
                await self.live.served.dispatcher.answer(name, (), kwargs, OWNER)
                self.report.written += 1
            except ServiceError as error:
                assert not isinstance(error, InternalError), (name, kwargs)

    async def check(self, samples: int) -> None:
        """Compare the copies with `find` now, and some samples with `find` on the past tables."""
        now = [watcher for watcher in self.watchers if watcher.error is None]
        for watcher in now:
            if watcher.twin is not None and watcher.twin.error is None:
                self._compare(watcher.query, "twin", watcher.copy.values, watcher.twin.copy.values)
        answers = await self._answers(self.live.served, [watcher.query for watcher in now])
        for watcher, rows in zip(now, answers, strict=True):
            self._compare(watcher.query, "now", watcher.copy.values, rows)
        self.past.read()
        taken, self.samples = self.samples, []
        if len(taken) > samples:
            taken = self.dice.sample(taken, samples)
        for sample in taken:
            self.past.show(sample.position)
            answers = await self._answers(self.then, [query for query, _ in sample.copies])
            for (query, copy), rows in zip(sample.copies, answers, strict=True):
                self._compare(query, sample.position, copy, rows)

    async def _answers(self, served: DirectCaller, queries: Sequence[Query]) -> list[list[Any]]:
        asked = (Deferred.fromCoroutine(answer_of(served, query)) for query in queries)
        return list(await gatherResults(list(asked)))

    def _compare(self, query: Query, position: str, copy: Any, rows: Any) -> None:
        self.report.comparisons += 1
        if not same(query, copy, rows):
            self.report.wrong.append((query, position, copy, rows))

    async def reconnect(self, share: float) -> None:
        """Let a share of the clients disconnect and resume."""
        gone = [watcher for watcher in self.watchers if self.dice.random() < share]
        await gatherResults([Deferred.fromCoroutine(watcher.leave()) for watcher in gone])
        for watcher in gone:
            watcher.begin(self.live.served)

    async def lose_sessions(self) -> None:
        """Terminate all PostgreSQL sessions of the service."""
        execute(self.dsn, LOSE)
        await self.settled()

    async def alter(self, statements: str) -> None:
        """
        Change tables or rights, and compare the watched queries with `find`.

        A watch of a query that `find` now refuses must end; it is not started again.
        """
        for dsn in (self.dsn, self.past_dsn):
            execute(dsn, statements)
        for served in (self.live.served, self.then):
            await served.dispatcher.refresh()
        for session in self.sessions:
            for watcher in list(session):
                await self._altered(session, watcher)
        await self.settled()
        self.samples.clear()  # they contain queries that are now refused

    async def _altered(self, session: list[Watcher], watcher: Watcher) -> None:
        """Wait until a watcher has the rows of `find`, or has ended because `find` is refused."""
        try:
            rows = await answer_of(self.live.served, watcher.query)
        except ServiceError:
            await until(lambda: watcher.error is not None, 60)
            session.remove(watcher)
            for other in session:
                if other.twin is watcher:
                    other.twin = None
            return
        await until(lambda: watcher.error or same(watcher.query, watcher.copy.values, rows), 60)
        assert watcher.error is None, (watcher.query, watcher.error)
        self.report.comparisons += 1

    def count_resets(self) -> None:
        """Count the resets, and collect the queries that need not have been reset."""
        for watcher in self.watchers:
            self.report.resets += watcher.copy.resets
            if watcher.copy.resets and watcher.query.resumable:
                self.report.needless.append(watcher.query)


def _behind(session: WatchingSession) -> bool:
    """Return whether a session has not yet received all that the last cycle found."""
    return session.busy or any(watch.query.behind for watch in session.members)


@contextmanager
def past_database(dsn: str) -> Iterator[str]:
    """Create a second database with the same tables on the same server; yield its DSN."""
    name = f"{psycopg2.extensions.parse_dsn(dsn)['dbname']}_past"
    execute(dsn, f"CREATE DATABASE {name}")
    made = psycopg2.extensions.make_dsn(dsn, dbname=name)
    try:
        execute(made, MAKE)
        yield made
    finally:
        execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")


async def run(
    dsn: str,
    seed: int,
    work: Callable[[Oracle], Awaitable[None]],
) -> Report:
    """
    Run `work` with an oracle on a database in which `DATABASE` was run.

    Args:
        dsn: DSN of the database.
        seed: Seed of all random choices.
        work: Watches queries, writes and checks.
    """
    if not execute(dsn, "SELECT 1 FROM rowcast.log LIMIT 1"):
        execute(dsn, FILL)
    with past_database(dsn) as past_dsn:
        past = Past(dsn, past_dsn)
        try:
            async with serving(past_dsn, roles=ROLES) as then:
                oracle = Oracle(past, then, random.Random(seed), dsn, past_dsn)
                with capturedLogs() as events:
                    await oracle.start()
                    await work(oracle)
                    for watcher in oracle.watchers:
                        await watcher.leave()
                    await oracle.stop()
                levels = (LogLevel.error, LogLevel.critical)
                bad = [each for each in events if each.get("log_level") in levels]
                oracle.report.errors += map(eventAsText, bad)
                return oracle.report
        finally:
            past.close()


async def torture(
    oracle: Oracle,
    queries: int,
    least: int,
    sessions: int = 3,
    only: Callable[[Query], bool] = lambda query: True,
) -> None:
    """
    Watch queries through bursts of writes while clients reconnect, until enough comparisons or an error.

    Args:
        oracle: The oracle of the run.
        queries: Number of queries.
        least: Number of comparisons after which to stop.
        sessions: Number of sessions over which the queries are distributed.
        only: Returns whether a generated query is to be watched.
    """
    drawn = filter(only, (draw(oracle.dice) for _ in count()))
    await oracle.watch(list(islice(drawn, queries)), sessions)
    number = 0
    report = oracle.report
    while report.comparisons < least and not (report.wrong or report.errors):
        await oracle.burst(oracle.dice.randrange(10**6), 4, TRANSACTIONS)
        await oracle.check(SAMPLES)
        number += 1
        if number % 3 == 0:
            await oracle.reconnect(0.3)
            await oracle.settled()
    oracle.count_resets()


async def upheaval(oracle: Oracle, queries: int, sessions: int = 3) -> None:
    """Watch queries while the service restarts, loses its sessions, and tables and rights change."""
    await oracle.watch([draw(oracle.dice) for _ in range(queries)], sessions)
    for number, statements in enumerate(ALTERATIONS):
        await oracle.burst(oracle.dice.randrange(10**6), 4, 20)
        await oracle.check(SAMPLES)
        await oracle.alter(statements)
        if number % 2:
            await oracle.lose_sessions()
        else:
            await oracle.stop()
            # these rows are written while no client watches
            at_work = Writers(oracle.dsn, number, 3, 10)
            await until(lambda: not at_work.busy)  # noqa: B023 - of this turn
            await oracle.start()
    await oracle.check(SAMPLES)
    oracle.count_resets()
