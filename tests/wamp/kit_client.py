"""
A client with the Python kit, behind a proxy that can cut its connection.
"""

from __future__ import annotations

from typing import Any

import txaio
from autobahn.twisted.component import Component
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint

from schema import changes
from tests.conftest import Router
from tests.deferreds import pause
from tests.faults.proxy import Proxy
from tests.kits import kit
from tests.wamp.callers import join

SCHEMA = f"""
{changes.install()}
CREATE TABLE drivers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE vehicles (id int PRIMARY KEY, plate text, driver_id int REFERENCES drivers ON DELETE CASCADE);
CREATE TABLE plain (n int);
CREATE FUNCTION nap(seconds float) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(seconds)';
SELECT rowcast.track('drivers'), rowcast.track('vehicles');
"""
RESET = """
TRUNCATE drivers, vehicles;
INSERT INTO drivers SELECT n, 'driver ' || n FROM generate_series(1, 5) n;
INSERT INTO vehicles SELECT n, 'B ' || n, 1 + n % 5 FROM generate_series(1, 8) n
"""


class Client:
    """
    A client behind a proxy that can cut its connection.

    Args:
        router: The router.
        options: Options of the kit.
    """

    def __init__(self, router: Router, **options: Any) -> None:
        txaio.use_twisted()
        self.proxy = Proxy(lambda: TCP4ClientEndpoint(reactor, "127.0.0.1", router.port))
        transport = {
            "type": "websocket",
            "url": f"ws://127.0.0.1:{self.proxy.port}/ws",
            "serializers": ["json"],
            "max_retries": -1,
            "initial_retry_delay": 0.1,
            "max_retry_delay": 0.5,
        }
        self.component = Component(transports=[transport], realm=router.realm)
        self.db = kit().Rowcast(self.component, prefix=router.prefix, **options)
        self.ended = self.component.start(reactor)
        self.ended.addErrback(lambda _: None)

    async def close(self) -> None:
        """Leave."""
        self.db.close()
        await self.component.stop()
        await self.proxy.close()


async def say_goodbye(router: Router) -> None:
    """Let the router end the session of each client, as it does when it stops."""
    operator = await join(router, "service cbor")
    reason = "wamp.close.system_shutdown"
    await operator.call("wamp.session.kill_by_authrole", "anonymous", reason=reason)
    await operator.close()


async def same(db: Any, live: Any) -> None:
    """Wait until the rows of a live query equal the result of `find`."""

    async def found() -> bool:
        page = await db.call(f"{live.name}.find", **live.query)
        if live.query.get("order"):
            return bool(page["rows"] == live.rows)
        return bool(sorted(map(str, page["rows"])) == sorted(map(str, live.rows)))

    for _ in range(200):
        if await found():
            return
        await pause(0.05)
    raise AssertionError("the copy stays behind")
