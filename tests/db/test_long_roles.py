"""stream, export and import with the rights of the caller's role, and with the rules of models."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from service.api.roles import Roles
from service.errors import (
    Canceled,
    DatabaseRefused,
    InvalidArgument,
    InvalidRow,
    NotAuthorized,
    ServiceError,
    UnknownName,
)
from service.models.model import Model
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.test_streaming import transactions
from tests.deferreds import failure_of, until

ROLES = Roles({"clerk": "rl_clerk"}, None)
CLERK = Caller(7, "p1", "clerk", "realm1")

SCHEMA = """
CREATE ROLE rl_clerk;
CREATE TABLE notes (id int PRIMARY KEY, owner text DEFAULT 'p1', text text, salary int);
INSERT INTO notes SELECT i, 'p' || i % 3, 'note ' || i, i * 100 FROM generate_series(1, 12) i;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO rl_clerk USING (owner = current_setting('rowcast.authid', true));
GRANT SELECT (id, owner, text), INSERT (id, owner, text) ON notes TO rl_clerk;
CREATE TABLE plain (id int PRIMARY KEY, text text, salary int DEFAULT 5);
GRANT SELECT (id, text), INSERT (id, text) ON plain TO rl_clerk;
CREATE TABLE watched (id int PRIMARY KEY, name text, doc jsonb, slug text);
"""


async def parts(db: DirectCaller, name: str, **kwargs: Any) -> list[Any]:
    """Return all parts of a call by the clerk."""
    taken: list[Any] = []

    async def take(part: Any) -> None:
        taken.append(part)

    await db.dispatcher.answer(name, [], kwargs, CLERK, progress=take)
    return taken


@pytest_twisted.ensureDeferred
async def test_stream_and_export_by_a_role_obey_its_rights(dsn: str) -> None:
    """Policies and grants."""
    async with serving(dsn, roles=ROLES) as db:
        (rows,) = await parts(db, "notes.stream")
        assert [row["id"] for row in rows] == [1, 4, 7, 10]
        assert "salary" not in rows[0]
        (text,) = await parts(db, "notes.export", select=["id"])
        assert text == "id\n1\n4\n7\n10\n"
        (lines,) = await parts(db, "notes.export", select=["id"], format="ndjson")
        assert lines == '{"id":1}\n{"id":4}\n{"id":7}\n{"id":10}\n'
        refused = await failure_of(parts(db, "notes.export", select=["salary"]))
        assert isinstance(refused, UnknownName | NotAuthorized)


@pytest_twisted.ensureDeferred
async def test_import_by_a_role_obeys_its_rights(dsn: str) -> None:
    """Policies and grants."""
    async with serving(dsn, roles=ROLES) as db:
        given = [{"id": 20, "owner": "p1"}, {"id": 21, "owner": "p1"}]
        assert await db.call_as(CLERK, "notes.import", given) == {"rows": 2}
        refused = await failure_of(db.call_as(CLERK, "notes.import", [{"id": 22, "owner": "p2"}]))
        assert isinstance(refused, NotAuthorized | DatabaseRefused)
        assert await db.call_as(CLERK, "plain.import", csv="id,text\n1,a\n") == {"rows": 1}
        refused = await failure_of(db.call_as(CLERK, "plain.import", csv="id,salary\n2,9\n"))
        assert isinstance(refused, ServiceError)
    assert execute(dsn, "SELECT id FROM notes WHERE id > 19 ORDER BY id") == [(20,), (21,)]
    assert execute(dsn, "SELECT * FROM plain") == [(1, "a", 5)]


class Watched(Model):
    """A model with a validation and a hook."""

    TABLENAME = "watched"

    def beforeSave(self) -> None:
        """Set the slug."""
        self.slug = str(self.name).lower()


Watched.validatesPresenceOf("name")


@pytest_twisted.ensureDeferred
async def test_import_into_a_model_with_rules_is_validated(dsn: str) -> None:
    """Each row, also of CSV, is validated, and what hooks set is written."""
    async with serving(dsn, written=(Watched,)) as db:
        given = [{"id": n, "name": f"N{n}"} for n in range(500)]
        assert await db.call("watched.import", given) == {"rows": 500}
        refused = await failure_of(db.call("watched.import", [*given[:3], {"id": 900}]))
        assert isinstance(refused, InvalidRow)
        assert refused.details["path"] == "rows.3"
        text = 'id,name,doc\n900,"A ""b""\nC","{""n"": 1}"\n901,D,\n902,E,null'
        begun = await db.call("watched.import", csv=text[:30], done=False)
        calls = [
            Deferred.fromCoroutine(db.call("watched.import", csv=each, **begun))
            for each in text[30:]
        ]
        assert await db.call("watched.import", done=True, **begun) == {"rows": 3}
        assert await calls[0] == begun
        refused = await failure_of(db.call("watched.import", csv="id,name\n950,\n"))
        assert isinstance(refused, InvalidRow)
    found = execute(dsn, "SELECT id, name, doc, slug FROM watched WHERE id >= 899 ORDER BY id")
    assert found == [
        (900, 'A "b"\nC', {"n": 1}, 'a "b"\nc'),
        (901, "D", None, "d"),
        (902, "E", None, "e"),
    ]
    assert execute(dsn, "SELECT count(*) FROM watched WHERE slug IS NOT NULL") == [(503,)]


@pytest_twisted.ensureDeferred
async def test_csv_for_a_model_with_rules_is_refused_if_malformed(dsn: str) -> None:
    """A column named twice, and an unclosed quote, which is refused soon."""
    async with serving(dsn, written=(Watched,)) as db:
        refused = await failure_of(db.call("watched.import", csv="id,name,name\n960,a,b\n"))
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "csv.name"
        for doc in ("{", "x", '"{""a"": }"', '"' + "[" * 20_000 + '"', "1 x", '"{} {}"', '"\0"'):
            given = f"id,name,doc\n970,a,{doc}\n"
            refused = await failure_of(db.call("watched.import", csv=given))
            assert isinstance(refused, InvalidArgument | DatabaseRefused)
        exact = '[1.10, 123456789012345678901234567890, "\\n", null]'
        given = 'id,name,doc\n970,a,"' + exact.replace('"', '""') + '"\n971,b,null\n972,c,\n'
        assert await db.call("watched.import", csv=given) == {"rows": 3}
        kept = execute(
            dsn, "SELECT doc::text FROM watched WHERE id BETWEEN 970 AND 972 ORDER BY id"
        )
        assert kept == [(exact,), ("null",), (None,)]
        late = 0.0
        began = reactor.seconds()

        def look() -> None:
            nonlocal late, began
            late, began = max(late, reactor.seconds() - began), reactor.seconds()

        looking = LoopingCall(look)
        looking.start(0.01)
        endless = 'id,name\n960,"' + "\n" * 2_000_000
        refused = await failure_of(db.call("watched.import", csv=endless))
        looking.stop()
        assert isinstance(refused, InvalidArgument)
        assert late < 0.5


@pytest_twisted.ensureDeferred
async def test_upload_cancelled_while_its_rows_are_validated_ends(dsn: str) -> None:
    """Although no row has reached the database yet."""
    async with serving(dsn, written=(Watched,), idle=60) as db:
        begun = await db.call("watched.import", done=False)
        given = [{"id": n, "name": "x"} for n in range(1000, 3000)]
        first = Deferred.fromCoroutine(db.call("watched.import", given, **begun))
        second = Deferred.fromCoroutine(db.call("watched.import", given, **begun))
        second.cancel()
        assert isinstance(await failure_of(second), CancelledError)
        assert isinstance(await failure_of(first), Canceled)
        await until(lambda: not db.pool.stats().busy)
        assert not transactions(dsn)
