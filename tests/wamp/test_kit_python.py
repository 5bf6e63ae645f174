"""
The Python kit: live queries while connections and services fail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError, SerializationError
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue

from service.app import Serving
from service.changes import watchers
from tests.conftest import ROOT, Router, execute
from tests.deferreds import failure_of, pause, until
from tests.kits import kit
from tests.wamp import kit_client
from tests.wamp.kit_client import Client, same, say_goodbye

SCHEMA = kit_client.SCHEMA


@pytest.fixture(autouse=True)
def rows(dsn: str) -> None:
    """Restore the rows before each test."""
    execute(dsn, kit_client.RESET)


@pytest_twisted.async_yield_fixture
async def client(router: Router) -> AsyncIterator[Client]:
    client = Client(router)
    yield client
    await client.close()


@pytest_twisted.ensureDeferred
async def test_live_query_has_the_rows_of_find(dsn: str, service: Serving, client: Client) -> None:
    ordered = client.db.live("drivers", order=["-name"], limit=3)
    embedding = client.db.live("drivers", embed={"vehicles": {"order": ["id"]}}, select=["name"])
    grouped = client.db.live("vehicles", measures={"n": {"count": "*"}}, group=["driver_id"])
    assert [row["id"] for row in await ordered.ready()] == [5, 4, 3]
    calls: list[Any] = []
    ordered.subscribe(lambda rows, change: calls.append((rows, change)))
    assert calls == [(ordered.rows, None)]
    await embedding.ready()
    await grouped.ready()
    execute(
        dsn,
        "UPDATE drivers SET name = 'zoe' WHERE id = 1; DELETE FROM vehicles WHERE id = 4;"
        "INSERT INTO vehicles VALUES (9, 'B 9', 1), (10, 'B 10', NULL)",
    )
    await until(lambda: [row["id"] for row in ordered.rows] == [1, 5, 4])
    await until(lambda: len(calls) == 2)
    _, change = calls[1]
    assert [row["id"] for row in change.enter] == [1]
    assert [row["id"] for row in change.leave] == [3]
    await same(client.db, embedding)
    await until(lambda: {"driver_id": None, "n": 1} in grouped.rows)
    assert len(grouped.rows) == 5
    assert client.db.session is not None
    assert not any(live.mismatches for live in (ordered, embedding, grouped))
    ordered.close()
    await until(lambda: service.watches.stats()["watches"] == 2)


@pytest_twisted.ensureDeferred
async def test_live_query_resumes_after_its_connection_was_cut(
    dsn: str, service: Serving, client: Client
) -> None:
    live = client.db.live("drivers", order=["id"])
    await live.ready()
    for at in range(3):
        client.proxy.cut()
        execute(dsn, f"UPDATE drivers SET name = 'cut {at}' WHERE id = {at + 1}")
        execute(dsn, f"DELETE FROM drivers WHERE id = {5 - at} AND id > 3")
        await until(lambda at=at: any(row["name"] == f"cut {at}" for row in live.rows))
    await same(client.db, live)
    assert live.mismatches == 0
    await until(lambda: service.watches.stats()["watches"] == 1)


@pytest_twisted.ensureDeferred
async def test_live_query_resumes_after_a_goodbye_of_the_router(
    dsn: str, service: Serving, router: Router, client: Client
) -> None:
    live = client.db.live("drivers", order=["id"])
    await live.ready()
    await say_goodbye(router)
    execute(dsn, "UPDATE drivers SET name = 'after' WHERE id = 1")
    await until(lambda: live.rows[0]["name"] == "after")


@pytest_twisted.ensureDeferred
async def test_live_query_that_is_refused_says_why_and_ends(
    service: Serving, client: Client
) -> None:
    for name, query in (("drivers", {"where": {"no": 1}}), ("plain", {}), ("driver", {})):
        live = client.db.live(name, **query)
        error = await failure_of(live.ready().addTimeout(20, reactor))
        assert isinstance(error, ApplicationError)
        assert live.error is error
        assert not live.watching


@pytest_twisted.ensureDeferred
async def test_kits_that_share_a_session_change_together(
    dsn: str, service: Serving, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one of them receives the message that completes a step."""
    monkeypatch.setattr(watchers, "ALIVE", 3600.0)  # otherwise an alive message would arrive
    other = kit().Rowcast(client.component, prefix=client.db.uri("")[:-1])
    drivers = client.db.live("drivers", order=["id"])
    vehicles = other.live("vehicles", order=["id"])
    seen: list[tuple[str, str]] = []

    def look(*_: Any) -> None:
        if drivers.rows and vehicles.rows:
            seen.append((drivers.rows[0]["name"], vehicles.rows[0]["plate"]))

    drivers.subscribe(look)
    vehicles.subscribe(look)
    await drivers.ready()
    await vehicles.ready()

    async def follow(word: str) -> None:
        execute(
            dsn,
            f"BEGIN; UPDATE drivers SET name = '{word}'; UPDATE vehicles SET plate = '{word}'; COMMIT",
        )
        await until(lambda: seen[-1] == (word, word))

    await follow("both")
    client.proxy.cut()
    await until(lambda: client.db.session is None)
    await follow("again")
    # no state was shown with only one of the two changes
    assert {first == second or first.startswith("driver ") for first, second in seen} == {True}
    assert drivers.mismatches == vehicles.mismatches == 0
    drivers.close()
    execute(dsn, "UPDATE vehicles SET plate = 'alone'")
    await until(lambda: vehicles.rows[0]["plate"] == "alone")
    other.close()


@pytest_twisted.ensureDeferred
async def test_call_in_flight_ends_when_its_connection_is_cut(
    service: Serving, client: Client
) -> None:
    """With autobahn alone, the call might never end."""
    await client.db.call("drivers.count")
    running = client.db.call("fn.nap", seconds=20.0)
    await pause(0.2)
    client.proxy.cut()
    error = await failure_of(running)
    assert isinstance(error, ApplicationError)
    assert error.error == "rowcast.client.lost"
    assert await client.db.call("drivers.count") == 5  # in the next session


@pytest_twisted.ensureDeferred
async def test_call_without_an_answer_ends_in_time(service: Serving, client: Client) -> None:
    await client.db.call("drivers.count")
    client.proxy.stall()
    error = await failure_of(client.db.call("drivers.count", patience=0.3))
    assert isinstance(error, ApplicationError)
    assert error.error == "rowcast.client.timeout"
    client.proxy.flow()


@pytest_twisted.ensureDeferred
async def test_slow_reader_has_all_rows_in_the_end(
    dsn: str, service: Serving, client: Client
) -> None:
    """Missed changes arrive as fewer deltas, or as a reset."""
    live = client.db.live("drivers", order=["id"])
    await live.ready()
    client.proxy.stall()
    for at in range(20):
        execute(
            dsn,
            f"UPDATE drivers SET name = repeat('{at % 10}', 20000);"
            f" INSERT INTO drivers VALUES ({100 + at}, 'slow')",
        )
        await pause(0.06)
    client.proxy.flow()
    await until(lambda: len(live.rows) == 25)
    await same(client.db, live)
    assert live.mismatches == 0


@pytest_twisted.ensureDeferred
async def test_effect_of_a_write_is_shown_at_once_and_once(
    dsn: str, service: Serving, client: Client
) -> None:
    live = client.db.live("drivers", order=["id"])
    await live.ready()
    seen: list[list[str]] = []
    live.subscribe(lambda rows, _: seen.append([row["name"] for row in rows]))
    writing = live.update(1, {"name": "Eve"})
    assert live.rows[0]["name"] == "Eve"
    making = live.create({"id": 6, "name": "Joe"})
    leaving = live.delete(2)
    assert [row["name"] for row in live.rows] == [
        *("Eve", "driver 3", "driver 4", "driver 5", "Joe")
    ]
    assert (await writing)["name"] == "Eve"
    assert (await making)["id"] == 6
    await leaving
    await same(client.db, live)
    # from the first effect on, the row was never shown with its old values
    assert all(names[0] == "Eve" for names in seen[1:])


@pytest_twisted.ensureDeferred
async def test_effect_of_a_refused_write_is_removed(service: Serving, client: Client) -> None:
    live = client.db.live("drivers", order=["id"])
    before = await live.ready()
    writing = live.create({"id": 6, "name": None})
    assert len(live.rows) == 6
    error = await failure_of(writing)
    assert isinstance(error, ApplicationError)
    assert error.error == "rowcast.error.invalid_row"
    assert live.rows == before


@pytest_twisted.ensureDeferred
async def test_new_row_with_an_existing_key_is_shown_once(service: Serving, client: Client) -> None:
    """For example when the change by `create` arrives before its result."""
    live = client.db.live("drivers", order=["id"])
    before = await live.ready()
    writing = live.create({"id": 1, "name": "twice"})
    assert live.rows == before
    error = await failure_of(writing)
    assert isinstance(error, ApplicationError)
    assert error.error == "rowcast.error.unique_violation"


@pytest_twisted.ensureDeferred
async def test_connection_that_stalls_before_it_joins_is_given_up(
    service: Serving, router: Router
) -> None:
    """Autobahn alone waits for the router's WELCOME for ever."""
    client = Client(router, silence=1.0)
    stalled: list[Any] = []

    def stall(session: Any, transport: Any) -> None:
        if not stalled:
            stalled.append(session)
            client.proxy.stall()

    client.component.on("connect", stall)
    client.component.on("disconnect", lambda *_, **__: client.proxy.flow())
    live = client.db.live("drivers")
    assert await client.db.call("drivers.count", patience=10.0) == 5
    assert len(await live.ready()) == 5
    assert client.db.session is not stalled[0]
    await client.close()


@pytest_twisted.ensureDeferred
async def test_argument_that_cannot_be_sent_is_an_error_at_once(
    service: Serving, client: Client
) -> None:
    circular: dict[str, Any] = {}
    circular["id"] = circular
    live = client.db.live("drivers", order=["id"])
    before = await live.ready()
    for where in ({"id": object()}, circular):
        error = await failure_of(client.db.call("drivers.find", where=where))
        assert isinstance(error, SerializationError)
        wrong = client.db.live("drivers", where=where)
        assert wrong.error is await failure_of(wrong.ready().addTimeout(3, reactor))
        assert isinstance(wrong.error, SerializationError)
        assert isinstance(await failure_of(live.create(where)), SerializationError)
        assert isinstance(await failure_of(live.update(where, {"name": "x"})), SerializationError)
        assert isinstance(await failure_of(live.delete(where)), SerializationError)
    assert live.rows == before
    assert await client.db.call("drivers.count") == 5


@pytest_twisted.ensureDeferred
async def test_closed_kit_waits_for_nothing(service: Serving, client: Client) -> None:
    joined: list[Any] = []
    client.component.on("join", lambda session, _: joined.append(session))
    live = client.db.live("drivers")
    client.db.close()
    waiting = [live.ready(), client.db.live("drivers").ready(), client.db.call("drivers.count")]
    for each in waiting:
        error = await failure_of(each.addTimeout(3, reactor))
        assert isinstance(error, ApplicationError)
        assert error.error == "rowcast.client.lost"
    await until(lambda: joined)
    assert client.db.session is None


ASYNCIO = """
import asyncio, json, sys
from autobahn.asyncio.component import Component
from rowcast import Rowcast

async def main(url, prefix):
    transport = {"type": "websocket", "url": url, "serializers": ["json"],
                 "initial_retry_delay": 0.1, "max_retry_delay": 0.5}
    component = Component(transports=[transport], realm="realm1")
    db = Rowcast(component, prefix=prefix)
    running = component.start(asyncio.get_running_loop())
    live = db.live("drivers", order=["id"])
    first = await asyncio.wait_for(live.ready(), 20)
    turned = asyncio.Event()
    live.subscribe(lambda rows, change: rows[0]["name"] == "Eve" and turned.set())
    writing = live.update(1, {"name": "Eve"})
    shown = live.rows[0]["name"]
    await asyncio.wait_for(writing, 20)
    await asyncio.wait_for(turned.wait(), 20)
    db.session._transport.abort()
    await asyncio.wait_for(db.call("drivers.update", 2, {"name": "Joe"}), 20)
    while live.rows[1]["name"] != "Joe":
        await asyncio.sleep(0.02)
    print(json.dumps([len(first), shown, [row["name"] for row in live.rows], live.mismatches]))
    db.close()
    await component.stop()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_twisted.ensureDeferred
async def test_kit_works_with_asyncio_as_well(service: Serving, router: Router) -> None:
    environ = {"PYTHONPATH": str(ROOT / "clients" / "python"), "PATH": os.environ["PATH"]}
    out, err, status = await getProcessOutputAndValue(
        sys.executable, ["-c", ASYNCIO, router.websocket, router.prefix], env=environ
    )
    assert status == 0, err.decode()
    names = '["Eve", "Joe", "driver 3", "driver 4", "driver 5"]'
    assert out.decode().strip() == f'[5, "Eve", {names}, 0]', err.decode()
