"""Tables with inheritance children: a key of such a table is not unique across all of its rows."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument, NoSuchProcedure, TooManyRows
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE animal (id int PRIMARY KEY, name text);
CREATE TABLE dog (breed text, PRIMARY KEY (id)) INHERITS (animal);
CREATE TABLE place (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE port (PRIMARY KEY (id)) INHERITS (place);
INSERT INTO place VALUES (77, 1);
INSERT INTO port VALUES (77, 2);
CREATE VIEW animals AS SELECT * FROM animal;
CREATE VIEW claimed AS SELECT * FROM animal;
COMMENT ON VIEW claimed IS '@key id';
"""
BEFORE_EACH = """
TRUNCATE animal;
INSERT INTO animal VALUES (1, 'one'), (77, 'parent');
INSERT INTO dog VALUES (77, 'child', 'x'), (78, 'last', 'y');
"""
EACH = ["one", "child", "last", "parent"]


@pytest.mark.parametrize("name", ["animal", "animals"])
@pytest.mark.parametrize("options", [{}, {"order": ["id"]}, {"order": ["-name"]}])
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest_twisted.ensureDeferred
async def test_pages_have_each_row_of_all_tables_once(
    db: DirectCaller, name: str, options: dict[str, Any], limit: int
) -> None:
    rows: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next": None}
    while not rows or page["next"]:
        after = {"after": page["next"]} if rows else {}
        page = await db.call(f"{name}.find", limit=limit, **options, **after)
        rows += page["rows"]
    assert sorted(row["name"] for row in rows) == sorted(EACH)


@pytest.mark.parametrize("name", ["animal", "claimed"])
@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([77, {"name": "z"}], {}),
        ([77, {"name": "z"}], {"returning": "both"}),
        ([], {"rows": [{"id": 77, "name": "z"}]}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_write_by_a_key_of_several_rows_is_refused(
    db: DirectCaller, dsn: str, name: str, args: list[Any], options: dict[str, Any]
) -> None:
    assert isinstance(await failure_of(db.call(f"{name}.update", *args, **options)), TooManyRows)
    assert execute(dsn, "SELECT * FROM animal WHERE name = 'z'") == []


@pytest.mark.parametrize(
    ("verb", "args"),
    [("update", [77, {"n": 3}]), ("delete", [77]), ("update", [{"id": 77}, {"n": 3}])],
)
@pytest.mark.parametrize("options", [{}, {"returning": False}, {"select": ["n"]}])
@pytest_twisted.ensureDeferred
async def test_write_by_a_key_of_several_small_rows_is_refused(
    db: DirectCaller, dsn: str, verb: str, args: list[Any], options: dict[str, Any]
) -> None:
    """If the key were unique, small rows would be written without a transaction."""
    refused = await failure_of(db.call(f"place.{verb}", *args, **options))
    assert isinstance(refused, TooManyRows)
    assert execute(dsn, "SELECT n FROM place ORDER BY 1") == [(1,), (2,)]


@pytest.mark.parametrize(
    "options", [{"limit": 1}, {"order": ["name"], "limit": 1, "skip_locked": True}]
)
@pytest_twisted.ensureDeferred
async def test_claim_by_a_key_that_is_not_unique_is_refused(
    db: DirectCaller, dsn: str, options: dict[str, Any]
) -> None:
    """Otherwise two rows would be written where one was named."""
    for name in ("animal", "animals", "claimed"):
        call = db.call(f"{name}.update", where={"id": 77}, changes={"name": "z"}, **options)
        refused = await failure_of(call)
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "limit"
        assert ("inherit" in refused.details.get("hint", "")) == (name == "animal")
    done = await db.call("dog.update", where={"id": 77}, changes={"name": "z"}, **options)
    assert done["affected"] == 1
    assert execute(dsn, "SELECT name FROM animal WHERE id = 77 ORDER BY 1") == [("parent",), ("z",)]


@pytest_twisted.ensureDeferred
async def test_view_with_repeated_keys_has_only_a_declared_key(db: DirectCaller, dsn: str) -> None:
    """The comment of a view can declare a key."""
    assert isinstance(await failure_of(db.call("animals.get", 1)), NoSuchProcedure)
    refused = await failure_of(db.call("animals.upsert", {"id": 1, "name": "z"}))
    assert isinstance(refused, InvalidArgument)
    assert await db.call("claimed.get", 1, select=["name"]) == {"name": "one"}
    assert execute(dsn, "SELECT * FROM animal WHERE name = 'z'") == []
