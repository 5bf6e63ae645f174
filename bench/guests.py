"""
The processes that `bench.live` starts: writers, subscribers, watchers and others.

The first line of input, JSON, says what a process does. A subscriber or watcher prints "ready". The next
line has the last number of each row; when these have arrived, it prints all that it has received.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg2
from autobahn.wamp.types import CallOptions, PublishOptions, SubscribeOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from bench.stream import Held
from service.wamp.client import WampClient, WampConfig

PATIENCE = 30.0
"""Seconds after which what has not been received counts as lost."""


def random_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Return random times, evenly distributed: `rate` of them in each second."""
    dice, began = random.Random(seed), time.time() + 0.5
    return [began + (at + dice.random()) / rate for at in range(int(rate * seconds))]


def write(what: Mapping[str, Any]) -> None:
    """Update rows one after another; print the key, the number and the time of each commit."""
    connection = psycopg2.connect(what["dsn"], application_name="bench")
    connection.autocommit = True
    first, last = what["keys"]
    done = []
    with connection.cursor() as rows:
        for number, at in enumerate(random_times(what["rate"], what["seconds"], first), 1):
            key = first + number % (last - first)
            time.sleep(max(0.0, at - time.time()))
            rows.execute(
                f"UPDATE {what['table']} SET n = %s WHERE id = %s", [what["since"] + number, key]
            )
            done.append((key, what["since"] + number, time.time()))
    print(json.dumps(done))


class Received:
    """
    The rows received.

    Args:
        times: How often each number is received; the time of the last one counts.
    """

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.count: dict[tuple[int, int], int] = {}
        self.found: list[tuple[int, int, float]] = []
        self.newest: dict[int, int] = {}

    def take(self, row: Mapping[str, Any]) -> None:
        """Record a row's key, number and time of arrival."""
        key, number = row["id"], row["n"]
        if self.times > 1:
            self.count[key, number] = self.count.get((key, number), 0) + 1
            if self.count[key, number] < self.times:
                return
        elif number == self.newest.get(key):  # further messages with the same number
            return
        self.found.append((key, number, time.time()))
        self.newest[key] = number

    async def report(self) -> None:
        """Print "ready", read the last numbers, wait for them, and print what was received."""
        print("ready", flush=True)
        line: str = await deferToThread(sys.stdin.readline)
        last = {int(key): number for key, number in json.loads(line).items()}
        late = time.time() + PATIENCE
        while time.time() < late and not last.items() <= self.newest.items():
            await deferLater(reactor, 0.2)
        print(json.dumps(self.found))


async def sessions(url: str, number: int) -> list[Any]:
    """Join that many sessions, at most 20 at a time."""
    turn = DeferredSemaphore(20)

    async def one() -> Any:
        here: Deferred[Any] = Deferred()
        WampClient(reactor, WampConfig([url], "realm1"), [Held(here)]).startService()
        return await here

    return await gatherResults([turn.run(Deferred.fromCoroutine, one()) for _ in range(number)])


async def subscribe(what: Mapping[str, Any]) -> None:
    """Receive the events of a relation."""
    received = Received(what["sessions"])

    def take(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        received.take(args[0]["row"])

    for session in await sessions(what["url"], what["sessions"]):
        await session.subscribe(take, what["topic"], SubscribeOptions(match="prefix"))
    await received.report()


async def watch(what: Mapping[str, Any]) -> None:
    """Watch queries, the same number in each session, and receive the rows nested `deep` in their rows."""
    received, deep = Received(), what.get("deep")
    waiting = {at: Deferred[None]() for at in range(len(what["queries"]))}
    parts = await sessions(what["url"], what["sessions"])
    each = len(waiting) // len(parts)

    def begin(at: int, query: Mapping[str, Any]) -> Deferred[None]:
        there = waiting[at]

        def take(message: Mapping[str, Any]) -> None:
            for row in (*message.get("enter", ()), *message.get("update", ())):
                for one in row[deep] if deep else (row,):
                    received.take(one)
            if message.get("complete"):
                there.callback(None)

        options = CallOptions(on_progress=take)
        call = parts[at // each].call(f"rowcast.{what['table']}.watch", options=options, **query)
        call.addErrback(lambda why: there.called or there.errback(why))
        return there

    turn = DeferredSemaphore(200)
    await gatherResults([turn.run(begin, at, query) for at, query in enumerate(what["queries"])])
    await received.report()


async def publish(what: Mapping[str, Any]) -> None:
    """Publish events of the size of a service's, without a database; print like `write`."""
    (session,) = await sessions(what["url"], 1)
    options = PublishOptions(acknowledge=True)
    done, sent = [], []
    row = {"id": 0, "grp": 7, "n": 0, "title": "title" + " x" * 40}
    event = {"op": "update", "schema": "public", "relation": "items", "key": {"id": 1}, "row": row}
    event |= {"old": {"n": 0}, "position": "1.123456.1", "prev": "1.123455.1", "tx": "123456"}
    event |= {"last": True, "at": "2026-01-01T00:00:00.123456Z"}
    keys = what["keys"]
    for number, at in enumerate(random_times(what["rate"], what["seconds"], 1), what["since"] + 1):
        await deferLater(reactor, max(0.0, at - time.time()))
        key = number % keys
        row["id"], row["n"] = key, number
        done.append((key, number, time.time()))
        sent.append(session.publish(f"{what['topic']}update.{key}", event, options=options))
    await gatherResults(sent)
    print(json.dumps(done))


async def catch_up(what: Mapping[str, Any]) -> None:
    """Read all changes after a position; print their number, and the seconds that it took."""
    (session,) = await sessions(what["url"], 1)
    since, more, count = what["since"], True, 0
    began = time.monotonic()
    while more:
        page = await session.call("rowcast.changes", since)
        since, more = page["position"], page["more"]
        count += len(page["changes"])
    print(json.dumps([count, time.monotonic() - began]))


async def position(what: Mapping[str, Any]) -> None:
    """Print the newest position."""
    (session,) = await sessions(what["url"], 1)
    print(json.dumps(await session.call("rowcast.position")))


ACTS = {
    "catch_up": catch_up,
    "position": position,
    "publish": publish,
    "subscribe": subscribe,
    "watch": watch,
}


def main() -> None:
    """Run the act that the first line names."""
    what = json.loads(sys.stdin.readline())
    if what["act"] == "write":
        write(what)
        return

    def act() -> None:
        done = Deferred.fromCoroutine(ACTS[what["act"]](what))
        done.addErrback(lambda why: why.printTraceback())
        done.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(act)
    reactor.run()


if __name__ == "__main__":
    main()
