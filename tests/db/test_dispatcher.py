"""
The dispatcher: registered verbs, steps inside and outside of transactions, cached routes.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api import call as calls
from service.api.call import Call, Step
from service.db.connection import PgConnection
from service.describe.document import describe
from service.describe.json_schema import record, reference
from service.describe.verb import Verb
from service.errors import NoSuchProcedure, NotFound, StatementTimeout
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO items VALUES (1, 'one'), (2, 'two');
"""


def sleep_txn(connection: PgConnection, seconds: float) -> str:
    """Sleep in the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
    return "slept"


def doze(call: Call) -> Step:
    """Prepare `doze`."""
    return Step(sleep_txn, tuple(call.args), lambda found: [call.relation.name, found])


DOZE = Verb(
    "doze",
    handler=doze,
    arguments=record({"seconds": reference("seconds")}),
    result={"type": "array"},
    errors=(StatementTimeout,),
    positional=("seconds",),
)


@pytest_twisted.ensureDeferred
async def test_verb_that_is_registered_is_served_and_described(db: DirectCaller) -> None:
    """A row of the table of verbs is all that a verb needs."""
    db.dispatcher.register(DOZE)
    try:
        assert await db.dispatcher.answer("items.doze", [0.01], {}, ANYONE) == ["items", "slept"]
        document = describe(db.dispatcher.served.catalog, "rowcast", "0", db.dispatcher.verbs, {})
    finally:
        del db.dispatcher.verbs["doze"]
        db.dispatcher.served_to(ANYONE).routes.clear()
    assert document["verbs"]["doze"]["positional"] == ["seconds"]
    described = document["relations"]["items"]["verbs"]["doze"]
    assert described["result"] == reference("result.doze")
    assert document["$defs"]["result.doze"] == {"type": "array"}


@pytest_twisted.ensureDeferred
async def test_calls_in_a_transaction_see_each_other_and_end_with_it(db: DirectCaller) -> None:
    """A call runs in the transaction in which it is made."""

    async def several() -> None:
        async with db.database.transaction():
            await db.call("items.create", {"id": 3, "name": "three"})
            assert (await db.call("items.update", 3, {"name": "drei"}))["name"] == "drei"
            assert await db.call("items.count") == 3
            await db.call("items.get", 4)

    with pytest.raises(NotFound):
        await several()
    assert await db.call("items.count") == 2


@pytest_twisted.ensureDeferred
async def test_cached_routes_are_bounded(db: DirectCaller, monkeypatch: Any) -> None:
    """A name can be spelled in many ways, and each is cached as a route."""
    monkeypatch.setattr(calls, "MAX_ROUTES", 3)
    db.dispatcher.served_to(ANYONE).routes.clear()
    for name in ("items.get", "item%73.get", "ite%6Ds.get", "it%65ms.get"):
        assert (await db.call(name, 1))["name"] == "one"
        assert 1 <= len(db.dispatcher.served_to(ANYONE).routes) <= 3


@pytest_twisted.ensureDeferred
async def test_verb_that_is_not_registered_is_not_served(db: DirectCaller) -> None:
    """A service without live queries has no `watch`."""
    for name in ("items.watch", "fn.nothing.watch"):
        assert isinstance(await failure_of(db.call(name)), NoSuchProcedure)
