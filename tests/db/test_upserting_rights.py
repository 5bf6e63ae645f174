"""
Upsert that reads the rows first, by roles with restricted rights, compared with plain SQL.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import Conflict, InvalidRow, NotAuthorized, NotChanged, ServiceError
from service.models.model import Model
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE ur_guest;
CREATE TABLE buses (plate text PRIMARY KEY, model text, seats int DEFAULT 4);
GRANT INSERT, SELECT, UPDATE (seats) ON buses TO ur_guest;
CREATE TABLE notes (id int PRIMARY KEY, owner text DEFAULT current_user, n int DEFAULT 7, log text);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY see ON notes FOR SELECT TO ur_guest USING (owner <> 'hidden');
CREATE POLICY change ON notes FOR UPDATE TO ur_guest USING (owner = current_user);
CREATE POLICY make ON notes FOR INSERT TO ur_guest WITH CHECK (true);
CREATE VIEW few AS SELECT id, n FROM notes WHERE n < 20;
GRANT ALL ON notes, few TO ur_guest;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    IF new.id = 13 THEN RETURN NULL; END IF;
    new.log := lower(tg_op) || coalesce(', ' || old.log, ''); RETURN new; END$$;
CREATE TRIGGER note BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION note();
"""
BEFORE_EACH = (
    "TRUNCATE buses, notes; INSERT INTO buses VALUES ('old', 'bus', 4);"
    " INSERT INTO notes (id, owner, n) VALUES (1, 'boss', 1), (2, 'hidden', 2), (3, 'ur_guest', 3),"
    " (4, 'ur_guest', 50)"
)
ROLES = Roles({"guest": "ur_guest"})
GUEST = Caller(7, "g", "guest", "realm1")
pytestmark = pytest.mark.serving(roles=ROLES)


class Watched(Model):
    """A model that refuses counts above 50 of new and existing rows."""

    TABLENAME = "notes"

    def beforeSave(self) -> bool:
        """Refuse a count above 50."""
        return self.n is None or bool(self.n <= 50)


@pytest.mark.parametrize("update", [{"seats": {"$add": 1}}, ["seats"], []], ids=str)
@pytest.mark.parametrize("plate", ["new", "old"])
@pytest_twisted.ensureDeferred
async def test_upsert_needs_update_on_the_columns_it_changes(
    db: DirectCaller, dsn: str, update: Any, plate: str
) -> None:
    """It needs no privilege on the other columns that its rows give."""
    row, kwargs = {"plate": plate, "model": "car", "seats": 9}, {"select": ["model", "seats"]}
    both = await db.call_as(GUEST, "buses.upsert", row, update=update, returning="both", **kwargs)
    old = {"model": "bus", "seats": 4} if plate == "old" else None
    execute(dsn, BEFORE_EACH)
    new = await db.call_as(GUEST, "buses.upsert", row, update=update, **kwargs)
    assert both == (new and {"old": old, "new": new})
    call = db.call_as(GUEST, "buses.upsert", row, update=["model"], returning="both")
    assert isinstance(await failure_of(call), NotAuthorized)


@pytest.mark.parametrize("id", [1, 2])
@pytest.mark.parametrize("update", [None, ["n"], {"n": {"$add": 1}}, {"n": 5}], ids=str)
@pytest_twisted.ensureDeferred
async def test_row_without_the_right_to_change_it_is_refused_as_by_any_upsert(
    db: DirectCaller, dsn: str, id: int, update: Any
) -> None:
    """Whether the caller sees it or not; at once, and not as a concurrent insert."""
    rows = [{"id": 9, "n": 9}, {"id": id, "n": 8}]
    plain = await failure_of(db.call_as(GUEST, "notes.upsert", rows, update=update))
    call = db.call_as(GUEST, "notes.upsert", rows, update=update, returning="both")
    refused = await failure_of(call)
    assert isinstance(refused, NotAuthorized)
    assert (str(refused), refused.details) == (str(plain), plain.details)
    assert execute(dsn, "SELECT count(*) FROM notes") == [(4,)]


@pytest_twisted.ensureDeferred
async def test_row_without_the_right_to_change_it_is_skipped_if_the_upsert_does_not_change_it(
    db: DirectCaller,
) -> None:
    """With `update: []`, or if its condition does not hold; hidden rows are not compared."""
    kwargs: dict[str, Any] = {"returning": "both", "select": ["n"]}
    rows = [{"id": 1, "n": 8}, {"id": 3, "n": 8}, {"id": 9, "n": 9}]
    new = {"old": None, "new": {"n": 9}}
    where = {"n": {"gt": 2}}
    found = await db.call_as(GUEST, "notes.upsert", rows, where=where, **kwargs)
    assert found == [{"old": {"n": 3}, "new": {"n": 8}}, new]
    rows = [{"id": 1, "n": 8}, {"id": 2, "n": 8}, {"id": 10, "n": 9}]
    assert await db.call_as(GUEST, "notes.upsert", rows, update=[], **kwargs) == [new]
    assert await db.call_as(GUEST, "notes.upsert", rows[1], update=[], **kwargs) is None
    kwargs = {"update": [], "returning": "old", "form": "json"}
    assert await db.call_as(GUEST, "notes.upsert", [{"id": 11}], **kwargs) == "[null]"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"returning": "both"},
        {"returning": "old", "update": {"n": {"$add": 1}}},
        {"where": {"n": 50}},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [False, True])
@pytest_twisted.ensureDeferred
async def test_row_that_a_view_never_shows_is_not_retryable(
    db: DirectCaller, dsn: str, kwargs: dict[str, Any], batch: bool
) -> None:
    """The error is not retryable, because no later call or transaction would succeed."""
    kwargs = {"on_conflict": ["id"], "values": {"id": 4, "n": 5}, **kwargs}
    refused = await failure_of(
        db.call_as(GUEST, "transaction", [{"call": "few.upsert", "kwargs": kwargs}])
        if batch
        else db.call_as(GUEST, "few.upsert", **kwargs)
    )
    assert isinstance(refused, Conflict)
    assert "retry" not in refused.details
    assert execute(dsn, "SELECT n FROM notes WHERE id = 4") == [(50,)]


@pytest.mark.parametrize("written", [(), (Watched,)], ids=["plain", "ruled"])
@pytest_twisted.ensureDeferred
async def test_upsert_that_reads_first_sets_defaults_and_runs_triggers_as_any_upsert(
    dsn: str, written: tuple[type[Model], ...]
) -> None:
    """
    A column that a row leaves out and another one gives gets its default; a row of keys only counts as
    changed, too.
    """
    async with serving(dsn, written=written) as db:
        pick: dict[str, Any] = {"returning": "both", "select": ["id", "n"]}
        found = await db.call("notes.upsert", [{"id": 1, "n": 5}, {"id": 3}], update=["n"], **pick)
        assert [each["new"]["n"] for each in found] == [5, 7]
        default = {"n": {"$default": True}}
        rows = [{"id": 4, **default}, {"id": 3, "n": 9}, {"id": 1}]
        found = await db.call("notes.upsert", rows, **pick)
        assert [each["new"]["n"] for each in found] == [7, 9, 5]
        assert [each["old"]["n"] for each in found] == [50, 7, 5]
        execute(dsn, BEFORE_EACH)
        pick["select"] = ["log"]
        found = await db.call("notes.upsert", {"id": 1}, **pick)
        assert found == {"old": {"log": "insert"}, "new": {"log": "update, insert"}}
        found = await failure_of(db.call("notes.upsert", {"id": 13}, returning="both"))
        assert isinstance(found, NotChanged)


REFUSED: list[tuple[Any, dict[str, Any], type[ServiceError], str]] = [
    ([{"id": 9}, {"id": 3, "n": 51}], {}, InvalidRow, "values.1"),
    ([{"id": 3}, {"id": 9, "n": 51}], {}, InvalidRow, "values.1"),
    ({"id": 3, "n": 51}, {}, InvalidRow, "values"),
    ([{"id": 9}, {"id": 3}], {"update": {"n": 51}}, InvalidRow, "values.1"),
    ([{"id": 9}, {"id": 3, "n": 1}, {"id": 3, "n": 2}], {}, ServiceError, "values.2"),
]


@pytest.mark.parametrize(("values", "kwargs", "kind", "path"), REFUSED, ids=str)
@pytest_twisted.ensureDeferred
async def test_refused_row_has_its_index_in_the_call(
    dsn: str, values: Any, kwargs: dict[str, Any], kind: type[ServiceError], path: str
) -> None:
    """Whichever of the other rows existed."""
    async with serving(dsn, written=(Watched,)) as db:
        refused = await failure_of(db.call("notes.upsert", values, returning="both", **kwargs))
        assert isinstance(refused, kind)
        assert refused.details["path"] == path
        assert "row 0" not in str(refused)
        assert execute(dsn, "SELECT count(*), sum(n) FROM notes") == [(4, 56)]


@pytest_twisted.ensureDeferred
async def test_skipped_row_is_checked_by_insert_policies_as_in_any_upsert(
    db: DirectCaller, dsn: str
) -> None:
    """PostgreSQL checks the row to insert before it looks for an existing one."""
    execute(dsn, "ALTER POLICY make ON notes WITH CHECK (n < 30)")
    try:
        row, where = {"id": 3, "n": 40}, {"n": 99}
        for kwargs in ({}, {"returning": "both"}):
            call = db.call_as(GUEST, "notes.upsert", row, where=where, **kwargs)
            assert isinstance(await failure_of(call), NotAuthorized)
    finally:
        execute(dsn, "ALTER POLICY make ON notes WITH CHECK (true)")
