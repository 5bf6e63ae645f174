"""
The latency from commit to publication, and the speed at which the feed works off a backlog.

    python -m bench.feed [--seconds 10]

The writers are separate processes. The feed publishes to a stub, so the measurement excludes the
router. The variants are measured alternately, so that load on the machine affects them all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg2
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.utils import getProcessOutput
from twisted.python.failure import Failure

from schema.changes import install
from schema.database_url import Place
from service.changes.net import Change
from tests.conftest import ROOT, execute
from tests.db.feeds import clear_log, feeding
from tests.deferreds import pause, until

SETUP = f"""
CREATE TABLE items (id bigserial PRIMARY KEY, n int, title text, at timestamptz DEFAULT now());
CREATE TABLE untracked (id int);
{install()}
SELECT rowcast.track('items');
"""
TITLE = "title" + " x" * 40
WAYS: dict[str, dict[str, Any]] = {
    "writers notify": {},
    "the same, a transaction open elsewhere": {},
    "a look every 20 ms": {"poll": 0.02},
}
BACKLOG = 50_000


def write(dsn: str, rate: float, seconds: float, seed: int) -> None:
    """Insert rows at random times; print the key and the time of commit of each."""
    dice, connection = random.Random(seed), psycopg2.connect(dsn)
    connection.autocommit = True
    began, found = time.time() + 0.5, []
    with connection.cursor() as rows:
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, began + (number + dice.random()) / rate - time.time()))
            rows.execute("INSERT INTO items (n, title) VALUES (1, %s) RETURNING id", [TITLE])
            found += [(key, time.time()) for (key,) in rows.fetchall()]
    print(json.dumps(found))


async def latencies(dsn: str, rate: float, seconds: float, **settings: Any) -> list[float]:
    """Return the milliseconds from the end of each commit to its publication."""
    seen: dict[int, float] = {}

    async def publish(changes: Sequence[Change], durable: Awaitable[None]) -> None:
        await durable
        now = time.time()
        seen.update((change.key[0], now) for change in changes if change.key)

    clear_log(dsn)
    writers = 1 if rate < 100 else 4
    async with feeding(dsn, publish=publish, **settings):
        words = ["-m", "bench.feed", "--write", dsn, str(rate / writers), str(seconds)]
        running = [
            getProcessOutput(sys.executable, [*words, str(seed)], path=str(ROOT), errortoo=False)
            for seed in range(writers)
        ]
        written = [pair for each in running for pair in json.loads(await each)]
        await until(lambda: len(seen) == len(written))
    return sorted(1000 * (seen[key] - at) for key, at in written)


async def catch_up(dsn: str, each: int) -> float:
    """Return the changes per second of a backlog of transactions with `each` rows."""
    clear_log(dsn)
    insert = f"INSERT INTO items (n, title) SELECT 1, '{TITLE}' FROM generate_series(1, {each})"
    loop = f"FOR i IN 1..{BACKLOG // each} LOOP {insert}; COMMIT; END LOOP;"
    quick = "PERFORM set_config('synchronous_commit', 'off', false);"
    execute(dsn, f"DO $$ BEGIN {quick} {loop} END $$")
    count = 0

    async def publish(changes: Sequence[Change], durable: Awaitable[None]) -> None:
        nonlocal count
        await durable
        count += len(changes)

    began = time.monotonic()
    async with feeding(dsn, leads=False, publish=publish):
        while count < BACKLOG:
            await pause(0.01)
        return count / (time.monotonic() - began)


async def measure(dsn: str, seconds: float) -> None:
    """Print all figures."""
    execute(dsn, SETUP)
    print(f"{'ms from commit to publication':45}{'median':>9}{'p99':>9}{'most':>9}")
    for rate in (10, 1000):
        for way, settings in WAYS.items():
            other = psycopg2.connect(dsn)
            if "elsewhere" in way:
                with other.cursor() as rows:
                    rows.execute("INSERT INTO untracked VALUES (1)")
            found = await latencies(dsn, rate, seconds, **settings)
            other.close()
            figures = (found[len(found) // 2], found[int(len(found) * 0.99)], found[-1])
            print(f"{f'{rate}/s, {way}':45}" + "".join(f"{each:9.2f}" for each in figures))
    for each in (1, 100):
        print(f"catch-up, {each} rows a transaction: {await catch_up(dsn, each):,.0f} changes/s")


def main() -> None:
    """Measure on a temporary PostgreSQL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--write", nargs=4)
    options = parser.parse_args()
    if options.write:
        dsn, rate, seconds, seed = options.write
        write(dsn, float(rate), float(seconds), int(seed))
        return
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        run(lambda: measure(dsn, options.seconds))


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run the reactor until a coroutine has ended."""

    def failed(why: Failure) -> None:
        why.printTraceback()

    def start() -> None:
        done = ensureDeferred(work())  # type: ignore[arg-type]
        done.addErrback(failed)
        done.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()


if __name__ == "__main__":
    main()
