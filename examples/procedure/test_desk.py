"""The desk, tested: a real database, and no router."""

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor

from service.testing import postgres, serving


@pytest.fixture(scope="session")
def server():
    with postgres() as dsn:
        yield dsn


@pytest_twisted.ensureDeferred
async def test_driver_has_two_vehicles_at_most(server):
    async with serving(reactor, server, "desk") as service:
        session = service.join()
        ada = await session.call("rowcast.drivers.create", {"name": "Ada"})
        rows = [{"plate": f"b-rc {n}", "model": "van"} for n in (1, 2, 3)]
        first, second, third = await session.call("rowcast.vehicles.create", rows)
        assert first["plate"] == "B-RC 1"
        for each in (first, second):
            given = await session.call("rowcast.vehicles.hand_over", each["id"], ada["id"])
            assert given["driver_id"] == ada["id"]
        with pytest.raises(ApplicationError, match="Ada has 2 vehicles already") as caught:
            await session.call("rowcast.vehicles.hand_over", third["id"], driver=ada["id"])
        assert caught.value.error == "wamp.error.invalid_argument"
