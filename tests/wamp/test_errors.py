"""
Each row of docs/errors.md, raised by a real PostgreSQL, service, router or caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.message import Cancel
from psycopg2.extensions import make_dsn
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogPublisher

from service import errors
from service.app import Serving
from service.models.served import Models
from service.procedures.registry import Declared, ProcedureCall, procedures
from service.waiting import in_thread
from tests.conftest import ROOT, Router, execute
from tests.deferreds import until
from tests.wamp.callers import Caller, join
from tests.wamp.service import served

HOW = "websocket json"

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE owners (id int PRIMARY KEY, name varchar(10) NOT NULL, mood mood);
INSERT INTO owners VALUES (1, 'Ada', 'happy'), (2, 'Bo', 'sad');
CREATE VIEW named AS SELECT id, name FROM owners;
CREATE TABLE things (
    id int PRIMARY KEY, code int, size int CONSTRAINT positive CHECK (size > 0),
    owner_id int CONSTRAINT owned REFERENCES owners, secret text DEFAULT 'top secret',
    CONSTRAINT one_code UNIQUE (code));
COMMENT ON COLUMN things.secret IS '@hidden';
INSERT INTO things SELECT i, i, i, 1 FROM generate_series(1, 5) i;
CREATE TABLE bookings (
    id int PRIMARY KEY, span int4range,
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&));
INSERT INTO bookings VALUES (1, '[1,5)');
CREATE TABLE big (id int PRIMARY KEY, body text);
INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 100) i;
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(30);
CREATE VIEW mangled AS SELECT convert_from('\\xff'::bytea, 'UTF8') AS id;

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.id = 1 THEN
        RAISE EXCEPTION 'no more today' USING DETAIL = 'two are enough', HINT = 'come tomorrow';
    ELSIF NEW.id = 2 THEN
        RAISE EXCEPTION 'closed for lunch' USING ERRCODE = 'LU001';
    ELSIF NEW.id = 3 THEN
        RAISE serialization_failure;
    ELSE
        PERFORM set_config('nope', 'x', false);
    END IF;
    RETURN NEW;
END $$;
CREATE TABLE raising (id int PRIMARY KEY);
CREATE TRIGGER refuse BEFORE INSERT ON raising FOR EACH ROW EXECUTE FUNCTION refuse();

CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TABLE staying (id int PRIMARY KEY, n int);
INSERT INTO staying VALUES (1, 1);
CREATE TRIGGER stay BEFORE UPDATE ON staying FOR EACH ROW EXECUTE FUNCTION stay();

CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_terminate_backend(pg_backend_pid());
    RETURN NULL;
END $$;
CREATE TABLE vanishing (id int PRIMARY KEY);
CREATE CONSTRAINT TRIGGER vanish AFTER INSERT ON vanishing DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION vanish();

CREATE TABLE locked (id int PRIMARY KEY, n int DEFAULT 0);
INSERT INTO locked VALUES (1), (2);
CREATE SEQUENCE tries;
CREATE FUNCTION entangle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') = 1 THEN
        WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
    END IF;
    UPDATE locked SET n = 9 WHERE id = 2;
    RETURN NULL;
END $$;
CREATE TRIGGER entangle AFTER UPDATE ON locked FOR EACH ROW WHEN (NEW.id = 1 AND NEW.n = 5)
    EXECUTE FUNCTION entangle();
"""


@dataclass(frozen=True)
class Case:
    """
    A call that the database or the service refuses.

    Args:
        uri: URI of the error.
        call: The procedure, without the prefix.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        message: A part of the error's message.
        details: All keyword arguments of the error.
    """

    uri: str
    call: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case(
        "wamp.error.invalid_argument",
        "things.find",
        kwargs={"where": {"sise": 1}},
        message='no column "sise"',
        details={"path": "where.sise", "hint": 'did you mean "size"?'},
    ),
    Case(
        "wamp.error.invalid_argument",
        "things.find",
        kwargs={"where": {"size": {"gtt": 1}}},
        message='no operator "gtt"',
        details={"path": "where.size.gtt", "hint": 'did you mean "gt"?'},
    ),
    Case(
        "wamp.error.invalid_argument",
        "things.find",
        kwargs={"where": {"size": {"in": [1, "abc"]}}},
        message="expected an integer",
        details={"path": "where.size.in.1"},
    ),
    Case(
        "wamp.error.invalid_argument",  # a hidden column does not exist for callers
        "things.create",
        [{"id": 9, "secret": "x"}],
        message='no column "secret"',
        details={"path": "values.secret"},
    ),
    Case(
        "wamp.error.invalid_argument",  # in a stored row, so no argument of the call is at fault
        "mangled.find",
        message="invalid byte sequence",
        details={"sqlstate": "22021"},
    ),
    Case(
        "wamp.error.no_such_procedure",
        "thinks.find",
        message='no relation "thinks"',
        details={"hint": 'did you mean "things"?'},
    ),
    Case(
        "wamp.error.no_such_procedure",
        "things.fnd",
        message='no verb "fnd"',
        details={"relation": "things", "hint": 'did you mean "find"?'},
    ),
    Case(
        "rowcast.error.not_found",
        "things.get",
        [99],
        message="no such row",
        details={"relation": "things"},
    ),
    Case(
        "rowcast.error.not_changed",
        "staying.update",
        [1, {"n": 2}],
        message='did not write the row of "staying"',
        details={
            "relation": "staying",
            "hint": "a trigger, a rule or a policy leaves it out; nothing was written",
        },
    ),
    Case(
        "rowcast.error.invalid_row",  # every failing column at once
        "owners.create",
        [{"id": 3, "name": "eleven char", "mood": "hapy"}],
        message="name is longer than 10 characters; mood is none of",
        details={
            "relation": "owners",
            "fields": {
                "name": ["is longer than 10 characters"],
                "mood": ["is none of sad, happy"],
            },
        },
    ),
    Case(
        "rowcast.error.invalid_row",
        "owners.create",
        [{"id": 3}],
        message="name is required",
        details={"relation": "owners", "fields": {"name": ["is required"]}},
    ),
    Case(
        "rowcast.error.unique_violation",
        "things.create",
        [{"id": 9, "code": 1}],
        message='the same value of "code"',
        details={
            "sqlstate": "23505",
            "relation": "things",
            "constraint": "one_code",
            "column": "code",
            "columns": ["code"],
            "detail": "Key (code)=(1) already exists.",
        },
    ),
    Case(
        "rowcast.error.foreign_key_violation",
        "things.create",
        [{"id": 9, "owner_id": 77}],
        message='"owner_id" refers to no row of "owners"',
        details={
            "sqlstate": "23503",
            "relation": "things",
            "constraint": "owned",
            "column": "owner_id",
            "columns": ["owner_id"],
            "detail": 'Key (owner_id)=(77) is not present in table "owners".',
        },
    ),
    Case(
        "rowcast.error.foreign_key_violation",
        "owners.delete",
        [1],
        message='rows of "things" still refer to it',
        details={
            "sqlstate": "23503",
            "relation": "things",
            "constraint": "owned",
            "column": "owner_id",
            "columns": ["owner_id"],
            "detail": 'Key (id)=(1) is still referenced from table "things".',
        },
    ),
    Case(
        "rowcast.error.not_null_violation",  # a view does not show NOT NULL constraints of its table
        "named.create",
        [{"id": 9}],
        message='"name" must not be null',
        details={
            "sqlstate": "23502",
            "relation": "owners",
            "column": "name",
            "columns": ["name"],
        },
    ),
    Case(
        "rowcast.error.check_violation",
        "things.update",
        [1, {"size": 0}],
        message='"size" does not satisfy a check',
        details={
            "sqlstate": "23514",
            "relation": "things",
            "constraint": "positive",
            "column": "size",
            "columns": ["size"],
        },
    ),
    Case(
        "rowcast.error.exclusion_violation",
        "bookings.create",
        [{"id": 9, "span": "[2,3)"}],
        message='conflicts with another one in "span"',
        details={
            "sqlstate": "23P01",
            "relation": "bookings",
            "constraint": "apart",
            "column": "span",
            "columns": ["span"],
        },
    ),
    Case(
        "rowcast.error.conflict",
        "things.update",
        [1, {"size": 7}],
        {"expect": {"size": 6}},
        message="not as expected",
        details={"relation": "things", "row": {"id": 1, "code": 1, "size": 1, "owner_id": 1}},
    ),
    Case(
        "rowcast.error.conflict",
        "things.delete",
        [1],
        {"expect": {"size": 6}, "select": ["size"]},
        message="not as expected",
        details={"relation": "things", "row": {"size": 1}},
    ),
    Case(
        "rowcast.error.conflict",
        "raising.create",
        [{"id": 3}],
        message="serialization_failure",
        details={"sqlstate": "40001", "attempts": 6, "retry": True},
    ),
    Case(
        "rowcast.error.too_many_rows",
        "things.update",
        kwargs={"where": {"id": {"lt": 4}}, "changes": {"size": 7}, "max_affected": 2},
        message="would write 3 rows",
        details={"hint": "nothing was written"},
    ),
    Case(
        "rowcast.error.timeout",
        "slow.find",
        kwargs={"timeout": 0.2},
        message="longer than its time limit",
        details={"clock": "statement"},
    ),
    Case(
        "rowcast.error.outcome_unknown",
        "vanishing.create",
        [{"id": 1}],
        message="may or may not be kept",
    ),
    Case(
        "rowcast.error.raised",
        "raising.create",
        [{"id": 1}],
        message="no more today",
        details={"sqlstate": "P0001", "detail": "two are enough", "hint": "come tomorrow"},
    ),
    Case(
        "rowcast.error.raised",
        "raising.create",
        [{"id": 2}],
        message="closed for lunch",
        details={"sqlstate": "LU001"},
    ),
    Case(
        "rowcast.error.database",
        "raising.create",
        [{"id": 4}],
        message="the database refused (undefined object)",
        details={"sqlstate": "42704"},
    ),
]

APART = {
    "wamp.error.not_authorized",
    "wamp.error.canceled",
    "rowcast.error.too_large",
    "rowcast.error.unavailable",
    "rowcast.error.internal",
    "rowcast.error.position_gone",
}
"""Errors that take several calls to raise; they have their own tests (tests/db/test_catchup.py)."""

OTHER = "rowcast.other"
"""Prefix of services with other settings; error URIs do not depend on the prefix."""


async def refused(call: Deferred[Any]) -> ApplicationError:
    """Return the error of a call, after checks that hold for each error."""
    try:
        found = await call
    except ApplicationError as error:
        (message,) = error.args
        assert isinstance(message, str)
        assert message
        assert error.kwargs.keys() <= errors.DETAILS.keys()
        shown = json.dumps([message, error.kwargs], allow_nan=False)
        assert not re.search(r"SELECT|INSERT|UPDATE|Traceback|top secret|line \\d", shown)
        return error
    raise AssertionError(f"answered {found!r}")


def running(dsn: str, relation: str) -> int:
    """Return the number of running statements on a relation."""
    ((found,),) = execute(
        dsn,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE '%\"{relation}\"%'",
    )
    return int(str(found))


def documented() -> list[str]:
    """Return the error URIs of docs/errors.md, in order."""
    table = (ROOT / "docs" / "errors.md").read_text("utf-8")
    return re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)


def declared() -> set[str]:
    """Return the error URIs of the classes in service/errors.py."""
    return {
        value.uri
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.ServiceError)
        and "uri" in vars(value)
    }


def test_errors_of_the_page_are_those_declared_and_raised() -> None:
    """The documented errors are those that the classes declare and that the cases below raise."""
    page = documented()
    assert len(page) == len(set(page))
    assert set(page) == declared()
    assert set(page) == {case.uri for case in CASES} | APART


def test_details_of_the_page_are_those_of_the_classes() -> None:
    """The page names all keyword arguments that an error may have."""
    first = (ROOT / "docs" / "errors.md").read_text("utf-8").split("| URI |")[0]
    assert set(re.findall(r"`(\w+)`", first)) - {"args", "kwargs"} == errors.DETAILS.keys()


@pytest.mark.parametrize("case", CASES, ids=[f"{c.uri.split('.')[-1]}-{c.call}" for c in CASES])
@pytest_twisted.ensureDeferred
async def test_call_that_is_refused_has_uri_message_and_details(
    service: Serving, caller: Caller, case: Case
) -> None:
    """The error has exactly the expected URI, message and details."""
    error = await refused(caller.call(f"rowcast.{case.call}", *case.args, **case.kwargs))
    assert (error.error, error.kwargs) == (case.uri, case.details)
    assert case.message in error.args[0]


@pytest_twisted.ensureDeferred
async def test_delete_over_max_affected_keeps_its_rows(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A write refused for its number of rows changes nothing."""
    kwargs = {"where": {"id": {"lt": 4}}, "max_affected": 2}
    assert (await refused(caller.call("rowcast.things.delete", **kwargs))).kwargs
    assert execute(dsn, "SELECT count(*) FROM things") == [(5,)]


SIXTH = """
CREATE SEQUENCE runs_of_sixth;
CREATE FUNCTION sixth() RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE n bigint := nextval('runs_of_sixth');
    BEGIN IF n < 6 THEN RAISE serialization_failure; END IF; RETURN n; END $$;
"""


@pytest_twisted.ensureDeferred
async def test_serialization_failure_is_run_again_five_times(
    service: Serving, caller: Caller, dsn: str
) -> None:
    execute(dsn, SIXTH)
    assert await caller.call("rowcast.fn.sixth") == 6
    execute(dsn, "ALTER SEQUENCE runs_of_sixth MINVALUE 0 RESTART WITH 0")
    error = await refused(caller.call("rowcast.fn.sixth"))
    assert (error.error, error.kwargs["retry"]) == ("rowcast.error.conflict", True)
    assert execute(dsn, "SELECT last_value FROM runs_of_sixth") == [(5,)]


SLEEPING = (
    "SELECT count(*)::int FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event = 'PgSleep'"
)
"""Number of transactions that hold their first lock and wait until another one waits for them."""


@pytest_twisted.ensureDeferred
async def test_write_in_a_deadlock_is_retried(service: Serving, caller: Caller, dsn: str) -> None:
    """In a deadlock with another session, the service's write is the victim, and is retried."""
    other = psycopg2.connect(dsn)
    with other.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '1min'")
        cursor.execute("UPDATE locked SET n = 2 WHERE id = 2")
        pending = caller.call("rowcast.locked.update", 1, {"n": 5})
        await until(lambda: running(dsn, "locked"))
        await until(lambda: execute(dsn, SLEEPING) == [(1,)])
        waiting = in_thread(
            reactor, "other", cursor.execute, "UPDATE locked SET n = 3 WHERE id = 1"
        )
        await waiting
    other.rollback()
    other.close()
    assert (await pending)["n"] == 5


@pytest.fixture
def reader(dsn: str) -> Iterator[str]:
    """Create a role that may read but not write things and owners; yield its DSN."""
    execute(
        dsn,
        "CREATE ROLE errors_reader LOGIN; GRANT SELECT ON things, owners TO errors_reader;"
        "GRANT INSERT ON owners TO errors_reader",
    )
    yield make_dsn(dsn, user="errors_reader")
    execute(dsn, "DROP OWNED BY errors_reader; DROP ROLE errors_reader")


@pytest_twisted.ensureDeferred
async def test_call_without_rights_is_not_authorized(
    router: Router, caller: Caller, dsn: str, reader: str
) -> None:
    """What the service's role may not do is refused; what it may not read does not exist."""
    async with served(reader, router, prefix=OTHER):
        error = await refused(caller.call(f"{OTHER}.things.create", {"id": 9}))
        assert error.error == "wamp.error.not_authorized"
        assert error.kwargs == {"sqlstate": "42501"}
        execute(dsn, "REVOKE INSERT ON owners FROM errors_reader")
        error = await refused(caller.call(f"{OTHER}.owners.create", {"id": 9, "name": "x"}))
        assert error.error == "wamp.error.not_authorized"
        assert error.kwargs == {"sqlstate": "42501"}
        for name in (f"{OTHER}.bookings.find", f"{OTHER}.booking.find"):
            error = await refused(caller.call(name))
            assert error.error == "wamp.error.no_such_procedure"
            assert "hint" not in error.kwargs
    assert execute(dsn, "SELECT count(*) FROM owners") == [(2,)]


@pytest_twisted.ensureDeferred
async def test_cancelled_call_is_answered_after_its_query_has_stopped(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """The caller receives `canceled` after the service has cancelled the query on the server."""
    pending = caller.call("rowcast.slow.find")
    await until(lambda: running(dsn, "slow"))
    (request,) = caller._call_reqs
    caller._transport.send(Cancel(request, Cancel.KILL))
    with pytest.raises(ApplicationError) as caught:
        await pending
    assert caught.value.error == "wamp.error.canceled"
    assert caught.value.args == ("the call was cancelled",)
    await until(lambda: not running(dsn, "slow"))


@pytest_twisted.ensureDeferred
async def test_call_that_outlasts_the_drain_is_unavailable_and_stops_on_the_server(
    router: Router, caller: Caller, dsn: str
) -> None:
    """It is rolled back, and the caller may retry at another service."""
    async with served(dsn, router, prefix=OTHER):
        pending = caller.call(f"{OTHER}.slow.find")
        await until(lambda: running(dsn, "slow"))
    error = await refused(pending)
    assert error.error == "rowcast.error.unavailable"
    assert error.kwargs == {"retry": True, "retry_after": 1.0}
    assert not running(dsn, "slow")


@pytest_twisted.ensureDeferred
async def test_call_of_a_deferred_cancelled_or_connection_lost_is_stopped(
    service: Serving, router: Router, dsn: str
) -> None:
    """Cancelling the Deferred and losing the connection cancel the query, too."""
    session = await join(router, "rawsocket cbor")
    pending = session.call("rowcast.slow.find")
    await until(lambda: running(dsn, "slow"))
    pending.cancel()
    with pytest.raises(CancelledError):
        await pending
    await until(lambda: not running(dsn, "slow"))
    session.call("rowcast.slow.find").addErrback(lambda _: None)
    await until(lambda: running(dsn, "slow"))
    session._transport.abort()
    await until(lambda: not running(dsn, "slow"))


@pytest_twisted.ensureDeferred
async def test_timeout_of_a_call_is_bounded_by_the_services(
    router: Router, caller: Caller, dsn: str
) -> None:
    """The service's limit applies to calls without a timeout and to calls with a longer one."""
    async with served(dsn, router, prefix=OTHER, statement_timeout=1):
        for kwargs in ({}, {"timeout": 20}):
            error = await refused(caller.call(f"{OTHER}.slow.find", **kwargs))
            assert (error.error, error.kwargs) == ("rowcast.error.timeout", {"clock": "statement"})
        assert not running(dsn, "slow")


@pytest_twisted.ensureDeferred
async def test_result_over_the_limit_is_refused_and_its_write_rolled_back(
    router: Router, caller: Caller, dsn: str
) -> None:
    """A result over the limit is not sent, and its write is rolled back."""
    async with served(dsn, router, prefix=OTHER, max_bytes=20_000):
        for name, args, kwargs in (
            ("big.find", [], {}),
            ("big.create", [[{"id": 200 + i, "body": "y" * 1000} for i in range(30)]], {}),
            ("big.update", [], {"changes": {"body": "z" * 1000}, "all": True}),
            ("big.delete", [], {"all": True}),
        ):
            error = await refused(caller.call(f"{OTHER}.{name}", *args, **kwargs))
            assert error.error == "rowcast.error.too_large"
            assert error.kwargs.keys() == {"hint"}
            assert "limit" in error.kwargs["hint"]
            assert "stream" in error.kwargs["hint"]
        assert execute(dsn, "SELECT count(*), min(body) = max(body) FROM big") == [(100, True)]
        assert len((await caller.call(f"{OTHER}.big.find", limit=5))["rows"]) == 5


@pytest_twisted.ensureDeferred
async def test_call_without_a_connection_in_time_is_unavailable_with_retry_after(
    router: Router, caller: Caller, dsn: str
) -> None:
    """The error has `retry_after`."""
    async with served(dsn, router, prefix=OTHER, pool_max=1) as other:
        holding = caller.call(f"{OTHER}.slow.find")
        await until(lambda: running(dsn, "slow"))
        scheduler = other.pool.scheduler
        limits = scheduler.limits
        scheduler.limits = replace(limits, acquire_timeout=0.3)
        error = await refused(caller.call(f"{OTHER}.things.count"))
        scheduler.limits = limits
        assert error.error == "rowcast.error.unavailable"
        assert error.kwargs == {"retry": True, "retry_after": 1.0, "clock": "connection"}
        holding.addErrback(lambda _: None)
        holding.cancel()
        assert await caller.call(f"{OTHER}.things.count") == 5


@pytest_twisted.ensureDeferred
async def test_call_without_a_database_is_unavailable_until_it_is_back(
    router: Router, caller: Caller, dsn: str, postgres: str, service: Serving
) -> None:
    """While the database accepts no connections, calls end with a retryable error; then they succeed."""
    ((name,),) = execute(dsn, "SELECT current_database()")
    scheduler = service.pool.scheduler
    limits = scheduler.limits
    scheduler.limits = replace(limits, connect_wait=0.2)
    execute(
        postgres,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;"
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        for verb, args in (("count", []), ("create", [{"id": 9}])):
            error = await refused(caller.call(f"rowcast.things.{verb}", *args))
            assert error.error == "rowcast.error.unavailable"
            assert error.kwargs == {"retry": True, "retry_after": 1.0}
    finally:
        execute(postgres, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        scheduler.limits = limits
    assert await caller.call("rowcast.things.count") == 5


@pytest_twisted.ensureDeferred
async def test_exception_in_a_procedure_is_internal_with_an_id_only(
    service: Serving, caller: Caller
) -> None:
    """The caller receives only an id, under which the log has the traceback."""

    async def divide(call: ProcedureCall, by: int) -> float:
        return 1 / by

    functions = procedures(
        service.database,
        Models(service.database),
        lambda: service.dispatcher.served.codec,
        {"errors_test.divide": Declared(divide)},
    )
    service.dispatcher.add(functions)
    assert await caller.call("rowcast.errors_test.divide", 2) == 0.5
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        error = await refused(caller.call("rowcast.errors_test.divide", 0))
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert error.error == "rowcast.error.internal"
    assert error.kwargs.keys() == {"id"}
    assert "ZeroDivision" not in str(error)
    (entry,) = [event for event in logged if event.get("id") == error.kwargs["id"]]
    assert "ZeroDivisionError" in entry["reason"]
    assert "in divide" in entry["frames"]
