"""
Live queries through a router: the rows, and then their changes, until the call is cancelled.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.types import CallOptions

from schema import changes
from service.app import Serving
from tests.conftest import execute
from tests.copies import Copy
from tests.deferreds import until
from tests.wamp.callers import KINDS, Caller
from tests.wamp.conftest import Join

SCHEMA = f"""
{changes.install()}
CREATE TABLE drivers (id int PRIMARY KEY, name text NOT NULL, score float8);
CREATE TABLE values (id int PRIMARY KEY, f float8, big bigint, b bytea, j json);
INSERT INTO values VALUES
    (1, 0.1, 9007199254740993, '\\x00', '{{"10": 1e30, "9": [1.0, "é"], "": null}}'),
    (2, 1e300, -9223372036854775808, '\\xfeff', '[1.5, {{"ab": false}}]'), (3, -0.0, 7, '', '"x"');
INSERT INTO drivers SELECT n, 'driver ' || n, n / 2.0 FROM generate_series(1, 5) n;
CREATE TABLE blobs (id int PRIMARY KEY, body text);
INSERT INTO blobs SELECT n, 'x' FROM generate_series(0, 4) n;
SELECT rowcast.track(t) FROM unnest('{{drivers,values,blobs}}'::regclass[]) t;
"""


class Watching:
    """A call of `watch`, with the copy that its messages maintain."""

    def __init__(
        self,
        caller: Caller,
        name: str,
        copy: Copy | None = None,
        **kwargs: Any,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.copy = Copy(since=copy)
        self.ended: list[Any] = []
        self.call = caller.call(
            f"rowcast.{name}.watch", **kwargs, options=CallOptions(on_progress=self.take)
        )
        self.call.addErrback(self.ended.append)

    def take(self, message: dict[str, Any]) -> None:
        """Apply a message to the copy."""
        self.messages.append(message)
        self.copy.take(message)


@pytest_twisted.ensureDeferred
async def test_watch_sends_rows_and_then_deltas(dsn: str, service: Serving, caller: Caller) -> None:
    """A snapshot is sent first, then a delta for each change, until the caller cancels."""
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
    await until(lambda: {key for key, _ in live.copy.rows} == {0, 1, 2})
    live.call.cancel()
    await until(lambda: not service.watches.stats()["watches"])
    assert service.watches.stats()["queries"] == 0
    execute(dsn, "DELETE FROM drivers WHERE id IN (0, 30); INSERT INTO drivers VALUES (3, 'x', 1)")


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_copy_behind_each_serializer_has_the_checksum(
    dsn: str, service: Serving, call_from: Join, how: str
) -> None:
    """However it represents numbers and binary, the checksum equals that of the service."""
    caller = await call_from(how)
    live = Watching(caller, "values", order=["-id"])
    await until(lambda: live.copy.complete)
    execute(dsn, "UPDATE values SET f = f / 3, big = big + 1, b = b || '\\xff' WHERE id > 1")
    await until(lambda: len(live.messages) > 1)
    live.call.cancel()
    again = Watching(caller, "values", copy=live.copy, order=["-id"], since=live.copy.position)
    await until(lambda: again.messages)
    assert again.messages[0]["checksum"] == live.copy.checksum()
    again.call.cancel()


@pytest_twisted.ensureDeferred
async def test_watches_of_a_caller_that_leaves_are_freed(service: Serving, call_from: Join) -> None:
    """Watches, queries, rows and sessions are freed, whether it leaves or loses its connection."""
    for end in ("leave", "abort"):
        caller = await call_from("rawsocket json")
        for n in range(5):
            Watching(caller, "drivers", where={"id": n})
        await until(lambda: service.watches.stats()["watches"] == 5)
        if end == "leave":
            await caller.close()
        else:
            caller._transport.transport.abortConnection()
        await until(lambda: not service.watches.stats()["watches"])
        assert service.watches.stats()["queries"] == service.watches.stats()["rows"] == 0
        assert not service.watches.open


@pytest_twisted.ensureDeferred
async def test_many_watches_leave_room_for_calls(service: Serving, caller: Caller) -> None:
    """A watch does not count towards the session's running calls after its first rows."""
    lives = [Watching(caller, "drivers", where={"id": n}) for n in range(100)]
    await until(lambda: all(each.copy.complete for each in lives))
    assert await caller.call("rowcast.drivers.count") == 5
    over = Watching(caller, "drivers")
    await until(lambda: over.ended)
    assert over.ended[0].value.error == "rowcast.error.unavailable"
    for each in lives:
        each.call.cancel()
    await until(lambda: not service.watches.stats()["watches"])


@pytest_twisted.ensureDeferred
async def test_own_transactions_are_sent_when_they_are_included(
    dsn: str, service: Serving, caller: Caller
) -> None:
    """They are sent with the delta that shows them, or alone if no row of the query has changed."""
    live = Watching(caller, "drivers", where={"id": {"lt": 100}}, tx=True)
    plain = Watching(caller, "drivers", where={"id": {"lt": 100}})
    await until(lambda: live.copy.complete and plain.copy.complete)
    shown = await caller.call("rowcast.drivers.create", {"id": 50, "name": "x"}, receipt=True)
    await until(lambda: any(m.get("covers") for m in live.messages))
    told = next(m for m in live.messages if m.get("covers"))
    assert told["covers"] == [shown.kwresults["tx"]]
    assert 50 in [key for key, _ in live.copy.rows]
    hidden = await caller.call("rowcast.drivers.create", {"id": 500, "name": "x"}, receipt=True)
    await until(lambda: live.messages[-1].get("covers") == [hidden.kwresults["tx"]])
    assert live.messages[-1]["type"] == "alive"
    assert not any("covers" in m for m in plain.messages)
    execute(dsn, "DELETE FROM drivers WHERE id >= 50")
    live.call.cancel()
    plain.call.cancel()


@pytest_twisted.ensureDeferred
async def test_caller_that_stops_reading_delays_no_other_and_catches_up(
    dsn: str, service: Serving, caller: Caller, call_from: Join
) -> None:
    """Its queue in the service is bounded; when it reads again, it receives the present rows."""
    slow = await call_from("rawsocket cbor")
    held, live = (Watching(each, "blobs", order=["id"]) for each in (slow, caller))
    await until(lambda: held.copy.complete and live.copy.complete)
    slow._transport.transport.pauseProducing()
    for n in range(60):
        execute(
            dsn, f"UPDATE blobs SET body = repeat('{n % 10}', 100000) || {n} WHERE id = {n % 5}"
        )
        wanted = f"{'01234567890'[n % 10] * 100000}{n}"
        await until(lambda wanted=wanted, n=n: live.copy.values[n % 5]["body"] == wanted)
    (session,) = [
        each for key, each in service.watches._sessions.items() if key == slow._session_id
    ]
    waiting = sum(len(row["body"]) for watch in session.members for row in watch.changed.values())
    assert waiting <= 5 * 100_010
    slow._transport.transport.resumeProducing()
    await until(lambda: held.copy.values == live.copy.values)
    assert len(held.messages) < len(live.messages)
    assert not held.ended
    for each in (held, live):
        each.call.cancel()
    await until(lambda: not service.watches.open)
