"""
Listeners beside the traffic: a subscriber of topics, and clients with live queries.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import SubscribeOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred

from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.deployment import ACCOUNTS, BALANCE, PATIENCE, Deployment
from tests.faults.ledger import RELATIONS, Ledger, State
from tests.wamp.kit_client import Client

ALL = "rowcast..changed.."
LISTENERS_LIMIT = 30.0
"""Seconds in which listeners must be up to date after callers are answered again."""
ANSWER = 20.0
"""Timeout of a subscription, in seconds."""
WATCHERS = 2
"""Number of clients that watch all live queries."""


class Subscriber:
    """
    A subscriber that catches up on missed events as docs/topics.md describes.

    Args:
        deployment: The deployment to connect to.
        state: The state of the database at which it begins.

    Attributes:
        ledger: The copy of the tables that the events maintain.
        gaps: How often `prev` of an event showed that earlier events were missing.
        missing: Events that `changes` did not return after such a gap.
        silence: The longest time between two new events, in seconds.
        subscribed: Whether it has subscribed.
    """

    def __init__(self, deployment: Deployment, state: State) -> None:
        self.ledger = Ledger(state)
        self.subscribed = False
        self.gaps = 0
        self.missing: list[str] = []
        self.silence = 0.0
        self._last_event: float | None = None
        self._position = state.position
        self._last: dict[str, str] = {}
        self.client = Client(deployment.router)
        self._following: list[Deferred[None]] = []
        self.client.component.on("join", self._joined)

    def _joined(self, session: Any, details: Any) -> None:
        self._following.append(ensureDeferred(self._follow(session)))

    async def _follow(self, session: Any) -> None:
        """Subscribe in a new session, catch up, then process the events of the session."""
        events: deque[Any] = deque()
        subscribing = session.subscribe(events.append, ALL, SubscribeOptions(match="wildcard"))
        try:
            await subscribing.addTimeout(ANSWER, reactor)
        except Exception:  # of any kind: the next session subscribes again
            session.disconnect()
            return
        self.subscribed = True
        await self._catch_up(session)
        while session is self.client.db.session:
            if events:
                await self._take(session, events.popleft())
            else:
                await pause(0.005)

    async def _take(self, session: Any, event: Mapping[str, Any]) -> None:
        if event["relation"] not in RELATIONS:
            return
        if self.ledger.has(event) or event["prev"] == self._last.get(event["relation"]):
            self._hear(event)
            return
        self.gaps += 1
        if await self._catch_up(session) and not self.ledger.has(event):
            self.missing.append(str(event))

    def _hear(self, change: Mapping[str, Any]) -> None:
        if not self.ledger.has(change):
            self._position = self._last[change["relation"]] = change["position"]
            now = reactor.seconds()
            self.silence = max(self.silence, now - (self._last_event or now))
            self._last_event = now
        self.ledger.take(change)

    async def _catch_up(self, session: Any) -> bool:
        """Process the missed changes page by page; return False if the session ended before the last page."""
        more = True
        while more:
            try:
                page = await self.client.db.call(
                    "changes", self._position, relations=[*RELATIONS], limit=200
                )
            except ApplicationError as error:
                if error.error == "rowcast.error.position_gone":
                    raise
                if session is not self.client.db.session:
                    return False
                await pause(0.1)
                continue
            for change in page["changes"]:
                self._hear(change)
            self._position, more = page["position"], page["more"]
        return True

    async def close(self) -> None:
        """Leave; raise the error of a session that has failed."""
        await self.client.close()
        for each in self._following:
            await each


class Watcher:
    """
    A client with live queries.

    Args:
        deployment: The deployment to connect to.
        queries: Relation and arguments of each live query.

    Attributes:
        changes: Number of steps received.
        resets: Number of resets by live query.
        wrong: Totals of all balances that no committed state has.
    """

    def __init__(
        self, deployment: Deployment, queries: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> None:
        self.client = Client(deployment.router)
        self.changes = 0
        self.wrong: list[str] = []
        self.live = [self.client.db.live(name, **query) for name, query in queries]
        self.resets = dict.fromkeys(self.live, -1)  # the first rows do not count as a reset
        for each in self.live:
            each.subscribe(lambda rows, change, live=each: self._changed(live, rows, change))

    def _changed(self, live: Any, rows: list[Any], change: Any) -> None:
        if change is None:
            return
        self.changes += 1
        self.resets[live] += change.reset
        if live.name == "accounts":
            total = sum(row.get("balance", row.get("total")) for row in rows)
            if total != ACCOUNTS * BALANCE:
                self.wrong.append(f"{live.query}: all accounts have {total}")

    async def is_same(self, live: Any) -> bool:
        """Return whether the rows of a live query are what `find` or `aggregate` returns now."""
        db, query = self.client.db, live.query
        try:
            if "measures" in query:
                found = await db.call(f"{live.name}.aggregate", **query)
            else:
                page = await db.call(f"{live.name}.find", **query)
                found = page["rows"]
                while page["next"] and "limit" not in query:  # a page has 1,000 rows at most
                    page = await db.call(f"{live.name}.find", **query, after=page["next"])
                    found += page["rows"]
        except ApplicationError:
            return False
        if "order" in query:
            return bool(found == live.rows)
        return sorted(map(str, found)) == sorted(map(str, live.rows))


@dataclass(frozen=True)
class ListenerReport:
    """
    The result of all listeners of a round.

    Args:
        events: Number of distinct events received.
        again: Number of events received again with the same content.
        gaps: How often the subscriber noticed missing events and caught up.
        broken: Violated guarantees about events, by kind (`KINDS`).
        changes: Number of steps of live queries.
        resets: Number of resets of queries without a limit.
        window_resets: Number of resets of queries with a limit.
        differing: Live queries whose rows differed from `find` at the end, or from a checksum.
        silence: The longest time between two events, in seconds.
        took: Seconds until each event was received and each live query equalled `find`.
    """

    events: int
    again: int
    gaps: int
    broken: Mapping[str, list[str]]
    changes: int
    resets: int
    window_resets: int
    differing: list[str]
    silence: float
    took: float

    def wrong(self) -> list[str]:
        """Return the violated guarantees."""
        found = [f"events {kind}: {each[:3]}" for kind, each in self.broken.items() if each]
        if self.resets:
            found.append(f"{self.resets} resets")
        if self.took > LISTENERS_LIMIT:
            found.append(f"listeners were behind for {self.took:.1f} s")
        return found + self.differing

    def cells(self, name: str) -> list[str]:
        """Return the row of the table."""
        return [
            name,
            *map(str, (self.events, self.again, self.gaps)),
            *(str(len(self.broken[kind])) for kind in KINDS),
            f"{self.silence:.1f} s",
            *map(str, (self.changes, self.resets, self.window_resets, len(self.differing))),
            f"{self.took:.1f} s",
        ]


KINDS = ("lost", "doubled", "in another order", "torn")
HEAD = [
    "fault",
    *("events", "again", "gaps noticed", *KINDS, "longest silence"),
    *("steps of live queries", "resets", "of windows", "not the same"),
    "up to date after",
]


class Listeners:
    """
    The subscriber and the watchers of a round. Use `start_listeners`.

    Args:
        deployment: The deployment to connect to.
        state: The state of the database at which the subscriber begins.
    """

    def __init__(self, deployment: Deployment, state: State) -> None:
        self._deployment = deployment
        newest = {name: max(state.tables[name], default=0) for name in ("moves", "notes")}
        self._subscriber = Subscriber(deployment, state)
        self._watchers = [Watcher(deployment, _queries(newest)) for _ in range(WATCHERS)]

    async def ready(self) -> None:
        """Wait until the subscriber has subscribed, and each live query has its first rows."""
        while not self._subscriber.subscribed:
            await pause(0.01)
        for watcher in self._watchers:
            for live in watcher.live:
                await live.ready()

    async def end(self) -> ListenerReport:
        """Wait until all events have arrived, compare the copies with the database, and close."""
        subscriber, token = self._subscriber, f"end {uuid.uuid4().hex}"
        execute(self._deployment.dsn, f"INSERT INTO notes (token) VALUES ('{token}')")
        began = reactor.seconds()
        end = began + PATIENCE
        while not subscriber.ledger.tokens[token] and reactor.seconds() < end:
            await pause(0.05)
        broken = subscriber.ledger.wrong(State(self._deployment.dsn))
        broken["lost"] += subscriber.missing
        differing = [each for watcher in self._watchers for each in await _differing(watcher, end)]
        took = reactor.seconds() - began
        await self.close()
        resets = {False: 0, True: 0}
        for watcher in self._watchers:
            for live, count in watcher.resets.items():
                resets["limit" in live.query] += count
        return ListenerReport(
            events=len(subscriber.ledger.seen),
            again=subscriber.ledger.again,
            gaps=subscriber.gaps,
            broken=broken,
            changes=sum(each.changes for each in self._watchers),
            resets=resets[False],
            window_resets=resets[True],
            differing=differing,
            silence=subscriber.silence,
            took=took,
        )

    async def close(self) -> None:
        """Close the connections of all listeners."""
        await self._subscriber.close()
        for each in self._watchers:
            await each.client.close()


async def start_listeners(deployment: Deployment) -> Listeners:
    """Start the listeners; return when the subscriber has subscribed, and each query has its first rows."""
    await deployment.until(lambda: bool(execute(deployment.dsn, "SELECT 1 FROM rowcast.epochs")))
    found = Listeners(deployment, State(deployment.dsn))
    await found.ready()
    return found


def _queries(newest: Mapping[str, int]) -> list[tuple[str, dict[str, Any]]]:
    """Return live queries of each kind; those on growing tables only match rows inserted from now on."""
    later = {name: {"id": {"gt": number}} for name, number in newest.items()}
    return [
        ("accounts", {"order": ["-balance", "id"]}),
        ("accounts", {"measures": {"total": {"sum": "balance"}}}),
        ("slots", {}),
        ("pledges", {}),
        ("notes", {"where": later["notes"]}),
        ("notes", {"where": later["notes"], "order": ["-id"], "limit": 10}),
        ("moves", {"where": {**later["moves"], "source": {"lt": 8}}, "order": ["-amount", "id"]}),
        (
            "moves",
            {"where": later["moves"], "measures": {"n": {"sum": "amount"}}, "group": ["target"]},
        ),
    ]


async def _differing(watcher: Watcher, end: float) -> list[str]:
    """Wait until each live query equals its query; return the ones that do not until the end."""
    found = list(watcher.wrong[:3])
    for live in watcher.live:
        while not await watcher.is_same(live):
            if live.error is not None or reactor.seconds() > end:
                found.append(f"{live.name} {live.query}: {live.error}")
                break
            await pause(0.1)
        if live.mismatches:
            found.append(f"{live.name} {live.query}: {live.mismatches} other checksums")
    return found
