"""Upserts with changes of existing rows: computed values, paths and defaults, as in an update."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.api.roles import Roles
from service.errors import (
    Conflict,
    InvalidArgument,
    InvalidRow,
    NotAuthorized,
    ServiceError,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE uc_guest;
CREATE ROLE uc_owner BYPASSRLS;
CREATE TABLE hits (page text PRIMARY KEY, n int NOT NULL DEFAULT 1, tags text[] DEFAULT '{}',
    meta jsonb DEFAULT '{}', raw json, kind varchar(4) DEFAULT 'new', owner text DEFAULT 'guest',
    slot int UNIQUE, at date DEFAULT '2026-01-01');
CREATE UNIQUE INDEX hits_lower ON hits (lower(page));
CREATE TABLE wanted (LIKE hits INCLUDING ALL);
ALTER TABLE hits ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON hits TO uc_guest USING (owner = 'guest');
CREATE VIEW shown AS SELECT page, n, owner FROM hits WHERE owner = 'guest';
CREATE TABLE kept (id int PRIMARY KEY, n int, secret int, CHECK (n < 100));
GRANT ALL ON hits, shown TO uc_guest;
GRANT ALL ON hits, shown, kept TO uc_owner;
GRANT SELECT (id, n), INSERT (id, n), UPDATE (n, secret) ON kept TO uc_guest;
"""

START = (
    "(page, n, tags, meta, slot) VALUES ('/a', 5, '{x}', '{\"seen\": {\"n\": 2}}', 1),"
    " ('/b', 7, '{}', '{}', 2)"
)
BEFORE_EACH = (
    f"TRUNCATE hits, wanted, kept; INSERT INTO hits {START}; INSERT INTO wanted {START};"
    " INSERT INTO kept VALUES (1, 1, 1)"
)
ROLES = Roles({"guest": "uc_guest"}, "uc_owner")
pytestmark = pytest.mark.serving(roles=ROLES)
GUEST = Caller(7, "g", "guest", "realm1")

ROWS = [{"page": "/a", "slot": 1}, {"page": "/c", "slot": 3}]
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"n": {"$add": 1}}, "n = t.n + 1"),
    ({"n": {"$multiply": 3}, "kind": "old"}, "n = t.n * 3, kind = 'old'"),
    ({"tags": {"$append": ["y", "z"]}}, "tags = t.tags || '{y,z}'"),
    ({"tags": {"$prepend": ["y"]}}, "tags = '{y}' || t.tags"),
    ({"tags": {"$remove": ["x"]}}, "tags = array_remove(t.tags, 'x')"),
    ({"meta": {"$merge": {"a": 1}}}, "meta = t.meta || '{\"a\": 1}'"),
    ({"meta->seen->n": {"$add": 1}}, "meta = jsonb_set(t.meta, '{seen,n}', '3')"),
    ({"meta->x": 1, "meta->y": [2]}, 'meta = t.meta || \'{"x": 1, "y": [2]}\''),
    ({"raw": {"$value": {"$add": 1}}}, "raw = '{\"$add\": 1}'"),
    ({"raw": {"$append": [1]}}, "raw = '[1]'"),
    ({"kind": {"$default": True}, "n": 9}, "kind = DEFAULT, n = 9"),
    ({"at": {"$add": "P1M"}}, "at = t.at + interval '1 month'"),
    ({"slot": None, "n": 0}, "slot = NULL, n = 0"),
]


KEYS = {"page": ["page"], "slot": "hits_slot_key", "lower(page)": "hits_lower"}


@pytest.mark.parametrize("target", KEYS)
@pytest.mark.parametrize(("update", "sql"), CHANGES, ids=[sql for _, sql in CHANGES])
@pytest_twisted.ensureDeferred
async def test_upsert_updates_existing_rows_as_postgresql_does(
    db: DirectCaller, dsn: str, target: str, update: dict[str, Any], sql: str
) -> None:
    """New rows are inserted as given. The expected rows are those of the equivalent SQL."""
    execute(
        dsn,
        "INSERT INTO wanted AS t (page, slot) VALUES ('/a', 1), ('/c', 3)"
        f" ON CONFLICT ({target}) DO UPDATE SET {sql}",
    )
    answer = await db.call("hits.upsert", ROWS, on_conflict=KEYS[target], update=update)
    assert _all(dsn, "hits") == _all(dsn, "wanted")
    assert [row["page"] for row in answer] == ["/a", "/c"]
    read = await db.call("hits.get", keys=["/a", "/c"])
    assert answer == read
    one = await db.call("hits.upsert", ROWS[1], on_conflict=KEYS[target], update={"kind": "x"})
    assert one["kind"] == "x"


def _all(dsn: str, table: str) -> Any:
    return execute(dsn, f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY page")


@pytest_twisted.ensureDeferred
async def test_concurrent_upserts_are_all_counted(db: DirectCaller, dsn: str) -> None:
    """The first one inserts the row; none is lost, alone or in a batch."""
    call = {
        "call": "hits.upsert",
        "args": [{"page": "/new"}],
        "kwargs": {"update": {"n": {"$add": 1}}},
    }
    calls = [
        ensureDeferred(db.call("hits.upsert", *call["args"], **call["kwargs"])) for _ in range(8)
    ]
    calls += [ensureDeferred(db.call("transaction", [call, call])) for _ in range(2)]
    await gatherResults(calls)
    assert execute(dsn, "SELECT n FROM hits WHERE page = '/new'") == [(12,)]


@pytest_twisted.ensureDeferred
async def test_upsert_with_changes_accepts_where_and_references(db: DirectCaller, dsn: str) -> None:
    """The condition is about the existing row; a referenced value is a value."""
    kwargs = {"update": {"n": {"$add": 1}}, "where": {"n": {"gt": 6}}, "select": ["page", "n"]}
    rows = [{"page": "/a"}, {"page": "/b"}, {"page": "/c"}]
    found = await db.call("hits.upsert", rows, **kwargs)
    assert found == [{"page": "/b", "n": 8}, {"page": "/c", "n": 1}]
    execute(dsn, "UPDATE hits SET meta = '{\"$add\": 5}' WHERE page = '/b'")
    update = {"meta": {"$ref": "0.meta"}, "n": {"$add": {"$ref": "0.n"}}}
    copy = {"call": "hits.upsert", "args": [{"page": "/a"}], "kwargs": {"update": update}}
    await db.call("transaction", [{"call": "hits.get", "args": ["/b"]}, copy])
    assert execute(dsn, "SELECT n, meta FROM hits WHERE page = '/a'") == [(13, {"$add": 5})]


@pytest.mark.parametrize("update", [{}, []], ids=str)
@pytest_twisted.ensureDeferred
async def test_upsert_without_changes_does_not_change_existing_rows(
    db: DirectCaller, dsn: str, update: Any
) -> None:
    before = _all(dsn, "hits")
    assert await db.call("hits.upsert", {"page": "/a", "n": 99}, update=update) is None
    assert _all(dsn, "hits") == before


REFUSED: list[tuple[dict[str, Any], type[ServiceError], str | None, str]] = [
    ({"update": {"nn": {"$add": 1}}}, InvalidArgument, "update.nn", "no column"),
    ({"update": {"n": {"$ad": 1}}}, InvalidArgument, "update.n", "operator"),
    ({"update": {"kind": {"$add": 1}}}, InvalidArgument, "update.kind.$add", "has no"),
    ({"update": {"n": {"$add": "x"}}}, InvalidArgument, "update.n.$add", "an integer"),
    ({"update": {"n": {"$add": 2**31 - 1}}}, InvalidArgument, "update.n", "out of range"),
    ({"update": {"meta->seen->n->x": 1}}, InvalidArgument, "update.meta->seen->n->x", "scalar"),
    ({"update": {"meta": 1, "meta->a": 1}}, InvalidArgument, "update.meta->a", "lies in"),
    ({"update": {f"meta->k{at}->a->b": 1 for at in range(43)}}, InvalidArgument, "update", "128 steps"),
    ({"update": {"kind": "longer"}}, InvalidRow, "update", "not a valid row"),
    ({"update": {"n": None}}, InvalidRow, "update", "not a valid row"),
    ({"update": [{"n": 1}]}, InvalidArgument, "update", "list of columns"),
    ({"update": {}, "where": {"n": 1}}, InvalidArgument, "where", "left alone"),
]  # fmt: skip


@pytest.mark.parametrize(("kwargs", "kind", "path", "message"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_invalid_changes_of_an_upsert_are_refused(
    db: DirectCaller, dsn: str, kwargs: Any, kind: type[ServiceError], path: str, message: str
) -> None:
    """The error has the path; nothing is written."""
    before = _all(dsn, "hits")
    with pytest.raises(kind, match=message) as refused:
        await db.call("hits.upsert", [{"page": "/c"}, {"page": "/a"}], **kwargs)
    assert str(refused.value.details.get("path")).startswith(path)
    assert _all(dsn, "hits") == before


@pytest_twisted.ensureDeferred
async def test_computed_value_in_a_new_row_is_refused_with_its_place(db: DirectCaller) -> None:
    refused = await failure_of(db.call("hits.upsert", {"page": "/a", "n": {"$add": 1}}))
    assert isinstance(refused, InvalidArgument)
    assert '"update" of upsert' in refused.details["hint"]


@pytest_twisted.ensureDeferred
async def test_changes_of_an_upsert_are_not_computed_from_hidden_rows(
    db: DirectCaller, dsn: str
) -> None:
    """A policy or a view hides the rows; through a view, PostgreSQL itself would write them."""
    execute(dsn, "INSERT INTO hits (page, n, owner) VALUES ('/boss', 2147483647, 'boss')")
    for update in (
        {"n": {"$add": 1}},
        {"n": {"$multiply": 1}},
        {"n": {"$add": 1}, "owner": "guest"},
    ):
        call = db.call_as(GUEST, "hits.upsert", {"page": "/boss", "owner": "guest"}, update=update)
        assert isinstance(await failure_of(call), NotAuthorized)
        row = {"page": "/boss", "owner": "guest"}
        call = db.call_as(GUEST, "shown.upsert", row, on_conflict=["page"], update=update)
        refused = await failure_of(call)
        assert isinstance(refused, Conflict)
        assert "214748" not in f"{refused} {refused.details}"
    assert execute(dsn, "SELECT n FROM hits WHERE page = '/boss'") == [(2147483647,)]
    row = {"page": "/a", "owner": "guest"}
    kwargs: Any = {"on_conflict": ["page"], "update": {"n": {"$add": 1}}}
    assert (await db.call_as(GUEST, "shown.upsert", row, **kwargs))["n"] == 6
    kwargs |= {"where": {"n": {"gt": 5}}, "update": {"owner": "guest", "n": 3}}
    assert (await db.call_as(GUEST, "shown.upsert", row, **kwargs))["n"] == 3
    defaults = {**kwargs, "update": {"owner": {"$default": True}}}
    refused = await failure_of(db.call_as(GUEST, "hits.upsert", {"page": "/a"}, **defaults))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "update"


@pytest_twisted.ensureDeferred
async def test_changes_of_an_upsert_need_the_rights_on_their_columns(
    db: DirectCaller, dsn: str
) -> None:
    """A computed value needs SELECT, a set column UPDATE; a hidden column is unknown."""
    row, kwargs = {"id": 1, "n": 9}, {"select": ["n"]}
    found = await db.call_as(GUEST, "kept.upsert", row, update={"n": {"$add": 1}}, **kwargs)
    assert found == {"n": 2}
    assert await db.call_as(GUEST, "kept.upsert", row, update={"secret": 7}, **kwargs) == {"n": 2}
    for update in ({"secret": {"$add": 1}}, {"id": {"$add": 1}}):
        call = db.call_as(GUEST, "kept.upsert", row, update=update, **kwargs)
        assert isinstance(await failure_of(call), NotAuthorized)
    assert execute(dsn, "SELECT * FROM kept") == [(1, 2, 7)]
    call = db.call("kept.upsert", [{"id": 2, "n": 1}, row], update={"n": {"$multiply": 50}})
    assert (await failure_of(call)).__class__.__name__ == "CheckViolation"
    assert execute(dsn, "SELECT * FROM kept") == [(1, 2, 7)]
