"""
Writes that the caller cancels: the caller's result, and the contents of the table.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp import message
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from service.app import Serving
from service.errors import Canceled, OutcomeUnknown, StatementTimeout
from service.models.served import Models
from service.procedures.registry import Declared, ProcedureCall, procedures
from tests.conftest import Router, execute
from tests.db.test_cancel import running
from tests.deferreds import pause, until
from tests.wamp.callers import Caller, end_of, join

SCHEMA = """
CREATE TABLE kept (id int PRIMARY KEY, part int NOT NULL DEFAULT 1, note text);
CREATE TABLE there (id int PRIMARY KEY, note text);
INSERT INTO there SELECT i FROM generate_series(1, 20000) i;
CREATE TABLE lines (id serial PRIMARY KEY, kept int REFERENCES kept (id));
CREATE FUNCTION keep(n int) RETURNS SETOF kept LANGUAGE sql AS
    'INSERT INTO kept VALUES (n), (n + 1000000) RETURNING *';
CREATE PROCEDURE keep_once(n int) LANGUAGE plpgsql AS
    'BEGIN INSERT INTO kept VALUES (n); END';
CREATE PROCEDURE keep_twice(n int) LANGUAGE plpgsql AS
    'BEGIN INSERT INTO kept VALUES (n); COMMIT; PERFORM pg_sleep(0.002);
     INSERT INTO kept VALUES (n + 1000000); END';
CREATE FUNCTION keep_slowly(n int) RETURNS void LANGUAGE sql AS
    'INSERT INTO kept VALUES (n, 1, ''slow'')';
CREATE PROCEDURE keep_never(n int) LANGUAGE sql AS 'INSERT INTO kept VALUES (n, 1, ''slow'')';
CREATE VIEW naps AS SELECT id, pg_sleep(0.01)::text FROM there;
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(CASE NEW.note WHEN ''slow'' THEN 30 ELSE 0.001 END); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def keep_in_steps(call: ProcedureCall, id: int) -> int:
    """Write in a transaction, and read the row afterwards."""
    async with call.database.transaction():
        await call.database.statement("INSERT INTO kept VALUES (%s)", [id], fetch=False)
        await call.database.statement("INSERT INTO lines (kept) VALUES (%s)", [id], fetch=False)
    return id


async def keep_then_look(call: ProcedureCall, id: int) -> Any:
    """Write, and read what was written."""
    await call.database.statement("INSERT INTO kept VALUES (%s)", [id], fetch=False)
    return await call.database.statement("SELECT id FROM kept WHERE id = %s", [id], retry=True)


async def keep_apart(call: ProcedureCall, id: int) -> None:
    """Write twice, in two transactions."""
    await call.database.statement("INSERT INTO kept VALUES (%s)", [id], fetch=False)
    await call.database.statement("INSERT INTO kept VALUES (%s)", [id + 1000000], fetch=False)


async def keep_slowly(call: ProcedureCall, id: int) -> None:
    """Write slowly."""
    sql = "INSERT INTO kept VALUES (%s, 1, 'slow')"
    await call.database.statement(sql, [id], fetch=False)


async def keep_half(call: ProcedureCall, id: int) -> None:
    """Write, and then wait."""
    await call.database.statement("INSERT INTO kept VALUES (%s)", [id], fetch=False)
    await call.database.statement("SELECT pg_sleep(30)", retry=True)


WRITTEN = {
    "steps": keep_in_steps,
    "look": keep_then_look,
    "apart": keep_apart,
    "slowly": keep_slowly,
    "half": keep_half,
}


@pytest.fixture(scope="module", autouse=True)
def written(service: Serving) -> None:
    """Serve the hand-written procedures."""
    models = Models(service.database)
    declared = {name: Declared(each) for name, each in WRITTEN.items()}
    codec = lambda: service.dispatcher.served.codec  # noqa: E731
    service.dispatcher.add(procedures(service.database, models, codec, declared))


def kill(caller: Caller, mode: str | None = "kill") -> None:
    """Cancel the last call, in modes that autobahn's cancel does not support."""
    caller._transport.send(message.Cancel(max(caller._call_reqs), mode=mode))


async def upload(caller: Caller, id: int) -> Any:
    """Import in several calls; the last one is to be cancelled."""
    begun = await caller.call("rowcast.kept.import", csv=f"id\n{id}\n", done=False)
    return caller.call("rowcast.kept.import", csv=f"{id + 1000000}\n", done=True, **begun)


WRITES: dict[str, tuple[int, Callable[[Caller, int], Any]]] = {
    "create": (1, lambda caller, id: caller.call("rowcast.kept.create", {"id": id})),
    "create many": (
        2,
        lambda caller, id: caller.call("rowcast.kept.create", [{"id": id}, {"id": id + 1000000}]),
    ),
    "upsert": (
        1,
        lambda caller, id: caller.call(
            "rowcast.kept.upsert", {"id": id}, embed={"lines": True}, select=["id"]
        ),
    ),
    "import": (
        2,
        lambda caller, id: caller.call("rowcast.kept.import", csv=f"id\n{id}\n{id + 1000000}\n"),
    ),
    "import in parts": (2, upload),
    "function": (2, lambda caller, id: caller.call("rowcast.fn.keep", n=id)),
    "procedure": (1, lambda caller, id: caller.call("rowcast.fn.keep_once", n=id)),
    "procedure that commits": (2, lambda caller, id: caller.call("rowcast.fn.keep_twice", n=id)),
    "by hand, in a transaction": (1, lambda caller, id: caller.call("rowcast.steps", id)),
    "by hand, and read": (1, lambda caller, id: caller.call("rowcast.look", id)),
    "by hand, each for itself": (2, lambda caller, id: caller.call("rowcast.apart", id)),
}
"""By kind of write: the number of rows that it writes, and a function that calls it."""
MAY_BE_KEPT = ("procedure", "by hand, and", "by hand, each")
"""Kinds of which a part may have been committed when they end."""
IDS = count(1)
TIMES = 60


@pytest.mark.parametrize("how", WRITES)
@pytest_twisted.ensureDeferred
async def test_cancelled_write_returns_the_outcome_of_its_transaction(
    how: str, dsn: str, service: Serving, router: Router
) -> None:
    """In mode "kill", a call with a result is committed, and a canceled call is rolled back."""
    chance = random.Random(7)
    parts, write = WRITES[how]
    ends: dict[int, str] = {}

    async def in_turn() -> None:
        caller = await join(router, "rawsocket cbor")
        took = 0.01
        for _ in range(TIMES // 3):
            id = next(IDS)
            call = write(caller, id)
            if how == "import in parts":
                call = await call
            began = reactor.seconds()
            end = ensureDeferred(end_of(call))
            if (
                chance.random() > 0.2
            ):  # otherwise immediately, so that some cancels are early on slow machines, too
                await pause(chance.uniform(0, 1.2) * took)
            if end.called:
                took = (took + reactor.seconds() - began) / 2
            else:
                kill(caller)
            ends[id] = await end
            took *= 0.8 if ends[id] == "result" else 1.3
        await caller.close()

    await gatherResults([ensureDeferred(in_turn()) for _ in range(3)])
    rows = {row[0] for row in execute(dsn, "SELECT id FROM kept")}
    for id, end in ends.items():
        there = (id in rows) + (id + 1000000 in rows)
        if end == "result":
            assert there == parts
        elif end == Canceled.uri:
            assert there == 0
        else:
            assert end == OutcomeUnknown.uri
            assert how.startswith(MAY_BE_KEPT)
    seen = Counter(ends.values())
    assert seen["result"] > 2, seen
    assert seen.total() - seen["result"] > 2, seen


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("create", StatementTimeout.uri),
        ("create many", StatementTimeout.uri),
        ("function", StatementTimeout.uri),
        ("procedure", OutcomeUnknown.uri),
        ("by hand", StatementTimeout.uri),
    ],
)
@pytest_twisted.ensureDeferred
async def test_write_that_takes_too_long_is_rolled_back(
    how: str, end: str, dsn: str, caller: Caller
) -> None:
    """`timeout` means that nothing was committed; a procedure may have committed before."""
    id = next(IDS)
    sleep = {"id": id, "note": "slow"}
    calls: dict[str, Callable[[], Any]] = {
        "create": lambda: caller.call("rowcast.kept.create", sleep, timeout=0.2),
        "create many": lambda: caller.call("rowcast.kept.create", [sleep], timeout=0.2),
        "function": lambda: caller.call("rowcast.fn.keep_slowly", args={"n": id}, timeout=0.2),
        "procedure": lambda: caller.call("rowcast.fn.keep_never", args={"n": id}, timeout=0.2),
        "by hand": lambda: caller.call("rowcast.slowly", id, timeout=0.2),
    }
    assert await end_of(calls[how]()) == end
    assert execute(dsn, f"SELECT * FROM kept WHERE id = {id}") == []


@pytest_twisted.ensureDeferred
async def test_timeout_after_a_commit_is_not_a_timeout(dsn: str, caller: Caller) -> None:
    """If a part was committed before the time limit, the outcome is unknown."""
    id = next(IDS)
    assert await end_of(caller.call("rowcast.half", id, timeout=0.3)) == OutcomeUnknown.uri
    assert execute(dsn, f"SELECT id FROM kept WHERE id = {id}") == [(id,)]


@pytest.mark.parametrize("verb", ["find", "create"])
@pytest_twisted.ensureDeferred
async def test_cancelled_call_stops_on_the_server(verb: str, dsn: str, caller: Caller) -> None:
    """It ends as canceled, and no query of it continues to run."""
    if verb == "find":
        call = end_of(caller.call("rowcast.naps.find"))
    else:
        call = end_of(caller.call("rowcast.kept.create", {"id": next(IDS), "note": "slow"}))
    end = ensureDeferred(call)
    await until(lambda: running(dsn, "naps" if verb == "find" else '"kept"'))
    kill(caller)
    assert await end == Canceled.uri
    await until(lambda: not running(dsn, "naps" if verb == "find" else '"kept"'))


@pytest.mark.parametrize("mode", ["skip", "killnowait", None])
@pytest_twisted.ensureDeferred
async def test_cancel_by_another_mode_is_answered_at_once(
    mode: str | None, dsn: str, caller: Caller
) -> None:
    """The caller receives `canceled` while the write continues or is cancelled; the session stays open."""
    id = next(IDS)
    end = ensureDeferred(end_of(caller.call("rowcast.kept.create", {"id": id, "note": "slow"})))
    await until(lambda: running(dsn, '"kept"'))
    kill(caller, mode)
    assert await end.addTimeout(5, reactor) == Canceled.uri
    if mode != "skip":
        await until(lambda: not running(dsn, '"kept"'))
        assert execute(dsn, f"SELECT id FROM kept WHERE id = {id}") == []
    else:
        await pause(0.5)
        assert running(dsn, '"kept"')
        execute(
            dsn, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        await until(lambda: not running(dsn, '"kept"'))
        await pause(0.3)
    assert await end_of(caller.call("rowcast.kept.count")) == "result"
