"""
Watching generated queries beside writers, and asking the past whether the copies were right.
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
from service.changes.watching_session import WatchingSession
from service.errors import InternalError, ServiceError
from tests.conftest import execute
from tests.copies import Copy, as_set
from tests.db.dispatchers import DirectCaller, serving
from tests.db.watched import Lasts, Live, living
from tests.deferreds import pause, until
from tests.oracle.calls import draw_call
from tests.oracle.past import Past
from tests.oracle.queries import Question, draw, in_other_words
from tests.oracle.world import FILL, MAKE, OWNER, ROLES, TABLES, Writers

TRACK = f"SELECT rowcast.track(t) FROM unnest('{{{','.join(TABLES)}}}'::regclass[]) t;"
DATABASE = f"{MAKE}{changes.install()}{TRACK}"
"""What is watched; the log has all of its rows, from the first."""
LIMITS = WatchLimits(session=1000, rows=5000)
LOSE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'rowcast'"
    " AND pid <> pg_backend_pid()"
)
TRANSACTIONS = 40
"""Of each writer in a burst."""
CALLS = 30
"""That write, in a burst."""
SAMPLES = 30
"""States in between that are checked after a burst."""
ALTERATIONS = (
    "ALTER TABLE people ADD extra text",
    "REVOKE SELECT ON people FROM oracle_reader; GRANT SELECT (id, team, name) ON people TO oracle_reader",
    "ALTER TABLE people DROP extra",
    "GRANT SELECT ON people TO oracle_reader; REVOKE SELECT ON notes FROM oracle_reader",
    "CREATE POLICY late ON tasks TO oracle_reader USING (done)",
    "DROP POLICY late ON tasks; GRANT SELECT ON notes TO oracle_reader",
)
"""What becomes of tables and rights, one after the other; at the end they are as they were."""
TWINS = 0.15
"""How many of the queries are watched in other words, too."""


@dataclass
class Report:
    """
    What came of a run.

    Attributes:
        comparisons: Copies that were held against the past.
        wrong: Those that were not what `find` answered then: the query, the position, both answers.
        written: Calls that have written something.
        refused: Queries that the service has refused, by the same error as `find`.
        resets: Copies that were sent anew to clients that came back.
        needless: The queries of those whose changes the log leads to.
        steps: States that watchers were brought to.
        errors: What the service has logged as one.
    """

    comparisons: int = 0
    wrong: list[tuple[Question, str, Any, Any]] = field(default_factory=list)
    written: int = 0
    refused: int = 0
    resets: int = 0
    needless: list[Question] = field(default_factory=list)
    steps: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """Copies of all rows at a position, by watch."""

    position: str
    copies: list[tuple[Question, list[Any]]]


class Kept:
    """
    A query that is watched, by a client that comes back where it was.

    Attributes:
        copy: The rows that it has.
        twin: The same query in other words, if it is watched too.
        heard: Whether it has heard of where it is since it began.
        error: Why it has ended.
    """

    def __init__(self, question: Question, session: int) -> None:
        self.question = replace(question, caller=replace(question.caller, session=session))
        self.copy = Copy(groups=question.grouped)
        self.heard = False
        self.error: BaseException | None = None
        self.call: Lasts | None = None
        self.twin: Kept | None = None
        self.on_step: Callable[[str], None] = lambda position: None

    def begin(self, served: DirectCaller) -> None:
        """Call `watch`, from where the copy stands."""
        self.error, self.heard = None, False
        kwargs = dict(self.question.kwargs)
        if self.copy.complete:
            kwargs["since"] = self.copy.position
            self.copy = Copy(groups=self.question.grouped, since=self.copy)
        answer = served.dispatcher.answer(
            f"{self.question.name}.watch", (), kwargs, self.question.caller, progress=self._take
        )
        self.call = Lasts(answer, self._ended)

    def _take(self, message: dict[str, Any]) -> Awaitable[None]:
        self.copy.take(message)
        self.heard = True
        if message.get("step"):
            self.on_step(message["position"])
        return succeed(None)

    def _ended(self, error: Exception) -> None:
        self.error = error

    async def leave(self) -> None:
        """End the call, as a client that goes away does."""
        if self.call is not None and self.error is None:
            self.call.cancel()
            await until(lambda: self.error is not None)


async def answer_of(served: DirectCaller, question: Question) -> list[Any]:
    """Return what the query gives by `find`, or by `aggregate`."""
    verb = "aggregate" if question.grouped else "find"
    # Not `call`, which compares each answer with its description: that is tested elsewhere.
    name = f"{question.name}.{verb}"
    found = await served.dispatcher.answer(name, (), question.kwargs, question.caller)
    return list(found if question.grouped else found["rows"])


def same(question: Question, copy: Sequence[Any], rows: Sequence[Any]) -> bool:
    """Return whether a copy has the rows, in their order if they have one."""
    # Between rows that the sort keys do not tell apart any order is right: those without a key.
    if question.ordered and question.keyed:
        return list(copy) == list(rows)
    return as_set(list(copy)) == as_set(list(rows))


class Oracle:
    """
    One run.

    Args:
        past: Makes the past.
        then: Serves it.
        dice: Draws queries and samples.
        dsn: Of what is watched.
        other: Of the past.

    Attributes:
        live: Where queries are watched.
    """

    def __init__(
        self, past: Past, then: DirectCaller, dice: random.Random, dsn: str, other: str
    ) -> None:
        self.past = past
        self.then = then
        self.dice = dice
        self.dsn = dsn
        self.other = other
        self.live: Live
        self._service = AsyncExitStack()
        self.report = Report()
        self.sessions: list[list[Kept]] = []
        self.samples: list[Sample] = []

    async def start(self) -> None:
        """Start the service, and have the clients that there are come back to where they were."""
        self.live = await self._service.enter_async_context(living(self.dsn, LIMITS, roles=ROLES))
        for kept in self.kept:
            kept.begin(self.live.served)
        if self.sessions:
            await self.settled()

    async def stop(self) -> None:
        """Stop the service; all that is watched ends."""
        await self._service.aclose()
        await until(lambda: all(kept.error is not None for kept in self.kept))

    async def watch(self, questions: Sequence[Question], sessions: int) -> None:
        """Begin to watch queries, dealt out to sessions; those that `find` refuses are left out."""
        first = len(self.sessions) + 1
        hands: list[list[Kept]] = [[] for _ in range(sessions)]
        for at, question in enumerate(questions):
            try:
                await answer_of(self.live.served, question)
            except ServiceError:
                self.report.refused += 1
                continue
            hand, session = hands[at % sessions], first + at % sessions
            hand.append(Kept(question, session))
            if self.dice.random() < TWINS and (twin := in_other_words(self.dice, question)):
                hand.append(Kept(twin, session))
                hand[-2].twin = hand[-1]
        for hand in hands:
            self.sessions.append(hand)
            for kept in hand:
                kept.on_step = partial(self._stepped, hand)
                kept.begin(self.live.served)
        await self.settled()

    def _stepped(self, session: list[Kept], position: str) -> None:
        self.report.steps += 1
        # One that has come back moves with the others only once it has heard of them.
        if not all(kept.heard and kept.copy.complete for kept in session):
            return
        # Watches that heard nothing of the step are where the others are: all move together.
        copies = [(kept.question, list(kept.copy.values)) for kept in session]
        self.samples.append(Sample(position, copies))

    @property
    def kept(self) -> Iterator[Kept]:
        """Yield all that is watched."""
        for session in self.sessions:
            yield from session

    async def settled(self) -> None:
        """Wait until every watch has its rows, and what was committed by now is in them."""
        now = str(execute(self.dsn, "SELECT pg_current_snapshot()::text")[0][0])
        least = int(now.split(":")[1])
        watches = self.live.watches
        here = lambda kept: (kept.heard and kept.copy.complete) or kept.error  # noqa: E731
        await until(lambda: all(map(here, self.kept)), 120)
        for kept in self.kept:
            if kept.error is not None and not isinstance(kept.error, CancelledError):
                raise AssertionError(kept.question) from kept.error
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
        """Have writers at work, one of them by calls, and wait until all is told."""
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
        """Hold the copies against what `find` answers now, and samples against the past."""
        now = [kept for kept in self.kept if kept.error is None]
        for kept in now:
            if kept.twin is not None and kept.twin.error is None:
                self._compare(kept.question, "twin", kept.copy.values, kept.twin.copy.values)
        answers = await self._answers(self.live.served, [kept.question for kept in now])
        for kept, rows in zip(now, answers, strict=True):
            self._compare(kept.question, "now", kept.copy.values, rows)
        self.past.read()
        taken, self.samples = self.samples, []
        if len(taken) > samples:
            taken = self.dice.sample(taken, samples)
        for sample in taken:
            self.past.show(sample.position)
            answers = await self._answers(self.then, [question for question, _ in sample.copies])
            for (question, copy), rows in zip(sample.copies, answers, strict=True):
                self._compare(question, sample.position, copy, rows)

    async def _answers(
        self, served: DirectCaller, questions: Sequence[Question]
    ) -> list[list[Any]]:
        asked = (Deferred.fromCoroutine(answer_of(served, question)) for question in questions)
        return list(await gatherResults(list(asked)))

    def _compare(self, question: Question, position: str, copy: Any, rows: Any) -> None:
        self.report.comparisons += 1
        if not same(question, copy, rows):
            self.report.wrong.append((question, position, copy, rows))

    async def come_back(self, share: float) -> None:
        """Have clients leave, and come back to where they were."""
        gone = [kept for kept in self.kept if self.dice.random() < share]
        await gatherResults([Deferred.fromCoroutine(kept.leave()) for kept in gone])
        for kept in gone:
            kept.begin(self.live.served)

    async def lose_sessions(self) -> None:
        """End every session of the service at the database."""
        execute(self.dsn, LOSE)
        await self.settled()

    async def alter(self, statements: str) -> None:
        """
        Change what is there, or who may see it, and hold what is watched against it.

        What `find` refuses by now has to end, and is watched no more.
        """
        for dsn in (self.dsn, self.other):
            execute(dsn, statements)
        for served in (self.live.served, self.then):
            await served.dispatcher.refresh()
        for session in self.sessions:
            for kept in list(session):
                await self._altered(session, kept)
        await self.settled()
        self.samples.clear()  # they have queries that are refused by now

    async def _altered(self, session: list[Kept], kept: Kept) -> None:
        """Hold a query against what it answers now: the same rows, or a refusal."""
        try:
            rows = await answer_of(self.live.served, kept.question)
        except ServiceError:
            await until(lambda: kept.error is not None, 60)
            session.remove(kept)
            for other in session:
                if other.twin is kept:
                    other.twin = None
            return
        await until(lambda: kept.error or same(kept.question, kept.copy.values, rows), 60)
        assert kept.error is None, (kept.question, kept.error)
        self.report.comparisons += 1

    def count_resets(self) -> None:
        """Count the copies that were sent anew, and find those that need not have been."""
        for kept in self.kept:
            self.report.resets += kept.copy.resets
            if kept.copy.resets and kept.question.resumable:
                self.report.needless.append(kept.question)


def _behind(session: WatchingSession) -> bool:
    """Return whether a session has not been told all that the last cycle saw."""
    return session.busy or any(watch.query.behind for watch in session.members)


@contextmanager
def beside(dsn: str) -> Iterator[str]:
    """Make another database with the same tables, on the same server."""
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
    Run what is to be done with an oracle over a database that was made by `DATABASE`.

    Args:
        dsn: Of the database.
        seed: Of all that is drawn.
        work: What to watch, write and check.
    """
    if not execute(dsn, "SELECT 1 FROM rowcast.log LIMIT 1"):
        execute(dsn, FILL)
    with beside(dsn) as other:
        past = Past(dsn, other)
        try:
            async with serving(other, roles=ROLES) as then:
                oracle = Oracle(past, then, random.Random(seed), dsn, other)
                with capturedLogs() as events:
                    await oracle.start()
                    await work(oracle)
                    for kept in oracle.kept:
                        await kept.leave()
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
    only: Callable[[Question], bool] = lambda question: True,
) -> None:
    """
    Watch queries through bursts of writes, clients coming and going, until they are wrong.

    Args:
        oracle: Of the run.
        queries: How many.
        least: Comparisons after which it is enough.
        sessions: Among which the queries are dealt out.
        only: Says of a query whether it is to be watched.
    """
    drawn = filter(only, (draw(oracle.dice) for _ in count()))
    await oracle.watch(list(islice(drawn, queries)), sessions)
    number = 0
    while oracle.report.comparisons < least and not oracle.report.wrong:
        await oracle.burst(oracle.dice.randrange(10**6), 4, TRANSACTIONS)
        await oracle.check(SAMPLES)
        number += 1
        if number % 3 == 0:
            await oracle.come_back(0.3)
            await oracle.settled()
    oracle.count_resets()


async def upheaval(oracle: Oracle, queries: int, sessions: int = 3) -> None:
    """Watch queries while the service, its sessions, tables and rights do not stay as they are."""
    await oracle.watch([draw(oracle.dice) for _ in range(queries)], sessions)
    for number, statements in enumerate(ALTERATIONS):
        await oracle.burst(oracle.dice.randrange(10**6), 4, 20)
        await oracle.check(SAMPLES)
        await oracle.alter(statements)
        if number % 2:
            await oracle.lose_sessions()
        else:
            await oracle.stop()
            # what is written while nobody watches
            at_work = Writers(oracle.dsn, number, 3, 10)
            await until(lambda: not at_work.busy)  # noqa: B023 - of this turn
            await oracle.start()
    await oracle.check(SAMPLES)
    oracle.count_resets()
