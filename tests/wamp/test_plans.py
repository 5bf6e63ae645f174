"""Query plans through a router, only if the setting allows them."""

from __future__ import annotations

import json
import shlex

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError

from tests.conftest import Router
from tests.test_docs import DOCS, code
from tests.wamp.callers import join
from tests.wamp.service import served
from tests.wamp.test_command import rowcast

CALL = {"call": "actions.watch", "kwargs": {"where": {"status": False}, "limit": 2}}


@pytest_twisted.ensureDeferred
async def test_plan_is_returned_if_the_setting_is_on(migrated: str, router: Router) -> None:
    async with served(migrated, router, explain=True):
        caller = await join(router, "websocket json")
        (plan,) = await caller.call("rowcast.explain", CALL)
        assert plan["Plan"]["Node Type"] == "Limit"
        document = await caller.call("rowcast.describe")
        assert document["procedures"]["explain"]["positional"] == ["operation"]
        await caller.close()
        (shown,) = [each for each in code(DOCS / "operations.md", "") if " explain " in each]
        output, errors, status = await rowcast(router, *shlex.split(shown)[1:])
        assert status == 0, errors
        assert "(seats = '8'::smallint)" in json.dumps(json.loads(output))


@pytest_twisted.ensureDeferred
async def test_explain_is_no_such_procedure_if_the_setting_is_off(
    migrated: str, router: Router
) -> None:
    async with served(migrated, router):
        caller = await join(router, "websocket json")
        with pytest.raises(ApplicationError) as caught:
            await caller.call("rowcast.explain", CALL)
        assert caught.value.error == "wamp.error.no_such_procedure"
        assert "ROWCAST_EXPLAIN" in caught.value.kwargs["hint"]
        assert "explain" not in (await caller.call("rowcast.describe"))["procedures"]
        await caller.close()
