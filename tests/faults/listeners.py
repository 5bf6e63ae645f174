"""
Who listens beside the traffic: a subscriber of topics, and clients with live queries.
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
from tests.faults.house import ACCOUNTS, BALANCE, PATIENCE, House
from tests.faults.ledger import RELATIONS, Ledger, State
from tests.wamp.kit_client import Client

ALL = "rowcast..changed.."
LATE = 30.0
"""Seconds in which all that was missed is there, once callers are answered again."""
ANSWER = 20.0
"""Seconds that a subscription may take."""
WATCHERS = 2
"""Clients with live queries; each has all of them."""


class Subscriber:
    """
    A client that misses nothing, by what docs/topics.md says.

    Args:
        house: Where.
        state: What it has.

    Attributes:
        ledger: Of what it hears.
        gaps: How often an event said that some before it were missing.
        missing: Events that `changes` did not have afterwards.
        silence: Seconds that it has heard nothing new for, at most.
    """

    def __init__(self, house: House, state: State) -> None:
        self.ledger = Ledger(state)
        self.gaps = 0
        self.missing: list[str] = []
        self.silence = 0.0
        self._heard: float | None = None
        self._position = state.position
        self._last: dict[str, str] = {}
        self.client = Client(house.router)
        self._following: list[Deferred[None]] = []
        self.client.component.on("join", self._joined)

    def _joined(self, session: Any, details: Any) -> None:
        self._following.append(ensureDeferred(self._follow(session)))

    async def _follow(self, session: Any) -> None:
        """Take what comes in a session, after what was missed before it."""
        events: deque[Any] = deque()
        subscribing = session.subscribe(events.append, ALL, SubscribeOptions(match="wildcard"))
        try:
            await subscribing.addTimeout(ANSWER, reactor)
        except Exception:  # whatever it is, another session is to do it
            session.disconnect()
            return
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
            self.silence = max(self.silence, now - (self._heard or now))
            self._heard = now
        self.ledger.take(change)

    async def _catch_up(self, session: Any) -> bool:
        """Hear what was missed; return whether that was all of it."""
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
        """Leave; raises what it has failed with."""
        await self.client.close()
        for each in self._following:
            await each


class Watcher:
    """
    A client with live queries.

    Args:
        house: Where.
        queries: Names and arguments.

    Attributes:
        changes: How many steps it was told of.
        resets: How often it was sent all rows anew, of each query.
        wrong: Sums that no state of the bank gives.
    """

    def __init__(self, house: House, queries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.client = Client(house.router)
        self.changes = 0
        self.wrong: list[str] = []
        self.live = [self.client.db.live(name, **query) for name, query in queries]
        self.resets = dict.fromkeys(self.live, -1)  # the first rows are no reset
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
        """Return whether a copy is what `find` or `aggregate` answers."""
        db, query = self.client.db, live.query
        try:
            if "measures" in query:
                found = await db.call(f"{live.name}.aggregate", **query)
            else:
                found = (await db.call(f"{live.name}.find", **query))["rows"]
        except ApplicationError:
            return False
        if "order" in query:
            return bool(found == live.rows)
        return sorted(map(str, found)) == sorted(map(str, live.rows))


@dataclass(frozen=True)
class Heard:
    """
    What came of listening.

    Args:
        events: That were heard.
        again: Those that came again, the same.
        gaps: How often the subscriber noticed that some were missing, and asked for them.
        broken: Promises about events that were broken, by their kind.
        changes: Steps of live queries.
        resets: How often all rows of a query without a limit were sent anew.
        anew: The same, of queries with a limit.
        differing: Copies that were not what `find` answers, at the end or by their checksums.
        silence: Seconds between two events, at most.
        took: Seconds until all was heard, and each copy what `find` answers.
    """

    events: int
    again: int
    gaps: int
    broken: Mapping[str, list[str]]
    changes: int
    resets: int
    anew: int
    differing: list[str]
    silence: float
    took: float

    def wrong(self) -> list[str]:
        """Return the promises that were broken."""
        found = [f"events {kind}: {each[:3]}" for kind, each in self.broken.items() if each]
        if self.resets:
            found.append(f"{self.resets} resets")
        if self.took > LATE:
            found.append(f"not all was heard for {self.took:.1f} s")
        return found + self.differing

    def cells(self, name: str) -> list[str]:
        """Return the line of the table."""
        return [
            name,
            *map(str, (self.events, self.again, self.gaps)),
            *(str(len(self.broken[kind])) for kind in KINDS),
            f"{self.silence:.1f} s",
            *map(str, (self.changes, self.resets, self.anew, len(self.differing))),
            f"{self.took:.1f} s",
        ]


KINDS = ("lost", "doubled", "in another order", "torn")
HEAD = [
    "fault",
    *("events", "again", "gaps noticed", *KINDS, "longest silence"),
    *("steps of live queries", "resets", "of windows", "not the same"),
    "all heard after",
]


class Listening:
    """
    All who listen. Use `listening`.

    Args:
        house: Where.
        state: What is there.
    """

    def __init__(self, house: House, state: State) -> None:
        self._house = house
        newest = {name: max(state.tables[name], default=0) for name in ("moves", "notes")}
        self._subscriber = Subscriber(house, state)
        self._watchers = [Watcher(house, _queries(newest)) for _ in range(WATCHERS)]

    async def ready(self) -> None:
        """Wait until all of them have their first rows."""
        for watcher in self._watchers:
            for live in watcher.live:
                await live.ready()

    async def end(self) -> Heard:
        """Hear what is there to be heard, and compare it with what the database has."""
        subscriber, token = self._subscriber, f"end {uuid.uuid4().hex}"
        execute(self._house.dsn, f"INSERT INTO notes (token) VALUES ('{token}')")
        began = reactor.seconds()
        end = began + PATIENCE
        while not subscriber.ledger.tokens[token] and reactor.seconds() < end:
            await pause(0.05)
        broken = subscriber.ledger.wrong(State(self._house.dsn))
        broken["lost"] += subscriber.missing
        differing = [each for watcher in self._watchers for each in await _differing(watcher, end)]
        took = reactor.seconds() - began
        await self.close()
        resets = {False: 0, True: 0}
        for watcher in self._watchers:
            for live, count in watcher.resets.items():
                resets["limit" in live.query] += count
        return Heard(
            events=len(subscriber.ledger.seen),
            again=subscriber.ledger.again,
            gaps=subscriber.gaps,
            broken=broken,
            changes=sum(each.changes for each in self._watchers),
            resets=resets[False],
            anew=resets[True],
            differing=differing,
            silence=subscriber.silence,
            took=took,
        )

    async def close(self) -> None:
        """Have all of them leave."""
        await self._subscriber.close()
        for each in self._watchers:
            await each.client.close()


async def listening(house: House) -> Listening:
    """Begin to listen; return once all have what is there."""
    await house.until(lambda: bool(execute(house.dsn, "SELECT 1 FROM rowcast.epochs")))
    found = Listening(house, State(house.dsn))
    await found.ready()
    return found


def _queries(newest: Mapping[str, int]) -> list[tuple[str, dict[str, Any]]]:
    """Return live queries of each kind, of rows that come from now on where there would be too many."""
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
    """Wait until all copies are the same as what they are copied from; return those that are not."""
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
