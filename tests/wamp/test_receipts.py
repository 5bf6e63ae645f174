"""Receipts through a router: the keyword `tx` beside the positional result."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.types import CallResult

from service.app import Serving
from tests.conftest import Router, execute
from tests.wamp.callers import KINDS
from tests.wamp.conftest import Join
from tests.wamp.service import served

SCHEMA = "CREATE TABLE notes (id serial PRIMARY KEY, note text)"


def committed(dsn: str, tx: str) -> bool:
    return bool(execute(dsn, f"SELECT pg_xact_status('{tx}'::xid8) = 'committed'")[0][0])


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_receipt_is_a_keyword_beside_the_result(
    dsn: str, service: Serving, call_from: Join, how: str
) -> None:
    caller = await call_from(how)
    found = await caller.call("rowcast.notes.create", {"note": "x"}, select=["note"], receipt=True)
    assert isinstance(found, CallResult)
    assert found.results == ({"note": "x"},)
    assert committed(dsn, found.kwresults["tx"])

    found = await caller.call("rowcast.notes.update", where={"id": 0}, changes={}, receipt=True)
    assert found.kwresults == {"tx": None}

    tx = (await caller.call("rowcast.transaction.begin"))["tx"]
    await caller.call(tx, "notes.create", [{"note": "x"}])
    found = await caller.call(f"{tx}.commit", receipt=True)
    assert found.results == (None,)
    assert committed(dsn, found.kwresults["tx"])


@pytest_twisted.ensureDeferred
async def test_receipt_of_a_forwarded_call_is_returned(
    dsn: str, router: Router, call_from: Join
) -> None:
    caller = await call_from()
    async with served(dsn, router, shared=True), served(dsn, router, shared=True):
        # Round robin: the second call reaches the service that does not have the upload.
        begun = await caller.call("rowcast.notes.import", [{"note": "x"}], done=False)
        found = await caller.call(
            "rowcast.notes.import", upload=begun["upload"], done=True, receipt=True
        )
        assert found.results == ({"rows": 1},)
        assert committed(dsn, found.kwresults["tx"])
