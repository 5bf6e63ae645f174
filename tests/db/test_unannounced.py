"""
Changes of the database that nobody tells the service of: whoever calls for them finds them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from service.answer import catalogs
from service.answer.roles import Roles
from service.errors import InvalidRow, NoSuchProcedure, NotAuthorized, UnknownName
from tests.conftest import execute
from tests.db.hubs import ANYONE, Callee, serving
from tests.db.rooms import failure_of, until

SCHEMA = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TYPE size AS ENUM ('s', 'm');
CREATE TABLE hats (id int PRIMARY KEY, size size, label varchar(3), maker text NOT NULL);
INSERT INTO hats VALUES (1, 's', 'one', 'Ann');
"""


@pytest.fixture(autouse=True)
def schema(dsn: str) -> None:
    """Make the relations anew."""
    execute(dsn, SCHEMA)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the catalog be read as often as callers like."""
    monkeypatch.setattr(catalogs, "STALE", 0.0)
    monkeypatch.setattr(catalogs, "SHARE", 0.0)


@pytest_twisted.async_yield_fixture
async def db(dsn: str, schema: None) -> AsyncIterator[Callee]:
    """Serve them."""
    async with serving(dsn) as callee:
        yield callee


HAT = {"id": 1, "size": "s", "label": "one", "maker": "Ann"}
FOUND: list[tuple[str, str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("CREATE TABLE pins (id int)", "pins.count", (), {}, 0),
    ("CREATE TABLE pins (id int)", "pins.import", ([{"id": 1}],), {}, {"rows": 1}),
    ("ALTER TABLE hats RENAME TO caps", "caps.get", (1,), {}, HAT),
    (
        "ALTER TABLE hats ADD worn int DEFAULT 3",
        "hats.get",
        (1,),
        {"select": ["worn"]},
        {"worn": 3},
    ),
    (
        "CREATE TABLE pins (id int, hat int REFERENCES hats)",
        "hats.get",
        (1,),
        {"select": ["id"], "embed": {"pins": True}},
        {"id": 1, "pins": []},
    ),
    ("CREATE FUNCTION two() RETURNS int RETURN 2", "fn.two", (), {}, 2),
]


@pytest.mark.parametrize(("change", "name", "args", "kwargs", "answer"), FOUND)
@pytest_twisted.ensureDeferred
async def test_new_names(
    often: None,
    db: Callee,
    dsn: str,
    change: str,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    answer: Any,
) -> None:
    """What is new is there for the first call that names it."""
    execute(dsn, change)
    assert await db.hub.answer(name, args, kwargs, ANYONE) == answer


@pytest_twisted.ensureDeferred
async def test_an_upload_is_refused_once(often: None, db: Callee) -> None:
    """A call of an upload is not made twice: its refusal has ended the upload."""
    upload = await db.call("hats.import", done=False)
    assert isinstance(await failure_of(db.call("hats.import", [{"x": 1}], **upload)), UnknownName)


TAKEN = [
    ("ALTER TYPE size ADD VALUE 'l'", {"size": "l"}),
    ("ALTER TABLE hats ALTER label TYPE varchar(9)", {"label": "longer"}),
    ("ALTER TABLE hats ALTER maker DROP NOT NULL", {"maker": None}),
]


@pytest.mark.parametrize(("change", "changes"), TAKEN)
@pytest_twisted.ensureDeferred
async def test_looser_columns(
    often: None, db: Callee, dsn: str, change: str, changes: dict[str, Any]
) -> None:
    """A column that takes more than it did is found out by the first row that it is said not to."""
    version = db.hub.served.catalog.version
    execute(dsn, change)
    assert isinstance(await failure_of(db.call("hats.update", 1, changes)), InvalidRow)
    await until(lambda: db.hub.served.catalog.version > version)
    assert await db.call("hats.update", 1, changes) == {**HAT, **changes}


@pytest_twisted.ensureDeferred
async def test_rights_that_went(often: None, dsn: str) -> None:
    """What a role may read no longer is not there for it, once it has been refused."""
    execute(dsn, "DROP ROLE IF EXISTS hatter; CREATE ROLE hatter")
    execute(dsn, "GRANT USAGE ON SCHEMA public TO hatter; GRANT SELECT ON hats TO hatter")
    async with serving(dsn, roles=Roles({}, "hatter")) as db:
        assert await db.call("hats.get", 1) == HAT
        execute(dsn, "REVOKE SELECT ON hats FROM hatter; GRANT SELECT (id, size) ON hats TO hatter")
        version = db.hub.served.catalog.version
        assert isinstance(await failure_of(db.call("hats.get", 1)), NotAuthorized)
        await until(lambda: db.hub.served.catalog.version > version)
        assert await db.call("hats.get", 1) == {"id": 1, "size": "s"}
    execute(dsn, "DROP OWNED BY hatter; DROP ROLE hatter")


@pytest_twisted.ensureDeferred
async def test_soon_again(db: Callee, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who calls too soon after a reading is refused, and has the next one made in time."""
    monkeypatch.setattr(catalogs, "STALE", 0.2)
    monkeypatch.setattr(catalogs, "SHARE", 0.0)
    db.catalogs.reload()
    version = db.hub.served.catalog.version
    await until(lambda: db.hub.served.catalog.version > version)
    execute(dsn, "CREATE TABLE pins (id int)")
    for _ in range(3):
        assert isinstance(await failure_of(db.call("pins.count")), NoSuchProcedure)
    await until(lambda: db.hub.served.catalog.version > version + 1)
    assert await db.call("pins.count") == 0
    assert db.hub.served.catalog.version == version + 2
