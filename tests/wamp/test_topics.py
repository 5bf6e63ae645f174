"""
Topics, as each kind of subscriber receives them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import PublishOptions, SubscribeOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol

from schema.changes import install
from service.app import Serving
from tests import node
from tests.conftest import Router, execute
from tests.deferreds import until
from tests.wamp.callers import KINDS, Caller
from tests.wamp.conftest import Join

SCHEMA = f"""
CREATE TABLE actions (id int PRIMARY KEY, name text, data bytea, price numeric, big bigint);
CREATE TABLE drivers (id int PRIMARY KEY);
CREATE TABLE veiled (id int PRIMARY KEY);
ALTER TABLE veiled ENABLE ROW LEVEL SECURITY;
{install()}
SELECT rowcast.track(name::regclass) FROM unnest('{{actions, drivers, veiled}}'::text[]) name;
"""

PATTERNS = [
    ("rowcast.actions.changed.update.42", "exact"),
    ("rowcast.actions.changed..42", "wildcard"),
    ("rowcast.actions.changed.", "prefix"),
    ("rowcast..changed..", "wildcard"),
    ("rowcast.veiled.touched", "exact"),
]

WRITES = """
INSERT INTO actions VALUES (42, 'a', '\\x00ff', 12.50, 9007199254740991);
INSERT INTO actions VALUES (43, 'b', NULL, 'NaN', NULL);
UPDATE actions SET name = 'c' WHERE id = 42;
INSERT INTO drivers VALUES (42);
INSERT INTO veiled VALUES (1), (2);
DELETE FROM actions WHERE id = 42;
TRUNCATE actions;
"""

SEEN = {
    "rowcast.actions.changed.update.42": ["update 42"],
    "rowcast.actions.changed..42": ["insert 42", "update 42", "delete 42"],
    "rowcast.actions.changed.": [
        "insert 42",
        "insert 43",
        "update 42",
        "delete 42",
        "truncate None",
    ],
    "rowcast..changed..": [
        "insert 42",
        "insert 43",
        "update 42",
        "insert 42",
        "delete 42",
        "truncate None",
    ],
    "rowcast.veiled.touched": ["touched"],
}


@pytest_twisted.async_yield_fixture
async def empty(service: Serving, dsn: str) -> AsyncIterator[Serving]:
    """Empty the tables, and wait until that is published."""
    before = service.feed.counters.changes
    execute(dsn, "TRUNCATE actions, drivers, veiled")
    await until(lambda: service.feed.counters.changes >= before + 3)
    yield service


def run(dsn: str, sql: str) -> None:
    """Run statements outside the service, each in its own transaction."""
    for statement in filter(None, map(str.strip, sql.split(";"))):
        execute(dsn, statement)


class Subscriber:
    """A subscriber that records events by subscription."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.topics: list[str] = []

    async def subscribe(self, uri: str, match: str) -> Any:
        """Subscribe to a topic or pattern."""
        found = self.events[uri] = []

        def record(event: dict[str, Any], details: Any) -> None:
            found.append(event)
            self.topics.append(details.topic)

        options = SubscribeOptions(match=match, details_arg="details")
        return await self._caller.subscribe(record, uri, options)

    def seen(self) -> dict[str, list[str]]:
        """Return the received events as text, by subscription."""
        return {uri: [_words(each) for each in found] for uri, found in self.events.items()}


def _words(event: dict[str, Any]) -> str:
    if "op" not in event:
        return "touched"
    return f"{event['op']} {event['key'] and event['key']['id']}"


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_missed_changes_are_returned_as_they_were_published(
    empty: Serving, dsn: str, call_from: Join, how: str
) -> None:
    caller = await call_from(how)
    subscriber, every = Subscriber(caller), "rowcast..changed.."
    await subscriber.subscribe(every, "wildcard")
    since = await caller.call("rowcast.position")
    run(dsn, WRITES)
    await until(lambda: len(subscriber.events[every]) >= len(SEEN[every]))
    answer = await caller.call("rowcast.changes", since)
    published = [{**event} for event in subscriber.events[every]]
    for event in published:
        del event["prev"]
    assert [each for each in answer["changes"] if each["op"] != "touch"] == published
    text = json.dumps(answer, default=lambda data: b64encode(data).decode())
    assert json.loads(await caller.call("rowcast.changes", since, form="json")) == json.loads(text)


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_subscriber_receives_the_events_of_its_pattern(
    empty: Serving, dsn: str, call_from: Join, how: str
) -> None:
    subscriber = Subscriber(await call_from(how))
    for uri, match in PATTERNS:
        await subscriber.subscribe(uri, match)
    run(dsn, WRITES)
    await until(lambda: sum(map(len, subscriber.events.values())) >= sum(map(len, SEEN.values())))
    assert subscriber.seen() == SEEN
    insert = subscriber.events["rowcast.actions.changed."][0]
    row = {"id": 42, "name": "a", "data": b"\x00\xff", "price": "12.50", "big": 9007199254740991}
    assert insert["row"] == row
    assert insert["old"] is None
    assert subscriber.events["rowcast.actions.changed."][1]["row"]["price"] == "NaN"
    assert subscriber.events["rowcast.veiled.touched"][0].keys() == {"relation", "position"}
    found = await subscriber._caller.call("rowcast.actions.find")
    assert found["rows"] == []


@pytest_twisted.ensureDeferred
async def test_subscriber_notices_a_gap_by_prev(empty: Serving, dsn: str, call_from: Join) -> None:
    subscriber = Subscriber(await call_from())
    subscription = await subscriber.subscribe("rowcast.actions.changed.", "prefix")
    run(dsn, "INSERT INTO actions VALUES (1); UPDATE actions SET name = 'a'")
    await until(lambda: len(subscriber.events["rowcast.actions.changed."]) == 2)
    one, two = subscriber.events["rowcast.actions.changed."]
    assert two["prev"] == one["position"]
    await subscription.unsubscribe()
    before = empty.feed.counters.changes
    run(dsn, "UPDATE actions SET name = 'b'")
    await until(lambda: empty.feed.counters.changes > before)
    await subscriber.subscribe("rowcast.actions.changed.", "prefix")
    run(dsn, "UPDATE actions SET name = 'c'; UPDATE actions SET name = 'd'")
    await until(lambda: len(subscriber.events["rowcast.actions.changed."]) == 2)
    three, four = subscriber.events["rowcast.actions.changed."]
    assert three["prev"] not in (None, two["position"])
    assert four["prev"] == three["position"]


@pytest_twisted.ensureDeferred
async def test_client_cannot_publish_events_or_subscribe_to_other_topics(
    empty: Serving, dsn: str, call_from: Join
) -> None:
    caller = await call_from()
    with pytest.raises(ApplicationError, match="not authorized"):
        await caller.publish(
            "rowcast.actions.changed.update.42", {}, options=PublishOptions(acknowledge=True)
        )
    for uri, match in (("", "prefix"), ("wamp.", "prefix"), ("....", "wildcard")):
        with pytest.raises(ApplicationError, match="not authorized"):
            await caller.subscribe(print, uri, SubscribeOptions(match=match))


class Program(ProcessProtocol):
    """A Node program that subscribes and prints events."""

    def __init__(self) -> None:
        self.said = self.complaints = ""
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        """Collect output."""
        self.said += data.decode()

    def errReceived(self, data: bytes) -> None:
        """Collect error output."""
        self.complaints += data.decode()

    def processEnded(self, reason: Any) -> None:
        """Record that the process has ended."""
        self.ended.callback(None)

    @property
    def lines(self) -> list[Any]:
        """The received events, parsed from JSON."""
        return [
            json.loads(line) for line in self.said.splitlines(keepends=True) if line[-1] == "\n"
        ]


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_subscriber_with_npm_autobahn_receives_the_events_of_its_pattern(
    empty: Serving, dsn: str, router: Router, serializer: str
) -> None:
    program, _ = node.program(), node.modules()
    child = Program()
    grains = json.dumps(PATTERNS)
    arguments = [program, "subscriber.js", router.websocket, router.realm, serializer, grains]
    process = reactor.spawnProcess(child, program, arguments, env=None, path=str(node.NODE))
    try:
        await until(lambda: "subscribed" in child.lines or child.ended.called)
        assert not child.ended.called, child.complaints
        run(dsn, WRITES)
        many = sum(map(len, SEEN.values()))
        await until(lambda: len(child.lines) > many)
    finally:
        if not child.ended.called:
            process.signalProcess("TERM")
            await child.ended
    found: dict[str, list[str]] = {uri: [] for uri, _ in PATTERNS}
    rows = []
    for uri, event in child.lines[1:]:
        found[uri].append(_words(event))
        if uri == "rowcast.actions.changed.":
            rows.append(event["row"])
    assert found == SEEN
    big = 9007199254740991
    assert rows[0] == {"id": 42, "name": "a", "data": "AP8=", "price": "12.50", "big": big}
