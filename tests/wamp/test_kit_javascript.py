"""
The JavaScript kit in Node: with generated messages, and with a running service.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from random import Random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import ProcessProtocol

from service.app import Serving
from service.changes import watchers
from tests.amounts import amount
from tests.conftest import Router, execute
from tests.deferreds import pause, until
from tests.faults.proxy import Proxy
from tests.kits import FORMS, JAVASCRIPT, kit, steps, steps_of_other_keys
from tests.node import NODE, install, program
from tests.wamp import kit_client

SCHEMA = kit_client.SCHEMA
SEEDS = amount(10, 40)
MOST = 6000
"""Maximum size of the gzipped kit in bytes, without autobahn."""


def test_copy_is_the_state_after_each_step() -> None:
    """As for the Python kit; it also verifies the checksums of all kinds of values."""
    told, wanted = [], []
    queries = [
        (query, partial(steps, name, many=8), form.ordered) for name, (form, query) in FORMS.items()
    ]
    for query, made, ordered in [*queries, ({}, steps_of_other_keys, False)]:
        for seed in range(SEEDS):
            found = list(made(random=Random(seed)))
            told.append({"query": query, "steps": [step.messages for step in found]})
            wanted.append((ordered, [step.rows for step in found]))
    done = subprocess.run(
        [program(), str(NODE / "copies.js"), str(JAVASCRIPT)],
        input="\n".join(map(json.dumps, told)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, (ordered, states), each in zip(
        done.stdout.rstrip("\n").split("\n"), wanted, told, strict=True
    ):
        for (rows, position), state, messages in zip(
            json.loads(line), states, each["steps"], strict=True
        ):
            expected = list(map(kit().canonical, state))
            assert (rows == expected) if ordered else (sorted(rows) == sorted(expected))
            assert position == messages[-1]["position"]


def test_kit_is_small() -> None:
    """The limit includes comments."""
    assert len(gzip.compress(JAVASCRIPT.read_bytes(), 9)) <= MOST


def test_kit_imports_nothing() -> None:
    assert not re.search(r"^import|import\(|require\(", JAVASCRIPT.read_text("utf-8"), re.M)


class Program(ProcessProtocol):
    """A Node process with the kit: it receives commands as lines, and its output is recorded."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.errors = b""
        self.ended: Deferred[int] = Deferred()
        self._rest = b""

    def outReceived(self, data: bytes) -> None:
        """Read the lines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += map(json.loads, lines)

    def errReceived(self, data: bytes) -> None:
        """Collect error output."""
        self.errors += data

    def processEnded(self, reason: Any) -> None:
        """Tell the test."""
        self.ended.callback(reason.value.exitCode)

    def tell(self, **command: Any) -> None:
        """Send a command."""
        assert self.transport is not None
        self.transport.write(json.dumps(command).encode() + b"\n")

    def rows(self, id: str) -> list[Any]:
        """Return the newest rows of a live query."""
        found = [line["rows"] for line in self.lines if line.get("id") == id and "rows" in line]
        return found[-1] if found else []

    def of(self, id: str) -> list[dict[str, Any]]:
        """Return the output of a command."""
        return [line for line in self.lines if line.get("id") == id]


class Wired:
    """
    The program behind a proxy that can cut its connection.

    Args:
        router: The router.
        serializer: Serializer of the sessions.
        silence: The kit's option `silence`, in seconds.
    """

    def __init__(self, router: Router, serializer: str = "json", silence: float = 40) -> None:
        self.proxy = Proxy(lambda: TCP4ClientEndpoint(reactor, "127.0.0.1", router.port))
        url = f"ws://127.0.0.1:{self.proxy.port}/ws"
        script = [str(NODE / "kit.js"), str(JAVASCRIPT), url, router.realm, router.prefix]
        self.program = Program()
        reactor.spawnProcess(
            self.program,
            program(),
            [program(), *script, serializer, str(silence)],
            env=dict(os.environ),
        )

    async def close(self) -> None:
        """Close the kit, after which the process ends without being killed."""
        self.program.tell(close="all")
        self.program.transport.closeStdin()
        assert await self.program.ended == 0, self.program.errors.decode()
        await self.proxy.close()


@pytest_twisted.async_yield_fixture
async def wired(request: pytest.FixtureRequest, router: Router, dsn: str) -> AsyncIterator[Wired]:
    await install()
    execute(dsn, kit_client.RESET)
    wired = Wired(router, getattr(request, "param", "json"))
    yield wired
    await wired.close()


def names(rows: list[Any]) -> list[str]:
    return [row["name"] for row in rows]


@pytest.mark.parametrize("wired", ["json", "cbor", "msgpack"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_live_query_is_updated_and_resumes_after_cuts(
    dsn: str, service: Serving, wired: Wired
) -> None:
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["-id"], "limit": 3})
    node.tell(id="in", live="drivers", query={"embed": {"vehicles": {"order": ["id"]}}})
    await until(lambda: names(node.rows("all")) == ["driver 5", "driver 4", "driver 3"])
    execute(
        dsn, "UPDATE drivers SET name = 'Eve' WHERE id = 4; INSERT INTO drivers VALUES (6, 'f')"
    )
    await until(lambda: names(node.rows("all")) == ["f", "driver 5", "Eve"])
    last = node.of("all")[-1]
    assert (names(last["change"]["enter"]), names(last["change"]["leave"])) == (["f"], ["driver 3"])
    for at in range(3):
        wired.proxy.cut()
        execute(dsn, f"UPDATE drivers SET name = 'cut {at}' WHERE id = 6")
        await until(lambda at=at: names(node.rows("all"))[0] == f"cut {at}")
    await until(lambda: len(node.rows("in")) == 6)
    execute(dsn, "UPDATE vehicles SET plate = 'moved', driver_id = 6 WHERE id = 1")
    await until(lambda: "moved" in str(next(r for r in node.rows("in") if r["id"] == 6)))
    assert {line["mismatches"] for line in node.lines if "mismatches" in line} == {0}
    node.tell(close="in")
    await until(lambda: service.watches.stats()["watches"] == 1)


@pytest_twisted.ensureDeferred
async def test_kits_in_one_process_do_not_wait_for_each_other(
    dsn: str, service: Serving, wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query has its own session, and so its own steps."""
    monkeypatch.setattr(watchers, "ALIVE", 3600.0)  # otherwise an alive message would arrive
    node = wired.program
    node.tell(id="one", live="drivers", query={"order": ["id"]})
    node.tell(id="other", kit=1, live="vehicles", query={"order": ["id"]})
    await until(lambda: node.rows("one") and node.rows("other"))
    for word in ("both", "again"):
        execute(
            dsn,
            f"BEGIN; UPDATE drivers SET name = '{word}'; UPDATE vehicles SET plate = '{word}'; COMMIT",
        )
        await until(lambda word=word: node.rows("one")[0]["name"] == word)
        await until(lambda word=word: node.rows("other")[0]["plate"] == word)
        wired.proxy.cut()
    node.tell(close="one")
    execute(dsn, "UPDATE vehicles SET plate = 'alone'")
    await until(lambda: node.rows("other")[0]["plate"] == "alone")


@pytest_twisted.ensureDeferred
async def test_live_query_resumes_after_a_goodbye_of_the_router(
    dsn: str, service: Serving, router: Router, wired: Wired
) -> None:
    """After a GOODBYE, autobahn does not reconnect on its own."""
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    await until(lambda: len(node.rows("all")) == 5)
    await kit_client.say_goodbye(router)
    execute(dsn, "UPDATE drivers SET name = 'after' WHERE id = 1")
    await until(lambda: names(node.rows("all"))[0] == "after")


@pytest_twisted.ensureDeferred
async def test_slow_reader_has_all_rows_in_the_end(
    dsn: str, service: Serving, wired: Wired
) -> None:
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    await until(lambda: len(node.rows("all")) == 5)
    wired.proxy.stall()
    for at in range(20):
        execute(
            dsn,
            f"UPDATE drivers SET name = repeat('{at % 10}', 20000);"
            f" INSERT INTO drivers VALUES ({100 + at}, 'slow')",
        )
        await pause(0.06)
    wired.proxy.flow()
    last = execute(dsn, "SELECT array_agg(name ORDER BY id) FROM drivers")[0][0]
    await until(lambda: names(node.rows("all")) == last)
    assert {line["mismatches"] for line in node.lines if "mismatches" in line} == {0}


@pytest_twisted.ensureDeferred
async def test_calls_end_by_themselves(dsn: str, service: Serving, wired: Wired) -> None:
    """After a cut, autobahn never settles a running call."""
    node = wired.program
    node.tell(id="first", call="drivers.count")
    await until(lambda: node.of("first") == [{"id": "first", "answer": 5}])
    node.tell(id="nap", call="fn.nap", kwargs={"seconds": 20})
    node.tell(id="late", call="fn.nap", kwargs={"seconds": 20}, seconds=0.2)
    await until(lambda: node.of("late") == [{"id": "late", "error": "rowcast.client.timeout"}])
    wired.proxy.cut()
    await until(lambda: node.of("nap") == [{"id": "nap", "error": "rowcast.client.lost"}])
    node.tell(id="next", call="drivers.count")
    await until(lambda: node.of("next") == [{"id": "next", "answer": 5}])


@pytest_twisted.ensureDeferred
async def test_effect_of_a_write_is_shown_at_once_and_once(
    dsn: str, service: Serving, wired: Wired
) -> None:
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    await until(lambda: len(node.rows("all")) == 5)
    node.tell(id="w", write=["all", "update"], args=[1, {"name": "Eve"}])
    await until(lambda: node.of("w"))
    assert node.of("w")[0]["answer"]["name"] == "Eve"
    node.tell(id="x", write=["all", "create"], args=[{"id": 1, "name": "twice"}])
    node.tell(id="y", write=["all", "create"], args=[{"id": 6, "name": None}])
    await until(lambda: node.of("x") and node.of("y"))
    assert node.of("x") == [{"id": "x", "error": "rowcast.error.unique_violation"}]
    assert node.of("y") == [{"id": "y", "error": "rowcast.error.invalid_row"}]
    shown = [names(line["rows"]) for line in node.of("all")]
    assert [*("Eve", "driver 2", "driver 3", "driver 4", "driver 5"), None] in shown
    # One whose key is there is the row itself, as when its change arrives before the answer.
    assert not any("twice" in each for each in shown)
    first = next(at for at, each in enumerate(shown) if each[0] == "Eve")
    assert all(each[0] == "Eve" for each in shown[first:])
    await until(lambda: len(node.rows("all")) == 5)


@pytest_twisted.ensureDeferred
async def test_effect_has_the_known_values_of_the_columns_of_the_query(
    dsn: str, service: Serving, wired: Wired
) -> None:
    """Not those that the service computes; several created rows are several rows."""
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"], "select": ["id", "name"]})
    await until(lambda: len(node.rows("all")) == 5)
    many = [{"id": 6, "name": "six", "more": 1}, {"id": 7, "name": {"$default": True}}]
    node.tell(id="x", write=["all", "create"], args=[many])
    node.tell(id="y", write=["all", "update"], args=[1, {"name": {"$append": ["y"]}, "more": 2}])
    changed = {"where": {"id": 5}, "changes": {"name": "five"}}
    node.tell(id="z", write=["all", "write"], args=["update", [], changed])
    await until(lambda: all(node.of(each) for each in "xyz"))
    shown = [line["rows"] for line in node.of("all")]
    assert [{"id": 6, "name": "six"}, {"id": 7}] in [rows[5:] for rows in shown]
    assert {json.dumps(rows[0]) for rows in shown} == {'{"id": 1, "name": "driver 1"}'}
    await until(lambda: node.rows("all")[4]["name"] == "five")


@pytest_twisted.ensureDeferred
async def test_live_query_that_is_refused_says_why(service: Serving, wired: Wired) -> None:
    node = wired.program
    node.tell(id="no", live="drivers", query={"where": {"no": 1}})
    await until(lambda: node.of("no") == [{"id": "no", "error": "wamp.error.invalid_argument"}])


@pytest_twisted.ensureDeferred
async def test_connection_that_stalls_before_it_opens_is_given_up(
    dsn: str, service: Serving, router: Router
) -> None:
    """Autobahn alone would wait for the router for ever."""
    await install()
    execute(dsn, kit_client.RESET)
    wired = Wired(router, silence=2.0)
    node = wired.program
    wired.proxy.stall()
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    node.tell(id="n", call="drivers.count")
    await until(lambda: {"state": "silent"} in node.lines, 10)
    wired.proxy.flow()
    await until(lambda: len(node.rows("all")) == 5 and node.of("n"))
    assert node.of("n") == [{"id": "n", "answer": 5}]
    await wired.close()


@pytest.mark.parametrize("wired", ["json", "cbor", "msgpack"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_argument_that_cannot_be_sent_is_an_error_at_once(
    request: pytest.FixtureRequest, service: Serving, wired: Wired
) -> None:
    """Autobahn silently drops functions in rows, and reports no encoding errors."""
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    await until(lambda: len(node.rows("all")) == 5)
    names = ["circular", "a function", "a symbol", "big"]
    if request.node.callspec.params["wired"] == "cbor":
        assert names.pop() == "big"
        node.tell(id="big", call="drivers.get", args=[{"odd": "big"}])
        await until(lambda: node.of("big"))
        assert node.of("big")[0]["answer"]["id"] == 1
    for name in names:
        where = {"id": {"odd": name}}
        node.tell(id=f"find {name}", call="drivers.find", kwargs={"where": where})
        node.tell(id=f"live {name}", live="drivers", query={"where": where})
        node.tell(id=f"create {name}", write=["all", "create"], args=[where])
        node.tell(id=f"update {name}", write=["all", "update"], args=[where, {"name": "x"}])
        node.tell(id=f"delete {name}", write=["all", "delete"], args=[where])
        for verb in ("find", "live", "create", "update", "delete"):
            id = f"{verb} {name}"
            await until(lambda id=id: node.of(id), 3)
            assert node.of(id) == [{"id": id, "error": "wamp.error.invalid_argument"}]
        node.tell(id=f"why {name}", call="drivers.find", kwargs={"where": where}, why=True)
        await until(lambda name=name: node.of(f"why {name}"), 3)
        sort = {"circular": "a circular object", "big": "a bigint"}.get(name, name)
        assert node.of(f"why {name}")[0]["why"] == f"{sort} cannot be sent"
    await until(lambda: len(node.rows("all")) == 5)
    assert {line["mismatches"] for line in node.lines if "mismatches" in line} == {0}


@pytest_twisted.ensureDeferred
async def test_closed_kit_waits_for_nothing(service: Serving, wired: Wired) -> None:
    node = wired.program
    node.tell(id="all", live="drivers", query={"order": ["id"]})
    node.tell(close="all")
    node.tell(id="n", call="drivers.count")
    node.tell(id="all", ready=True)
    for id in ("n", "all"):
        await until(lambda id=id: node.of(id), 3)
        assert node.of(id) == [{"id": id, "error": "rowcast.client.lost"}]
