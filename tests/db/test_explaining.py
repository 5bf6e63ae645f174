"""
Plans of reads, compared with those of PostgreSQL's EXPLAIN; rights, and calls that are no reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred

from service.api.roles import Roles
from service.api.verbs import VERBS
from service.errors import (
    DatabaseRefused,
    InvalidArgument,
    NoSuchProcedure,
    NotAuthorized,
    ServiceError,
    StatementTimeout,
    TooLarge,
)
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_roles import caller
from tests.db.watched import living
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE ROLE ex_clerk; CREATE ROLE ex_boss BYPASSRLS;
CREATE TABLE shops (id int PRIMARY KEY, name text, secret text);
COMMENT ON COLUMN shops.secret IS '@hidden';
CREATE TABLE sales (id int PRIMARY KEY, shop int REFERENCES shops, amount int, owner text);
INSERT INTO shops SELECT i, 'S' || i, 'x' FROM generate_series(1, 50) i;
INSERT INTO sales SELECT i, i % 50 + 1, i % 1000, 'p' || i % 2 FROM generate_series(1, 5000) i;
CREATE INDEX ON sales (amount); CREATE INDEX ON sales (shop);
CREATE FUNCTION dear(low int) RETURNS SETOF sales STABLE LANGUAGE sql
    AS 'SELECT * FROM sales WHERE amount > low';
CREATE FUNCTION enter() RETURNS SETOF sales LANGUAGE sql
    AS 'INSERT INTO sales VALUES (0, 1, 0) RETURNING *';
CREATE FUNCTION idle(seconds float) RETURNS SETOF sales STABLE LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(seconds); END';
CREATE FUNCTION total() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM sales';
ALTER TABLE sales ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON sales TO ex_clerk USING (owner = current_setting('rowcast.authid', true));
GRANT SELECT (id, amount) ON sales TO ex_clerk; GRANT INSERT ON sales TO ex_clerk;
GRANT SELECT ON shops, sales TO ex_boss;
ANALYZE shops, sales;
"""
CLERK = caller("clerk")
ROLES = Roles({"clerk": "ex_clerk", "boss": "ex_boss"}, "ex_boss")

READS: list[tuple[dict[str, Any], list[str]]] = [
    ({"call": "shops.get", "args": [7]}, ["SELECT id, name FROM shops WHERE id = 7"]),
    ({"call": "sales.get", "kwargs": {"keys": [3, 1]}},
     ["SELECT s.*, n FROM unnest('{3,1}'::int[]) WITH ORDINALITY w (k, n) JOIN sales s ON id = k"]),
    ({"call": "sales.find", "kwargs": {"where": {"amount": 5}, "limit": 3}},
     ["SELECT * FROM sales WHERE amount = 5 ORDER BY id LIMIT 4"]),
    ({"call": "sales.find", "kwargs": {"where": {"amount": {"gte": 0}}, "order": ["-amount"], "limit": 3}},
     ["SELECT sales.*, amount::text AS k FROM sales WHERE amount >= 0 ORDER BY amount DESC, id LIMIT 4"]),
    ({"call": "sales.find", "kwargs": {"where": {"amount": {"lt": 3}}, "count": "exact", "limit": 0,
      "measures": {"s": {"sum": "amount"}}}},
     ["SELECT * FROM sales WHERE amount < 3 ORDER BY id LIMIT 1",
      "SELECT count(*) FROM (SELECT FROM sales WHERE amount < 3) AS c",
      "SELECT * FROM (SELECT sum(amount) AS s FROM sales WHERE amount < 3) AS t"]),
    ({"call": "sales.count", "kwargs": {"where": {"amount": 5}}},
     ["SELECT count(*) FROM (SELECT FROM sales WHERE amount = 5) AS c"]),
    ({"call": "public.sales.exists", "kwargs": {"where": {"amount": 5}}},
     ["SELECT EXISTS (SELECT FROM sales WHERE amount = 5)"]),
    ({"call": "sales.aggregate", "args": [{"n": {"count": "*"}}], "kwargs": {"group": ["shop"]}},
     ["SELECT * FROM (SELECT shop, count(*) FROM sales GROUP BY 1) AS t ORDER BY shop LIMIT 5001"]),
    ({"call": "sales.stream", "kwargs": {"where": {"amount": 5}, "chunk": 10}},
     ["SELECT * FROM sales WHERE amount = 5 ORDER BY id LIMIT 9223372036854775807"]),
    ({"call": "sales.export", "kwargs": {"where": {"amount": 5}, "limit": 9, "format": "csv"}},
     ["SELECT * FROM sales WHERE amount = 5 ORDER BY id LIMIT 9"]),
    ({"call": "fn.dear.find", "kwargs": {"args": {"low": 997}, "limit": 2}},
     ["SELECT * FROM dear(997) LIMIT 3"]),
    ({"call": "fn.dear.aggregate", "kwargs": {"args": {"low": 997}, "measures": {"n": {"count": "*"}}}},
     ["SELECT * FROM (SELECT count(*) FROM dear(997)) AS t LIMIT 5001"]),
    ({"call": "shops.find", "kwargs": {"where": {"id": 7}, "select": ["id"],
      "embed": {"sales": {"select": ["id"]}}}},
     ["SELECT id, v::text FROM shops s LEFT JOIN LATERAL (SELECT json_agg(r) AS v FROM (SELECT id FROM sales"
      " WHERE shop = s.id ORDER BY id) r) e ON true WHERE id = 7 ORDER BY id LIMIT 1001"]),
]  # fmt: skip


WATCHES: list[tuple[dict[str, Any], list[str]]] = [
    ({"call": "sales.watch", "kwargs": {"where": {"amount": 5}, "order": ["-id"], "tx": True}},
     ["SELECT *, id FROM sales WHERE amount = 5 ORDER BY id DESC LIMIT 10001"]),
    ({"call": "sales.watch", "kwargs": {"measures": {"n": {"count": "*"}}, "where": {"amount": 5}}},
     ["SELECT * FROM (SELECT count(*) FROM sales WHERE amount = 5) AS t LIMIT 5001"]),
    ({"call": "fn.dear.watch", "kwargs": {"args": {"low": 997}, "tables": ["sales"]}},
     ["SELECT * FROM dear(997) LIMIT 10001"]),
]  # fmt: skip


@pytest.mark.parametrize("analyze", [False, True])
@pytest.mark.parametrize(("operation", "statements"), READS)
@pytest_twisted.ensureDeferred
async def test_plan_of_a_read_equals_that_of_its_sql(
    db: DirectCaller, dsn: str, operation: dict[str, Any], statements: list[str], analyze: bool
) -> None:
    """The nodes are compared; with `analyze`, also the actual rows."""
    await check_plans(db, dsn, operation, statements, analyze)


@pytest.mark.parametrize("analyze", [False, True])
@pytest.mark.parametrize(("operation", "statements"), WATCHES)
@pytest_twisted.ensureDeferred
async def test_plan_of_a_live_query_equals_that_of_its_sql(
    dsn: str, operation: dict[str, Any], statements: list[str], analyze: bool
) -> None:
    async with living(dsn) as live:
        await check_plans(live.served, dsn, operation, statements, analyze)


def test_plans_of_each_verb_that_reads_are_tested() -> None:
    explained = {operation["call"].rpartition(".")[2] for operation, _ in (*READS, *WATCHES)}
    reading = {name for name, verb in VERBS.items() if not verb.writes}
    assert explained == reading, "READS of this module lacks a verb, or explain does not accept it"


async def check_plans(
    db: DirectCaller, dsn: str, operation: dict[str, Any], statements: list[str], analyze: bool
) -> None:
    """Assert that a call has the plans of statements."""
    found = await db.call("explain", {**operation, "analyze": analyze})
    words = "EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS)" if analyze else "EXPLAIN (FORMAT JSON)"
    expected = [execute(dsn, f"{words} {each}")[0][0][0] for each in statements]
    assert [list(nodes(each["Plan"])) for each in found] == [
        list(nodes(each["Plan"])) for each in expected
    ]
    assert all(("Execution Time" in each) is analyze for each in found)


def nodes(plan: Any) -> Iterator[tuple[Any, ...]]:
    """Return a plan without costs and aliases."""
    known = (
        "Node Type",
        "Relation Name",
        "Index Name",
        "Function Name",
        "Actual Rows",
        "Actual Loops",
    )
    yield tuple(plan.get(each) for each in known)
    for each in plan.get("Plans", ()):
        yield from nodes(each)


@pytest_twisted.ensureDeferred
async def test_plan_uses_the_values_of_the_call(db: DirectCaller) -> None:
    """No plan is cached for all values."""
    found = []
    for value in (5, 6):
        (plan,) = await db.call(
            "explain", {"call": "sales.find", "kwargs": {"where": {"amount": value}}}
        )
        found.append(str(plan))
    assert "(amount = 5)" in found[0]
    assert "(amount = 6)" in found[1]
    assert "$1" not in found[0]


@pytest.mark.serving(roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_plan_includes_the_policies_of_the_caller(db: DirectCaller) -> None:
    """The actual rows depend on the claims that the policies read."""
    call = {"call": "sales.find", "kwargs": {"select": ["id"], "limit": 1000}, "analyze": True}
    (plan,) = await db.call_as(caller("clerk", "p1"), "explain", call)
    assert "rowcast.authid" in str(plan)
    assert plan["Plan"]["Actual Rows"] == 1001
    (nobody,) = await db.call_as(caller("clerk", "nobody"), "explain", call)
    assert nobody["Plan"]["Actual Rows"] == 0
    (service,) = await db.call("explain", call)
    assert "rowcast.authid" not in str(service)


@pytest.mark.parametrize("analyze", [False, True])
@pytest.mark.serving(roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_plan_of_an_unreadable_relation_is_refused(db: DirectCaller, analyze: bool) -> None:
    for kwargs in ({"select": ["owner"]}, {"where": {"owner": "p1"}}, {"order": ["shop"]}):
        call = {"call": "sales.find", "kwargs": kwargs, "analyze": analyze}
        refused = await failure_of(db.call_as(CLERK, "explain", call))
        assert isinstance(refused, NotAuthorized), (kwargs, refused)
    refused = await failure_of(db.call_as(CLERK, "explain", {"call": "shops.get", "args": [1]}))
    assert isinstance(refused, NoSuchProcedure), refused
    hidden = {"call": "shops.find", "kwargs": {"where": {"secret": "x"}}, "analyze": analyze}
    refused = await failure_of(db.call("explain", hidden))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == "where.secret"


OTHERS = [
    "sales.create", "sales.update", "sales.delete", "sales.upsert", "sales.import", "fn.total", "fn.enter",
    "describe", "explain", "health", "transaction", "transaction.begin", "tx.0.find",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest_twisted.ensureDeferred
async def test_plan_of_a_call_that_is_no_read_is_refused(
    db: DirectCaller, dsn: str, name: str
) -> None:
    """This includes writes, which EXPLAIN ANALYZE would execute."""
    before = execute(dsn, "SELECT count(*), sum(amount) FROM sales")
    call = {
        "call": name,
        "kwargs": {"where": {}, "all": True, "values": {"id": 0}},
        "analyze": True,
    }
    refused = await failure_of(db.call("explain", call))
    assert isinstance(refused, InvalidArgument | NoSuchProcedure), refused
    assert refused.details.get("path") in ("operation.call", None), refused.details
    assert execute(dsn, "SELECT count(*), sum(amount) FROM sales") == before


@pytest_twisted.ensureDeferred
async def test_function_that_writes_is_explained_and_writes_nothing(
    db: DirectCaller, dsn: str
) -> None:
    (plan,) = await db.call("explain", {"call": "fn.enter.find"})
    assert plan["Plan"]["Plans"]
    refused = await failure_of(db.call("explain", {"call": "fn.enter.find", "analyze": True}))
    assert isinstance(refused, DatabaseRefused), refused
    assert refused.details["sqlstate"] == "25006"
    related = {"call": "fn.enter.find", "kwargs": {"where": {"amount": 0}}}
    refused = await failure_of(db.call("explain", related))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == "operation.analyze"
    assert execute(dsn, "SELECT count(*) FROM sales WHERE id = 0") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_analysis_ends_in_time_and_when_it_is_cancelled(db: DirectCaller, dsn: str) -> None:
    slow = {"call": "fn.idle.find", "kwargs": {"args": {"seconds": 30}}, "analyze": True}
    begun = time.monotonic()
    for timed in ({"kwargs": {**slow["kwargs"], "timeout": 0.2}}, {}):
        refused = await failure_of(
            db.call("explain", {**slow, **timed}, **({} if timed else {"timeout": 0.2}))
        )
        assert isinstance(refused, StatementTimeout), refused
    assert time.monotonic() - begun < 15
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%EXPLAIN%idle%'"
        " AND state = 'active' AND pid <> pg_backend_pid()"
    )
    calling = ensureDeferred(db.call("explain", slow))
    calling.addErrback(lambda _: None)
    await until(lambda: execute(dsn, running) == [(1,)])
    calling.cancel()
    await until(lambda: execute(dsn, running) == [(0,)])


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (None, "operation"),
        ("shops.get", "operation"),
        ([], "operation"),
        ({}, "operation.call"),
        ({"call": 5}, "operation.call"),
        ({"call": "shops.get", "args": 1}, "operation.args"),
        ({"call": "shops.get", "kwargs": [1]}, "operation.kwargs"),
        ({"call": "shops.get", "kwargs": {1: 2}}, "operation.kwargs"),
        ({"call": "shops.get", "args": [1], "analyze": "yes"}, "operation.analyze"),
        ({"call": "shops.get", "args": [1], "verbose": True}, "operation.verbose"),
        ({"call": "shops.get", "args": [1], "analyse": True}, "operation.analyse"),
        ({"call": "shops.find", "kwargs": {"where": {"nope": 1}}}, "where.nope"),
        ({"call": "shops.find", "kwargs": {"after": "x"}}, "after"),
        ({"call": "shops.find", "kwargs": {"idempotency_key": "k"}}, "idempotency_key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_call_is_refused_with_its_path(
    db: DirectCaller, operation: Any, path: str
) -> None:
    refused = await failure_of(db.call("explain", operation))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path
    for args, kwargs in (((), {}), (({}, {}), {}), (({},), {"nope": 1})):
        assert isinstance(await failure_of(db.call("explain", *args, **kwargs)), InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_plan_in_a_transaction_includes_its_writes(db: DirectCaller) -> None:
    explain = {"call": "sales.find", "kwargs": {"where": {"id": {"gte": 9000}}}, "analyze": True}
    _, (plan,) = await db.call(
        "transaction",
        [
            {"call": "sales.create", "args": [{"id": 9001, "amount": 1}]},
            {"call": "explain", "args": [explain]},
        ],
        dry_run=True,
    )
    assert plan["Plan"]["Actual Rows"] == 1


@pytest.mark.serving(max_bytes=2_000)
@pytest_twisted.ensureDeferred
async def test_plan_that_is_too_large_is_refused(db: DirectCaller) -> None:
    wide = {"or": [{"id": {"between": [at, at + 1]}} for at in range(100)]}
    refused = await failure_of(
        db.call("explain", {"call": "sales.find", "kwargs": {"where": wide}})
    )
    assert isinstance(refused, TooLarge), refused


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["shops.find", "sales.get", "fn.dear.find", "sales.watch", "sales.export", *OTHERS]
)


@settings(max_examples=amount(15, 150), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest_twisted.ensureDeferred
async def test_hostile_arguments_get_an_answer_or_a_refusal(
    db: DirectCaller, data: st.DataObject
) -> None:
    """No call ends in an internal error, and nothing is written."""
    keys = st.sampled_from(
        ["where", "select", "order", "args", "limit", "embed", "keys", "key", "measures"]
    )
    operation = data.draw(
        ANYTHING
        | st.fixed_dictionaries(
            {"call": NAMES | st.text()},
            optional={
                "args": st.lists(ANYTHING, max_size=2),
                "kwargs": st.dictionaries(keys, ANYTHING, max_size=3),
                "analyze": st.booleans() | ANYTHING,
            },
        )
    )
    try:
        answer = await db.call("explain", operation)
    except ServiceError as error:
        assert error.uri != "rowcast.error.internal", error
    else:
        assert all("Plan" in each for each in answer)
