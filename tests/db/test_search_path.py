"""
Unqualified names in functions and triggers: the schema of the call is searched first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg2.extensions
import pytest
import pytest_twisted

from service.api.roles import Roles
from service.request.arguments import Caller
from tests.db.dispatchers import DirectCaller, serving

ODD = 'o"dd %s'

SCHEMA = """
CREATE SCHEMA shop;
CREATE SCHEMA "o""dd %s";
CREATE SCHEMA tools;
CREATE FUNCTION tools.shout(t text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper(t)';
SET check_function_bodies = off;
DO $$
DECLARE place text;
BEGIN
    FOREACH place IN ARRAY ARRAY['shop', 'o"dd %s'] LOOP
        EXECUTE format('SET LOCAL search_path = %I', place);
        CREATE TABLE goods (id int PRIMARY KEY, name text NOT NULL);
        EXECUTE format('INSERT INTO goods VALUES (1, %L)', 'of ' || place);
        CREATE TABLE sold (goods int);
        CREATE FUNCTION names() RETURNS SETOF text LANGUAGE plpgsql STABLE
            AS 'BEGIN RETURN QUERY SELECT name FROM goods; END';
        CREATE FUNCTION all_goods() RETURNS SETOF goods LANGUAGE plpgsql STABLE
            AS 'BEGIN RETURN QUERY SELECT * FROM goods; END';
        CREATE FUNCTION loud(goods) RETURNS text LANGUAGE plpgsql STABLE
            AS 'BEGIN RETURN shout((SELECT name FROM goods WHERE id = $1.id)); END';
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN INSERT INTO sold VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER noted AFTER INSERT ON goods FOR EACH ROW EXECUTE FUNCTION note();
    END LOOP;
END $$;
DO $$ BEGIN CREATE ROLE path_buyer; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
GRANT USAGE ON SCHEMA shop, "o""dd %s", tools TO path_buyer;
GRANT ALL ON ALL TABLES IN SCHEMA shop, "o""dd %s" TO path_buyer;
"""

PLACES = [("", "shop"), ("shop.", "shop"), ('o"dd%20%25s.', ODD)]


@pytest.fixture(scope="module")
def shop(dsn: str) -> str:
    """Create two schemas with the same names in them; return a DSN whose search_path has a third."""
    return psycopg2.extensions.make_dsn(dsn, options="-c search_path=tools")


@pytest_twisted.async_yield_fixture(params=[False, True], ids=["service", "role"])
async def db(shop: str, request: pytest.FixtureRequest) -> AsyncIterator[DirectCaller]:
    roles = Roles({"buyer": "path_buyer"}) if request.param else Roles()
    async with serving(shop, "shop", ODD, roles=roles) as callee:
        yield callee


BUYER = Caller(1, "ann", "buyer", "realm1")


@pytest.mark.parametrize(("prefix", "place"), PLACES)
@pytest_twisted.ensureDeferred
async def test_schema_of_a_call_is_searched_first(
    db: DirectCaller, prefix: str, place: str
) -> None:
    """In reads and writes; the search_path of the session follows."""
    name = f"of {place}"
    assert await db.call_as(BUYER, f"{prefix}fn.names") == [name]
    found = await db.call_as(BUYER, f"{prefix}fn.all_goods.find", select=["name", "loud"])
    assert found["rows"] == [{"name": name, "loud": name.upper()}]
    read = await db.call_as(BUYER, f"{prefix}goods.find", where={"loud": name.upper()})
    assert read["rows"] == [{"id": 1, "name": name}]
    before = await db.call_as(BUYER, f"{prefix}sold.count")
    await db.call_as(BUYER, f"{prefix}goods.create", {"id": 2, "name": "new"})
    await db.call_as(BUYER, f"{prefix}goods.delete", 2)
    assert await db.call_as(BUYER, f"{prefix}sold.count") == before + 1


@pytest_twisted.ensureDeferred
async def test_search_path_is_restored_after_a_call_of_another_schema(db: DirectCaller) -> None:
    """Calls of several schemas alternate in the same session."""
    for prefix, place in PLACES * 3:
        assert await db.call_as(BUYER, f"{prefix}fn.names") == [f"of {place}"]


@pytest_twisted.ensureDeferred
async def test_operations_of_one_transaction_search_their_own_schema_first(
    db: DirectCaller,
) -> None:
    """In any order, and after a savepoint was rolled back."""

    async def fails() -> None:
        async with db.database.transaction():
            await db.call_as(BUYER, 'o"dd%20%25s.fn.names')
            raise Boom

    async with db.database.transaction():
        for prefix, place in PLACES * 2:
            assert await db.call_as(BUYER, f"{prefix}fn.names") == [f"of {place}"]
            with pytest.raises(Boom):
                await fails()
            assert await db.call_as(BUYER, f"{prefix}fn.names") == [f"of {place}"]


class Boom(Exception):
    """Raised on purpose."""
