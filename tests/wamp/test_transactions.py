"""Batches through a router: from each client, cancelled, and with a caller that leaves."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError

from tests.conftest import Router, execute
from tests.deferreds import failure_of, until
from tests.wamp.callers import KINDS, join
from tests.wamp.service import served

SCHEMA = """
CREATE TABLE kept (id int PRIMARY KEY, of int REFERENCES kept);
CREATE FUNCTION nap(seconds float) RETURNS text LANGUAGE sql AS 'SELECT pg_sleep($1)::text';
"""
NAPPING = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%nap%' AND state = 'active' AND pid <> "
IN_TRANSACTION = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> "


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_batch_of_each_client_has_the_same_results(
    how: str, dsn: str, router: Router
) -> None:
    """Results, references and the path of an error."""
    execute(dsn, "TRUNCATE kept")
    first = {"call": "kept.create", "args": [{"id": 1}]}
    second = {"call": "kept.create", "kwargs": {"values": {"id": 2, "of": {"$ref": "0.id"}}}}
    async with served(dsn, router):
        caller = await join(router, how)
        try:
            found = await caller.call("rowcast.transaction", [first, second])
            assert found == [{"id": 1, "of": None}, {"id": 2, "of": 1}]
            refused = await failure_of(caller.call("rowcast.transaction", [second, first]))
            assert isinstance(refused, ApplicationError)
            assert refused.error == "wamp.error.invalid_argument"
            assert refused.kwargs["operation"] == 0
            again = [{"call": "kept.count"}, {"call": "kept.create", "args": [{"id": 2}]}]
            refused = await failure_of(caller.call("rowcast.transaction", again))
            assert isinstance(refused, ApplicationError)
            assert refused.error == "rowcast.error.unique_violation"
            assert refused.kwargs["operation"] == 1
        finally:
            await caller.close()


@pytest.mark.parametrize("leaves", [False, True])
@pytest_twisted.ensureDeferred
async def test_batch_without_its_caller_is_rolled_back(
    dsn: str, router: Router, leaves: bool
) -> None:
    """Cancelled, or with a caller that has left: the statement is cancelled, and all is rolled back."""
    execute(dsn, "TRUNCATE kept")
    async with served(dsn, router):
        caller = await join(router, "rawsocket cbor")
        try:
            batch = caller.call(
                "rowcast.transaction",
                [
                    {"call": "kept.create", "args": [{"id": 1}]},
                    {"call": "fn.nap", "kwargs": {"seconds": 60.0}},
                ],
            )
            await until(lambda: execute(dsn, f"{NAPPING}pg_backend_pid()"))
            if leaves:
                batch.addErrback(lambda _: None)
                await caller.close()
            else:
                batch.cancel()
                assert isinstance(await failure_of(batch), CancelledError | ApplicationError)
            await until(lambda: not execute(dsn, f"{IN_TRANSACTION}pg_backend_pid()"))
        finally:
            await caller.close()
        assert execute(dsn, "SELECT count(*) FROM kept") == [(0,)]
