"""The Python kit while the only service restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from random import Random
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from tests.conftest import Router, execute
from tests.deferreds import pause, until
from tests.node import install
from tests.wamp import kit_client
from tests.wamp.callers import join
from tests.wamp.kit_client import Client, same
from tests.wamp.service import served
from tests.wamp.test_kit_javascript import Wired

SCHEMA = kit_client.SCHEMA


@pytest_twisted.async_yield_fixture
async def client(router: Router, dsn: str) -> AsyncIterator[Client]:
    """Join before any service has joined."""
    execute(dsn, kit_client.RESET)
    client = Client(router)
    yield client
    await client.close()


@pytest_twisted.ensureDeferred
async def test_live_query_waits_for_a_service_and_resumes_at_the_next(
    dsn: str, router: Router, client: Client
) -> None:
    """A stopping service ends the watch; until the next one joins, the procedure does not exist."""
    live = client.db.live("drivers", order=["id"])
    await pause(0.3)
    assert live.error is None
    async with served(dsn, router):
        await live.ready()
        execute(dsn, "UPDATE drivers SET name = 'first' WHERE id = 1")
        await until(lambda: live.rows[0]["name"] == "first")
    execute(dsn, "UPDATE drivers SET name = 'between' WHERE id = 1")
    async with served(dsn, router):
        await until(lambda: live.rows[0]["name"] == "between")
        execute(dsn, "UPDATE drivers SET name = 'second' WHERE id = 1")
        await until(lambda: live.rows[0]["name"] == "second")
        await same(client.db, live)
    assert (live.error, live.mismatches) == (None, 0)


QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("drivers", {}),
    ("drivers", {"order": ["-name", "id"]}),
    ("drivers", {"where": {"name": {"like": "%1%"}}, "select": ["name"]}),
    ("drivers", {"order": ["name", "id"], "limit": 3}),
    ("drivers", {"embed": {"vehicles": {"order": ["id"]}}, "order": ["id"]}),
    ("vehicles", {"measures": {"n": {"count": "*"}}, "group": ["driver_id"]}),
    ("vehicles", {"select": ["driver_id"], "distinct": True, "order": ["driver_id"]}),
]
SECONDS = 12.0


def write(dsn: str, random: Random) -> None:
    """Change some rows, in one transaction."""
    one, other, name = random.randint(1, 12), random.randint(1, 20), f"'{random.randint(0, 99)}'"
    execute(
        dsn,
        random.choice(
            [
                f"INSERT INTO drivers VALUES ({one}, {name}) ON CONFLICT DO NOTHING",
                f"UPDATE drivers SET name = {name} WHERE id = {one}",
                f"UPDATE drivers SET name = name || {name} WHERE id % 3 = {one % 3}",
                f"DELETE FROM drivers WHERE id = {one}",
                f"INSERT INTO vehicles SELECT {other}, {name}, max(id) FROM drivers"
                " ON CONFLICT (id) DO UPDATE SET driver_id = excluded.driver_id",
                f"UPDATE vehicles SET driver_id = NULL WHERE id = {other}",
                f"DELETE FROM vehicles WHERE id = {other};"
                f" UPDATE drivers SET name = {name} WHERE id = {one}",
            ]
        ),
    )


@pytest_twisted.ensureDeferred
async def test_copies_after_random_failures_equal_the_rows(
    dsn: str, router: Router, client: Client
) -> None:
    """Random writes, disconnections and restarts; each state is compared by its checksum."""
    random = Random(7)
    lives = [client.db.live(name, **query) for name, query in QUERIES]
    changes = 0
    for live in lives:

        def heard(rows: Any, change: Any) -> None:
            nonlocal changes
            changes += change is not None

        live.subscribe(heard)
    clock = reactor.seconds
    end = clock() + SECONDS
    cuts = restarts = 0
    while clock() < end or changes <= 100 or cuts <= 2:  # a busy machine makes fewer in that time
        async with served(dsn, router):
            restarts += 1
            until_then = clock() + random.uniform(2.0, 4.0)
            while clock() < until_then:
                write(dsn, random)
                if random.random() < 0.03:
                    client.proxy.cut()
                    cuts += 1
                await pause(random.choice([0, 0, 0.01, 0.05]))
        write(dsn, random)
    async with served(dsn, router):
        for live in lives:
            await live.ready()
            if "measures" in live.query:
                continue
            await same(client.db, live)
        groups = await client.db.call("vehicles.aggregate", **QUERIES[5][1])
        await until(lambda: sorted(map(str, lives[5].rows)) == sorted(map(str, groups)))
    assert [(live.error, live.mismatches) for live in lives] == [(None, 0)] * len(lives)
    assert restarts > 1


def changes_in(lines: Iterable[Mapping[str, Any]]) -> int:
    """Return how many lines of the program are about a change."""
    return sum(bool(line.get("change")) for line in lines)


@pytest_twisted.ensureDeferred
async def test_copies_in_javascript_after_random_failures_equal_the_rows(
    dsn: str, router: Router
) -> None:
    """The last state that Node prints equals the rows at the end."""
    await install()
    execute(dsn, kit_client.RESET)
    wired, random = Wired(router), Random(11)
    node = wired.program
    for at, (name, query) in enumerate(QUERIES):
        node.tell(id=f"{at}", live=name, query=query)
    clock = reactor.seconds
    end = clock() + SECONDS
    while clock() < end or changes_in(node.lines) <= 100:  # a busy machine makes fewer in that time
        async with served(dsn, router):
            until_then = clock() + random.uniform(2.0, 4.0)
            while clock() < until_then:
                write(dsn, random)
                if random.random() < 0.03:
                    wired.proxy.cut()
                await pause(random.choice([0, 0, 0.01, 0.05]))
        write(dsn, random)
    async with served(dsn, router):
        caller = await join(router, "service cbor")

        async def found(at: int) -> bool:
            name, query = QUERIES[at]
            if "measures" in query:
                rows = await caller.call(f"rowcast.{name}.aggregate", **query)
            else:
                rows = (await caller.call(f"rowcast.{name}.find", **query))["rows"]
            shown = node.rows(f"{at}")
            return bool(shown == rows or sorted(map(str, shown)) == sorted(map(str, rows)))

        for at in range(len(QUERIES)):
            for _ in range(600):
                if await found(at):
                    break
                await pause(0.05)
            assert await found(at), QUERIES[at]
        await caller.close()
    assert {line["mismatches"] for line in node.lines if "mismatches" in line} == {0}
    await wired.close()
