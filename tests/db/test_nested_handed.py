"""
Values that statements of nested creates pass to later statements.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument, NotChanged
from tests.conftest import execute
from tests.db.dispatchers import serving
from tests.deferreds import failure_of

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE boxes (id {type} PRIMARY KEY DEFAULT {default}, name text);
CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, box {type} {refers},
    name text);
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION handed() RETURNS text[] STABLE LANGUAGE sql AS
    $$SELECT array_agg(coalesce(current_setting('rowcast.value_' || n, true), ''))
      FROM generate_series(0, 20) n$$
"""
TRIGGER = """CREATE TRIGGER skip BEFORE INSERT ON boxes FOR EACH ROW WHEN (NEW.name = 'gone')
    EXECUTE FUNCTION skip()"""
KEYS = {
    "int": "(random() * 1000000)::int",
    "bigint": "(random() * 1000000)::int",
    "uuid": "gen_random_uuid()",
    "text": "gen_random_uuid()",
    "varchar(40)": "gen_random_uuid()",
    "numeric": "random()",
    "date": "current_date - (random() * 10000)::int",
    "timestamptz": "now() - random() * interval '100 days'",
    "bytea": "decode(md5(random()::text), 'hex')",
}
FOREIGN_KEY = "REFERENCES boxes"


def box(name: str) -> dict[str, object]:
    """Return a row of a box with another box nested in it."""
    return {"name": name, "things": [{"name": f"in {name}"}]}


@pytest.mark.parametrize("type", KEYS)
@pytest_twisted.ensureDeferred
async def test_row_prevented_by_an_unknown_trigger_passes_no_values_on(dsn: str, type: str) -> None:
    """
    A trigger that the catalog does not have yet prevents a row: no value of an earlier call is used for it.
    """
    execute(dsn, TABLES.format(type=type, default=KEYS[type], refers=FOREIGN_KEY))
    async with serving(dsn) as db:
        kept = await db.call("boxes.create", box("kept"))
        execute(dsn, TRIGGER)
        calls = [{"call": "boxes.create", "args": [box(name)]} for name in ("first", "gone")]
        refused = await failure_of(db.call("transaction", calls))
        assert isinstance(refused, NotChanged), refused
        assert refused.details["operation"] == 1
        refused = await failure_of(db.call("boxes.create", box("gone")))
        assert isinstance(refused, NotChanged), refused
        assert refused.details["path"] == "values"
        found = await db.call("boxes.get", kept["id"], embed={"things": {"select": ["name"]}})
        assert found["things"] == [{"name": "in kept"}]
    assert execute(dsn, "SELECT name FROM things") == [("in kept",)]


UNSEEN = """CREATE TRIGGER skip BEFORE INSERT ON {} FOR EACH ROW WHEN (NEW.name = 'gone')
    EXECUTE FUNCTION skip()"""
PIECES = """
CREATE TABLE pieces (box int REFERENCES boxes, name text) PARTITION BY LIST (name);
CREATE TABLE some_pieces PARTITION OF pieces DEFAULT;
"""


@pytest.mark.parametrize("kwargs", [{}, {"returning": False}, {"embed": {}}], ids=str)
@pytest.mark.parametrize("inner", ["things", "pieces"])
@pytest.mark.parametrize("type", ["int", "text"])
@pytest_twisted.ensureDeferred
async def test_prevented_row_without_references_to_it_is_an_error(
    dsn: str, type: str, inner: str, kwargs: dict[str, Any]
) -> None:
    """A trigger that the catalog does not have yet prevents a row that no other row refers to."""
    execute(dsn, TABLES.format(type=type, default=KEYS[type], refers=FOREIGN_KEY))
    execute(dsn, PIECES.replace("box int", f"box {type}"))
    async with serving(dsn) as db:
        for name in ("before", "behind"):
            await db.call(
                "boxes.create", {"name": name, inner: [{"name": "a"}, {"name": "b"}]}, **kwargs
            )
            execute(dsn, UNSEEN.format(inner) if name == "before" else "SELECT")
        before = execute(dsn, f"SELECT box::text, name FROM {inner} ORDER BY 1, 2")
        for names in (["gone"], ["a", "gone"], ["gone", "gone"], ["gone", "a", "b"]):
            rows = [{"name": name} for name in names]
            others = {"name": "o", "things" if inner == "pieces" else "pieces": [{"name": "c"}]}
            refused = await failure_of(db.call("boxes.create", {**others, inner: rows}, **kwargs))
            assert isinstance(refused, NotChanged), (names, refused)
            path = refused.details.get("path")
            assert path == (f"values.{inner}.0" if len(names) == 1 else None)
    assert execute(dsn, f"SELECT box::text, name FROM {inner} ORDER BY 1, 2") == before
    assert execute(dsn, "SELECT count(*) FROM boxes") == [(2,)]


@pytest_twisted.ensureDeferred
async def test_prevented_outermost_row_is_an_error(dsn: str) -> None:
    """A row of the call itself is prevented, after the rows that it refers to were written."""
    execute(dsn, TABLES.format(type="int", default=KEYS["int"], refers=FOREIGN_KEY))
    async with serving(dsn) as db:
        execute(dsn, UNSEEN.format("things"))
        rows = [{"name": name, "box": {"name": f"of {name}"}} for name in ("a", "gone")]
        refused = await failure_of(db.call("things.create", rows))
        assert isinstance(refused, NotChanged), refused
        assert len(await db.call("things.create", [rows[0], {**rows[1], "name": "b"}])) == 2
    assert execute(dsn, "SELECT name FROM things ORDER BY 1") == [("a",), ("b",)]


@pytest_twisted.ensureDeferred
async def test_passed_values_end_with_the_transaction(dsn: str) -> None:
    """The settings can be read in the same transaction only, not after its commit or rollback."""
    execute(dsn, TABLES.format(type="int", default=KEYS["int"], refers=FOREIGN_KEY))
    async with serving(dsn, most=1) as db:
        for end in ("handed", "nowhere"):
            calls = [{"call": "boxes.create", "args": [box("a")]}, {"call": "fn.handed"}]
            if end == "nowhere":
                await failure_of(db.call("transaction", [*calls, {"call": "boxes.get", "args": [-1]},
                    {"call": "boxes.create", "args": [{"id": {"$ref": "2.id"}}]}]))  # fmt: skip
            else:
                [made, inside] = await db.call("transaction", calls)
                assert str(made["id"]) in inside
            assert set(await db.call("fn.handed")) == {""}


@pytest_twisted.ensureDeferred
async def test_calls_of_one_transaction_pass_their_own_values(dsn: str) -> None:
    """Also after a call that was rolled back to a savepoint, which restores the earlier settings."""
    execute(dsn, TABLES.format(type="int", default=KEYS["int"], refers=FOREIGN_KEY))
    async with serving(dsn) as db, db.database.transaction():
        await db.call("boxes.create", box("a"))

        async def fails() -> None:
            async with db.database.transaction():
                await db.call("boxes.create", box("b"))
                await db.call("boxes.get", "wrong")

        before = await db.call("fn.handed")
        refused = await failure_of(fails())
        assert isinstance(refused, InvalidArgument), refused
        assert await db.call("fn.handed") == before
        await db.call("boxes.create", box("c"))
    assert execute(
        dsn, "SELECT b.name, t.name FROM things t JOIN boxes b ON b.id = t.box ORDER BY t.id"
    ) == [(name, f"in {name}") for name in "ac"]


@pytest_twisted.ensureDeferred
async def test_value_that_looks_like_an_internal_marker_is_refused_like_any_other(
    dsn: str,
) -> None:
    """Marks contain numbers of statements that the call does not have."""
    execute(dsn, TABLES.format(type="int", default=KEYS["int"], refers=FOREIGN_KEY))
    async with serving(dsn) as db:
        row = {"name": "a", "things": [{"id": "rowcast_left_out 99"}]}
        execute(dsn, "ALTER TABLE things ALTER id SET GENERATED BY DEFAULT")
        await db.catch_up()
        refused = await failure_of(db.call("boxes.create", row))
    assert isinstance(refused, InvalidArgument), refused
