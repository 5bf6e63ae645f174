"""
Live queries through a router: the rows, and then what is different in them, until it is ended.
"""

from __future__ import annotations

from typing import Any

import pytest_twisted
from autobahn.wamp.types import CallOptions

from schema import changes
from service.app import Serving
from tests.conftest import execute
from tests.deferreds import until
from tests.wamp.callers import Caller

SCHEMA = f"""
{changes.install()}
CREATE TABLE drivers (id int PRIMARY KEY, name text NOT NULL, score float8);
CREATE TABLE plain (id int PRIMARY KEY);
INSERT INTO drivers SELECT n, 'driver ' || n, n / 2.0 FROM generate_series(1, 5) n;
SELECT rowcast.track('drivers');
"""


class Watching:
    """A call of `watch`, and the rows that its messages give."""

    def __init__(self, caller: Caller, name: str, **kwargs: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.rows: dict[Any, Any] = {}
        self.call = caller.call(
            f"rowcast.{name}.watch", **kwargs, options=CallOptions(on_progress=self.take)
        )
        self.ended: list[Any] = []
        self.call.addErrback(self.ended.append)

    def take(self, message: dict[str, Any]) -> None:
        """Keep the rows."""
        self.messages.append(message)
        if message["type"] == "snapshot":
            self.rows |= {row["id"]: row for row in message["rows"]}
        elif message["type"] == "delta":
            self.rows |= {row["id"]: row for row in (*message["enter"], *message["update"])}
            for key in message["leave"]:
                del self.rows[key]


@pytest_twisted.ensureDeferred
async def test_watch_gives_rows_and_then_what_changes(
    dsn: str, service: Serving, caller: Caller
) -> None:
    """A snapshot comes first, then a delta for each change, until the caller cancels."""
    live = Watching(caller, "drivers", where={"id": {"lte": 3}}, select=["id", "name"])
    await until(lambda: live.messages)
    (first,) = live.messages
    assert first["key"] == ["id"]
    assert first["complete"] is True
    assert [row["name"] for row in first["rows"]] == ["driver 1", "driver 2", "driver 3"]
    execute(dsn, "UPDATE drivers SET name = 'Ann' WHERE id = 2")
    await until(lambda: len(live.messages) > 1)
    assert live.messages[1]["update"] == [{"id": 2, "name": "Ann"}]
    execute(
        dsn, "UPDATE drivers SET id = 30 WHERE id = 3; INSERT INTO drivers VALUES (0, 'Zoe', 1)"
    )
    await until(lambda: set(live.rows) == {0, 1, 2})
    live.call.cancel()
    await until(lambda: not service.watches.stats()["watches"])
    assert service.watches.stats()["queries"] == 0
    execute(dsn, "DELETE FROM drivers WHERE id IN (0, 30); INSERT INTO drivers VALUES (3, 'x', 1)")
