"""
Reads of single rows that wait together share a run: one statement reads the rows of all of them.
"""

from __future__ import annotations

import gc
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from sys import getrefcount
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults

from service.api.roles import Roles
from service.db.connection import PgCursor
from service.db.pool import Scheduler
from service.db.worker import (
    GROUP_MOST,
    GROUP_SECONDS,
    JOB_OWNER,
    GroupLimit,
    Job,
    JobGroup,
    Origin,
)
from service.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    ServiceError,
    StatementTimeout,
    TooLarge,
    Unavailable,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.db.test_slow import slow
from tests.deferreds import failure_of, pause, until

SCHEMA = """
CREATE EXTENSION citext;
CREATE ROLE sr_clerk;
CREATE TABLE lands (id int PRIMARY KEY, code text UNIQUE, n int);
INSERT INTO lands SELECT i, 'c' || i, i * 10 FROM generate_series(1, 50) i;
CREATE TABLE towns (id serial PRIMARY KEY, land int REFERENCES lands, name text);
INSERT INTO towns (land, name) SELECT i % 50 + 1, 'Town ' || i FROM generate_series(1, 150) i;
CREATE TABLE pairs (a int, b text, n numeric(6, 2), PRIMARY KEY (a, b));
INSERT INTO pairs SELECT i % 3, 'b' || i, i FROM generate_series(1, 9) i;
CREATE TABLE texts (id int PRIMARY KEY, ci citext UNIQUE,
    fixed char(5) UNIQUE, number numeric UNIQUE, at timestamptz UNIQUE, raw bytea UNIQUE);
INSERT INTO texts VALUES (1, 'Ada', 'a', 1.0, '2026-01-01Z', '\\x01'),
    (2, 'Bob', 'b', 2.50, '2026-01-02Z', '\\x02');
CREATE TABLE divided (id int PRIMARY KEY, n int); INSERT INTO divided SELECT i, i FROM generate_series(1, 9) i;
ALTER TABLE divided ENABLE ROW LEVEL SECURITY;
CREATE POLICY divided ON divided USING (100 / (n - 5) <> 99);
CREATE TABLE own (id int PRIMARY KEY, authid text, session text);
INSERT INTO own VALUES (1, 'ada', '1'), (2, 'bob', '2');
ALTER TABLE own ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON own USING (authid = current_setting('rowcast.authid', true));
CREATE FUNCTION doubled(lands) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1.n * 2';
CREATE VIEW shown AS SELECT id, n FROM lands; COMMENT ON VIEW shown IS '@key id';
CREATE TABLE large (id int PRIMARY KEY, body text); INSERT INTO large SELECT i, repeat('x', 7000)
    FROM generate_series(1, 9) i;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO sr_clerk;
"""
ROLES = Roles({"clerk": "sr_clerk"})

pytestmark = pytest.mark.serving(most=1)

Asked = tuple[str, dict[str, Any]]


class Owner:
    """A caller's session, as the scheduler sees it."""

    blocked = ""

    def __init__(self, light: bool = True) -> None:
        self.light = light
        self.given = 0


@contextmanager
def runs(scheduler: Scheduler) -> Iterator[list[int]]:
    """Collect the number of calls that each run of a group served."""
    found: list[int] = []
    post = scheduler.post

    def noted(job: Any, more: bool) -> None:
        if isinstance(job, JobGroup):
            found.append(len(job.running))
        post(job, more)

    scheduler.post = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del scheduler.post


@contextmanager
def held(scheduler: Scheduler) -> Iterator[None]:
    """Keep the only worker busy during the body."""
    gate, begun = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        begun.set()
        gate.wait(30)

    scheduler.submit(Job(wait))
    assert begun.wait(10)
    try:
        yield
    finally:
        gate.set()


def begin(
    db: DirectCaller, owner: Any, caller: Caller, name: str, kwargs: dict[str, Any]
) -> Deferred[Any]:
    """Start a call on behalf of an owner."""

    def start() -> Deferred[Any]:
        JOB_OWNER.set(owner)
        return Deferred.fromCoroutine(db.call_as(caller, name, **kwargs))

    return copy_context().run(start)


async def warm(db: DirectCaller, *asked: Asked, caller: Caller = ANYONE) -> None:
    """Make each call once, so that further calls of its kind may share a run."""
    for name, kwargs in asked:
        await outcome(begin(db, Owner(), caller, name, kwargs))
    widen(db)


def widen(db: DirectCaller) -> None:
    """Lift the size limits of groups, which depend on how busy the machine was."""
    for limit in db.pool.scheduler._limits.values():
        limit.most = GROUP_MOST


async def outcome(answer: Awaitable[Any]) -> Any:
    """Return the result of a call, or its error."""
    try:
        return await answer
    except ServiceError as error:
        # A refusal says `retry` if the catalog could not be checked in time, as on a loaded machine.
        varying = {"id", "retry", "retry_after"}
        return error.uri, {
            name: value for name, value in error.details.items() if name not in varying
        }


async def together(
    db: DirectCaller,
    asked: Sequence[Asked],
    light: bool = True,
    callers: Sequence[Caller] = (ANYONE,),
) -> tuple[list[Any], list[int]]:
    """Make calls, each of its own owner, while the worker is busy; return their outcomes and the runs."""
    scheduler = db.pool.scheduler
    owners = [Owner(light) for _ in asked]
    with runs(scheduler) as found:
        with held(scheduler):
            answers = [
                begin(db, owner, callers[at % len(callers)], *each)
                for at, (owner, each) in enumerate(zip(owners, asked, strict=True))
            ]
        outcomes = [await outcome(each) for each in answers]
    await until(lambda: not scheduler._jobs)
    assert scheduler._assigned == 0
    assert [owner.given for owner in owners] == [0] * len(owners)
    assert db.pool.stats().waiting == 0
    return outcomes, found


SHARED: list[list[Asked]] = [
    [("lands.get", {"key": key}) for key in (3, 4, 3, 99, 5)],
    [("lands.get", {"key": key, "form": "json"}) for key in (3, 99, 4)],
    [("lands.get", {"key": key, "form": "lists"}) for key in (3, 4)],
    [("lands.get", {"key": {"code": key}, "select": ["n"]}) for key in ("c1", "", "c3", "C3", "NULL", '"{,')],
    [("lands.get", {"key": key, "embed": {"towns": {"order": ["id"]}}}) for key in (1, 2, 99)],
    [("towns.get", {"key": key, "embed": {"land": {"relation": "lands"}}}) for key in (1, 2, 999)],
    [("pairs.get", {"key": {"a": a, "b": b}}) for a, b in ((0, "b3"), (1, "b1"), (0, "b1"))],
    [("lands.find", {"where": {"id": key, "n": {"gt": 30}}, "limit": limit}) for key, limit in
     ((3, 1), (4, 5), (99, 1), (5, 2))],
    [("texts.get", {"key": {"ci": key}}) for key in ("ada", "ADA", "bob", "eve")],
    [("texts.get", {"key": {"fixed": key}}) for key in ("a", "a    ", "b", "c")],
    [("texts.get", {"key": {"number": key}}) for key in ("1", "1.00", "2.5", "3")],
    [("texts.get", {"key": {"at": key}}) for key in ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00Z")],
    [("texts.get", {"key": {"raw": key}}) for key in (b"\x01", b"\x02", b"\x03")],
]  # fmt: skip


@pytest.mark.parametrize("asked", SHARED)
@pytest_twisted.ensureDeferred
async def test_calls_that_share_a_run_have_their_own_results(
    db: DirectCaller, asked: list[Asked]
) -> None:
    """Each call gets its own row, or not_found, however its type or collation compares keys."""
    alone = [await outcome(db.call(name, **kwargs)) for name, kwargs in asked]
    await warm(db, asked[0])
    assert await together(db, asked) == (alone, [len(asked)])
    widen(db)
    for _ in range(4):  # the session prepares the statement after some runs
        found, _ = await together(db, asked)
        assert found == alone
        widen(db)


def _groups(most: Any, **more: Any) -> Asked:
    """Return an aggregate over the towns of some lands."""
    measures = {"n": {"count": "*"}, "names": {"array_agg": "name", "order": ["id"]}}
    where = {"land": {"lte": most}}
    return "towns.aggregate", {"measures": measures, "group": ["land"], "where": where, **more}


EQUAL: list[tuple[list[Asked], list[int]]] = [
    ([_groups(most) for most in (2, 3, 2, 3, 2)], [2, 3]),
    ([_groups(20)] * 3, [3]),
    ([_groups(20, measures={"n": {"count": "*"}}, form=form) for form in ("dicts", "lists", "json") * 2], [2] * 3),
    ([("lands.count", {"where": {"n": n}}) for n in (10, 20, 10, 990)], [1, 1, 2]),
    ([("lands.count", {})] * 3 + [("lands.exists", {})] * 2, [2, 3]),
    ([("lands.count", {"where": {"n": n}}) for n in (1, True, 1, "x")], [1, 1, 2]),
    ([("lands.count", {"where": {"n": 99999999999}})] * 2, [2]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "served"), EQUAL)
@pytest_twisted.ensureDeferred
async def test_equal_aggregates_and_counts_share_a_run(
    db: DirectCaller, asked: list[Asked], served: list[int]
) -> None:
    """Those with the same values run once, also if a run takes long; nothing of them is kept."""
    alone = [await outcome(db.call(name, **kwargs)) for name, kwargs in asked]
    for _ in range(2):
        outcomes, found = await together(db, asked)
        assert outcomes == alone
        assert sorted(found) == served
    assert not any(limit.equal for limit in db.pool.scheduler._limits.values())


@pytest.mark.serving(most=1, roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_equal_reads_fail_together(db: DirectCaller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement that failed for all of them is not run again for each."""
    clerk = Caller(1, "ann", "clerk", "realm1")
    alone = await outcome(db.call_as(clerk, "divided.count"))
    sent: list[bool] = []
    run = PgCursor.execute

    def noted(cursor: PgCursor, query: Any, *args: Any, **how: Any) -> None:
        sent.append("divided" in str(query))
        run(cursor, query, *args, **how)

    monkeypatch.setattr(PgCursor, "execute", noted)
    outcomes, found = await together(db, [("divided.count", {})] * 3, callers=[clerk])
    assert alone[0] == InvalidArgument.uri
    assert (outcomes, found) == ([alone] * 3, [3])
    assert sum(sent) == 1


UNSHARED: list[list[Asked]] = [
    [("lands.get", {"keys": [key]}) for key in (3, 4)],
    [("lands.find", {"where": {"n": key}}) for key in (30, 40)],
    [("lands.get", {"key": key, "select": ["doubled"]}) for key in (3, 4)],
    [("lands.get", {"key": key, "embed": {"towns": {"limit": 1}}}) for key in (3, 4)],
    [("shown.get", {"key": key}) for key in (3, 4)],
    [("lands.update", {"key": key, "changes": {"n": 1}}) for key in (30, 31)],
    [("transaction", {"operations": [{"call": "lands.get", "args": [key]}]}) for key in (3, 4)],
    [("lands.aggregate", {"measures": {"n": {"sum": "doubled"}}})] * 2,
    [("lands.count", {"where": {"id": [3, 4]}})] * 2,
    [("transaction", {"operations": [{"call": "lands.count"}]})] * 2,
]  # fmt: skip


@pytest.mark.parametrize("asked", UNSHARED)
@pytest_twisted.ensureDeferred
async def test_other_calls_share_no_run(db: DirectCaller, asked: list[Asked]) -> None:
    """Reads of several rows, with functions, or in transactions, and writes."""
    alone = [await outcome(db.call(name, **kwargs)) for name, kwargs in asked]
    await warm(db, asked[0])
    assert await together(db, asked) == (alone, [])


@pytest_twisted.ensureDeferred
async def test_different_statements_share_no_run(db: DirectCaller) -> None:
    asked: list[Asked] = [
        ("lands.get", {"key": 3}),
        ("towns.get", {"key": 3}),
        ("lands.get", {"key": 4}),
        ("towns.get", {"key": 4}),
        ("lands.get", {"key": 4, "select": ["id"]}),
    ]
    await warm(db, *asked)
    outcomes, found = await together(db, asked)
    assert [each["id"] for each in outcomes] == [3, 3, 4, 4, 4]
    assert sorted(found) == [1, 2, 2]


@pytest.mark.parametrize(
    ("name", "key", "bad", "error"),
    [
        ("divided.get", 4, 5, InvalidArgument),
        ("lands.get", 4, "x", InvalidArgument),
        ("lands.get", 4, 99999999999, InvalidArgument),
        ("lands.get", 4, None, InvalidArgument),
    ],
)
@pytest.mark.serving(most=1, roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_error_of_one_call_does_not_affect_others(
    db: DirectCaller, name: str, key: int, bad: Any, error: type[ServiceError]
) -> None:
    """All calls run again, each alone, with the result or error that each has alone."""
    caller = Caller(7, "ada", "clerk", "realm1")
    refused = await failure_of(db.call_as(caller, name, key=bad))
    assert isinstance(refused, error)
    asked: list[Asked] = [(name, {"key": each}) for each in (key, bad, key, bad)]
    alone = [await outcome(db.call_as(caller, name, **kwargs)) for name, kwargs in asked]
    await warm(db, asked[0], caller=caller)
    for _ in range(2):
        outcomes, found = await together(db, asked, callers=[caller])
        assert outcomes == alone
        assert found[0] > 1
        widen(db)


@pytest.mark.serving(most=1, roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_callers_with_other_claims_share_no_run(db: DirectCaller) -> None:
    """Policies may read claims; calls of one session share a run."""
    ada, bob = (Caller(at, name, "clerk", "realm1") for at, name in ((1, "ada"), (2, "bob")))
    asked: list[Asked] = [("own.get", {"key": key}) for key in (1, 1, 2, 2)]
    for caller in (ada, bob):
        await warm(db, asked[0], caller=caller)
    outcomes, found = await together(db, asked, callers=[ada, bob])
    seen = [each["id"] if isinstance(each, dict) else each[0] for each in outcomes]
    assert seen == [1, NotFound.uri, NotFound.uri, 2]
    assert sorted(found) == [2, 2]
    outcomes, found = await together(db, [("own.count", {})] * 4, callers=[ada, bob])
    assert (outcomes, sorted(found)) == ([1, 1, 1, 1], [2, 2])


@pytest_twisted.ensureDeferred
async def test_callers_of_large_results_share_no_run(db: DirectCaller) -> None:
    """A shared run would hold all results in memory at once."""
    asked: list[Asked] = [("lands.get", {"key": key}) for key in (3, 4)]
    await warm(db, asked[0])
    outcomes, found = await together(db, asked, light=False)
    assert [each["id"] for each in outcomes] == [3, 4]
    assert found == []


@pytest.mark.serving(most=1, max_bytes=10_000)
@pytest_twisted.ensureDeferred
async def test_size_limit_applies_to_each_result_of_a_run(dsn: str, db: DirectCaller) -> None:
    """All results together are too large for one; only one of them is too large by itself."""
    execute(dsn, "UPDATE large SET body = repeat('x', 20000) WHERE id = 2")
    asked: list[Asked] = [("large.get", {"key": key}) for key in (1, 2, 3)]
    await warm(db, asked[0])
    outcomes, found = await together(db, asked)
    assert [each["id"] for each in (outcomes[0], outcomes[2])] == [1, 3]
    assert outcomes[1][0] == TooLarge.uri
    assert found == [3]


@contextmanager
def locked(dsn: str) -> Iterator[Any]:
    """Lock the table of lands during the body, so that reads of it wait."""
    connection = psycopg2.connect(dsn)
    try:
        connection.cursor().execute("LOCK TABLE lands")
        yield connection
    finally:
        connection.close()


def waiting(dsn: str) -> int:
    """Return the number of sessions that wait for the lock."""
    ((many,),) = execute(
        dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'lands'::regclass"
    )
    return int(many)


@asynccontextmanager
async def stuck(
    dsn: str, db: DirectCaller, keys: Sequence[int], **options: Any
) -> AsyncIterator[list[Deferred[Any]]]:
    """Have reads of lands wait for the lock in one shared run during the body."""
    asked: list[Asked] = [("lands.get", {"key": key, **options}) for key in keys]
    await warm(db, asked[0])
    scheduler = db.pool.scheduler
    with runs(scheduler) as found:
        with locked(dsn):
            with held(scheduler):
                answers = [begin(db, Owner(), ANYONE, *each) for each in asked]
            await until(lambda: waiting(dsn) == 1)
            yield answers
        await until(lambda: not scheduler._jobs)
    assert found == [len(keys)]


@pytest_twisted.ensureDeferred
async def test_cancelled_call_of_a_run_does_not_affect_the_others(
    dsn: str, db: DirectCaller
) -> None:
    async with stuck(dsn, db, (3, 4, 5)) as answers:
        answers[1].cancel()
        assert isinstance(await failure_of(answers[1]), CancelledError)
        assert waiting(dsn) == 1
    assert [(await answers[at])["id"] for at in (0, 2)] == [3, 5]


@pytest_twisted.ensureDeferred
async def test_shared_statement_without_callers_is_cancelled(dsn: str, db: DirectCaller) -> None:
    async with stuck(dsn, db, (3, 4)) as answers:
        for each in answers:
            each.cancel()
            assert isinstance(await failure_of(each), CancelledError)
        await until(lambda: waiting(dsn) == 0)
    assert (await db.call("lands.get", key=3))["id"] == 3


@pytest_twisted.ensureDeferred
async def test_call_cancelled_before_the_run_is_left_out(db: DirectCaller) -> None:
    """If all calls were cancelled, nothing is run."""
    asked: Asked = ("lands.get", {"key": 3})
    await warm(db, asked)
    scheduler = db.pool.scheduler
    for cancelled in ([1], [0, 1, 2]):
        with runs(scheduler) as found:
            with held(scheduler):
                answers = [begin(db, Owner(), ANYONE, *asked) for _ in range(3)]
                for at in cancelled:
                    answers[at].cancel()
                    assert isinstance(await failure_of(answers[at]), CancelledError)
            for at in {0, 1, 2} - set(cancelled):
                assert (await answers[at])["id"] == 3
            await until(lambda: not scheduler._jobs and bool(found))
        assert found == [3 - len(cancelled)]
        widen(db)


@pytest_twisted.ensureDeferred
async def test_time_limit_of_a_call_is_its_own(dsn: str, db: DirectCaller) -> None:
    """Its timer stops it alone; the other calls continue to wait."""
    await warm(db, ("lands.get", {"key": 3}))
    scheduler = db.pool.scheduler
    with runs(scheduler) as found, locked(dsn) as connection:
        with held(scheduler):
            limits: list[dict[str, Any]] = [{}, {"timeout": 0.1}, {"timeout": 20}]
            answers = [
                begin(db, Owner(), ANYONE, "lands.get", {"key": 3, **each}) for each in limits
            ]
        error = await failure_of(answers[1])
        assert isinstance(error, StatementTimeout)
        await until(lambda: waiting(dsn) == 1)
        assert not (answers[0].called)
        assert not (answers[2].called)
        connection.close()
        assert [(await answers[at])["id"] for at in (0, 2)] == [3, 3]
    assert sum(found) in (2, 3)  # on a slow machine its timer fired before the run began


@pytest.mark.serving(most=1, lock_timeout=0.2)
@pytest_twisted.ensureDeferred
async def test_calls_of_a_timed_out_shared_statement_run_alone(dsn: str, db: DirectCaller) -> None:
    async with stuck(dsn, db, (3, 4)) as answers:
        errors = [await failure_of(each) for each in answers]
        assert [type(each) for each in errors] == [Conflict, Conflict]
    assert (await db.call("lands.get", key=3))["id"] == 3


@pytest_twisted.ensureDeferred
async def test_calls_whose_connection_was_lost_are_run_together_again(
    dsn: str, db: DirectCaller
) -> None:
    async with stuck(dsn, db, (3, 4)) as answers:
        execute(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted"
            " AND relation = 'lands'::regclass",
        )
        await until(lambda: waiting(dsn) == 1)
    assert [(await each)["id"] for each in answers] == [3, 4]


@pytest.mark.serving(most=1)
@pytest_twisted.ensureDeferred
async def test_pool_that_closes_stops_all_calls_of_a_run(dsn: str, db: DirectCaller) -> None:
    async with stuck(dsn, db, (3, 4)) as answers:
        closing = db.pool.close()
        for each in answers:
            assert isinstance(await failure_of(each), Unavailable)
        await closing


@pytest_twisted.ensureDeferred
async def test_result_is_not_older_than_its_call(dsn: str, db: DirectCaller) -> None:
    """A call that joins a waiting group reads when the group runs; no call joins a running one."""
    asked: list[Asked] = [("lands.get", {"key": 1}), ("lands.get", {"key": 2})]
    await warm(db, asked[0])
    scheduler = db.pool.scheduler
    with runs(scheduler) as found:
        with held(scheduler):
            first = begin(db, Owner(), ANYONE, *asked[0])
            execute(dsn, "UPDATE lands SET n = n + 1 WHERE id IN (1, 2)")
            second = begin(db, Owner(), ANYONE, *asked[1])
        rows = [await first, await second]
    assert found == [2]
    assert [(row["n"] - row["id"] * 10) for row in rows] == [1, 1]
    execute(dsn, "UPDATE lands SET n = id * 10")
    with runs(scheduler) as found, locked(dsn) as connection:
        widen(db)
        early = begin(db, Owner(), ANYONE, *asked[0])
        await until(lambda: waiting(dsn) == 1)
        late = begin(db, Owner(), ANYONE, *asked[0])
        connection.close()
        await gatherResults([early, late])
    assert found == [1, 1]


@pytest_twisted.ensureDeferred
async def test_pool_does_not_count_calls_of_a_run_as_waiting(dsn: str, db: DirectCaller) -> None:
    """They do not wait for a worker: one worker runs all of them."""
    async with stuck(dsn, db, (3, 4, 5)):
        await until(lambda: len(db.pool.scheduler._jobs) == 3)
        stats = db.pool.stats()
        assert (stats.busy, stats.waiting) == (1, 0)


@pytest_twisted.ensureDeferred
async def test_slow_statement_is_logged_with_all_its_calls(dsn: str) -> None:
    async with serving(dsn, most=1, slow_statement=0.1) as db:
        await warm(db, ("lands.get", {"key": 3}))
        with slow() as found:
            async with stuck(dsn, db, (3, 4)):
                await pause(0.1)
            await until(lambda: len(found) == 1)
    origin: Origin = found[0]["origin"]
    assert len(set(origin.call.split())) == 2
    assert origin.procedure == "lands.get"
    assert "unnest" in found[0]["statement"]


def test_slow_reads_are_not_grouped() -> None:
    """The size of a group follows from the fastest recent run."""
    limit = GroupLimit()
    assert limit.most == 1  # no run was measured yet
    limit.ran(1, GROUP_SECONDS / 4)
    assert limit.most == 4
    limit.ran(4, 100.0)
    assert limit.most == 3  # a single slow run may be due to the machine
    limit.ran(3, 1e-9)
    assert limit.most == GROUP_MOST
    for _ in range(1000):
        limit.ran(1, 2 * GROUP_SECONDS)
    assert limit.most == 1


@pytest_twisted.ensureDeferred
async def test_values_of_reads_are_not_cached(db: DirectCaller) -> None:
    """Their kinds are, by the thousand, so values of 1 MB and catalogs would fill the memory."""
    code = "no such code".upper()
    before = getrefcount(code)
    for each in code, "another":
        assert await db.call("lands.find", where={"id": 3, "code": each}) == {
            "rows": [],
            "next": None,
        }
    gc.collect()
    assert getrefcount(code) == before


def test_equal_reads_are_grouped_whatever_their_duration() -> None:
    """A run takes no longer for many of them than for one."""
    limit = GroupLimit(equal=True)
    limit.ran(1, 100.0)
    assert limit.most == GROUP_MOST


@pytest.mark.serving(most=3)
@pytest_twisted.ensureDeferred
async def test_each_of_many_calls_gets_its_own_row(db: DirectCaller) -> None:
    """Calls of 30 owners with keys of any kind, some cancelled at random, and backends that are killed."""
    dice = random.Random(11)
    scheduler = db.pool.scheduler
    owners = [Owner() for _ in range(30)]
    outcomes: Counter[str] = Counter()
    end = reactor.seconds() + 3

    async def ask(owner: Owner) -> None:
        while reactor.seconds() < end:
            key = dice.choice([*range(1, 51), 77, "x"])
            form = dice.choice(["dicts", "json"])
            answer = begin(db, owner, ANYONE, "lands.get", {"key": key, "form": form})
            if cancelled := dice.random() < 0.2:
                await pause(dice.random() * 0.003)
                answer.cancel()
            try:
                row = await answer
            except CancelledError:
                assert cancelled
                outcomes["cancelled"] += 1
            except NotFound:
                assert key == 77
                outcomes["not found"] += 1
            except InvalidArgument:
                assert key == "x"
                outcomes["invalid"] += 1
            else:
                assert (row if form == "dicts" else json.loads(row))["id"] == key
                outcomes["answered"] += 1

    async def kill() -> None:
        while reactor.seconds() < end:
            await pause(0.3)
            await db.database.statement(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database() AND query LIKE '%lands%' LIMIT 1"
            )

    with runs(scheduler) as found:
        working = [ensureDeferred(ask(owner)) for owner in owners]
        await gatherResults([*working, ensureDeferred(kill())], consumeErrors=True)
        await until(lambda: not scheduler._jobs)
    assert set(outcomes) == {"cancelled", "not found", "invalid", "answered"}
    assert max(found) > 1
    assert scheduler._assigned == 0
    assert {owner.given for owner in owners} == {0}
