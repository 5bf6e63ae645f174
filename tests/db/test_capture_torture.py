"""
Readers of the log beside many writers: nothing is lost or repeated, and each state is a committed one.

Three plausible but wrong readers run beside the service's and must fail; otherwise the writers would prove
nothing.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from service.changes.log import PgSnapshot, Tick, page_txn, pages_txn, ticks_txn, tracked_txn
from service.changes.net import net_changes
from service.db.connection import PgConnection
from service.db.session_settings import SessionSettings, open_session
from tests.amounts import amount
from tests.conftest import execute, wait_until
from tests.db.readers import Line, Readers, delivered, readers
from tests.db.servers import Server, servers
from tests.db.torture import TABLES, Copy, Observer, State, Writers, WrongReader, content

SECONDS = amount(5.0, 25.0)
WRONG = {"above the highest number": "", "by transaction": "xid, seq", "by number": "seq"}


@pytest.mark.parametrize("seed", [3])
def test_readers_that_are_killed_beside_writers_deliver_every_change_in_order(
    seed: int, tmp_path: Path
) -> None:
    """PostgreSQL crashes meanwhile."""
    dice = random.Random(seed)
    with servers(1) as (server,):
        start = prepared(server)
        wrong = {name: WrongReader(server.dsn, start, order) for name, order in WRONG.items()}
        writers, observer = Writers(server.dsn, seed), Observer(server.dsn)
        with readers(server.dsn, tmp_path / "lines", "a", "b", poll=0.01) as found:
            try:
                # On a loaded machine readers publish little between two kills: repeat until it is enough to check.
                kills = _disturb(
                    server,
                    found,
                    dice,
                    lambda: (
                        len({line.tick for line in found.lines()}) > 60
                        and len(observer.seen) > 20
                        and writers.counts["committed"] > 200
                        and writers.counts["prepared"] > 5
                    ),
                )
            finally:
                writers.stop()
                observer.stop()
            final = settled(server, found)
            for each in wrong.values():
                each.stop()
            lines = found.lines()
        failures = {name: each.end(final) for name, each in wrong.items()}
        kept = delivered(lines)
        names = dict(execute(server.dsn, "SELECT id, relation::text FROM rowcast.tracked"))
        assert kills > 5
        assert writers.counts["committed"] > 200
        assert writers.counts["prepared"] > 5
        check_states(kept, names, start, final)
        check_positions(kept)
        check_snapshots(kept, names, start, final, observer.seen)
        check_made_again(server, kept, names, start)
    assert all(failures.values()), failures


def prepared(server: Server) -> State:
    """Configure prepared transactions, and return the initial contents of the tables."""
    execute(server.dsn, "ALTER SYSTEM SET max_prepared_transactions = 20")
    server.crash()
    server.start()
    execute(server.dsn, TABLES)
    return state(server)


def state(server: Server) -> State:
    """Return the contents of the tables."""
    connection = psycopg2.connect(server.dsn)
    with connection.cursor() as rows:
        found = content(rows)
    connection.close()
    return found


def _disturb(
    server: Server, found: Readers, dice: random.Random, enough: Callable[[], bool]
) -> int:
    """Kill the publishing reader repeatedly, and once the server; return the number of kills."""
    wait_until(lambda: bool(found.lines()), 60)
    ends, crashes, kills = time.monotonic() + SECONDS, time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < ends or not enough():
        time.sleep(dice.uniform(0.3, 1.5))
        leader = found.last.name
        found.kill(leader)
        found.start(leader)
        kills += 1
        if time.monotonic() > crashes:
            crashes = math.inf
            server.crash()
            server.start()
    return kills


def settled(server: Server, found: Readers) -> State:
    """Return the final contents, after all changes have been published."""
    for (name,) in execute(server.dsn, "SELECT gid FROM pg_prepared_xacts"):
        execute(server.dsn, f"COMMIT PREPARED '{name}'")
    behind = """
    SELECT count(*) FROM rowcast.log, (SELECT snapshot FROM rowcast.ticks ORDER BY tick DESC LIMIT 1) AS last
     WHERE NOT pg_visible_in_snapshot(xid, snapshot)
    """
    wait_until(lambda: execute(server.dsn, behind) == [(0,)], 60)
    ((tick,),) = execute(server.dsn, "SELECT max(tick) FROM rowcast.ticks WHERE changes > 0")
    # A transaction without a net change is not published; a later commit shows that all before it was.
    execute(server.dsn, "UPDATE items SET n = n + 1 WHERE id = (SELECT min(id) FROM items)")
    wait_until(lambda: found.last.tick > int(str(tick)), 60)
    return state(server)


def check_states(kept: list[Line], names: dict[Any, Any], start: State, final: State) -> None:
    """Check that each old row equals the copy, and that the total is constant after each transaction."""
    copy = Copy(start)
    for line in kept:
        copy.apply(names[line.relation], line.old, line.new)
        if line.last:
            copy.end()
    assert copy.wrong == []
    assert copy.state == final


def check_positions(kept: list[Line]) -> None:
    """Check that changes are numbered within a tick, and that each transaction is contiguous."""
    for before, line in pairwise(kept):
        following = line.tick == before.tick and line.index > before.index
        assert following or line.tick > before.tick, (before, line)
        assert before.last or (following and line.xid == before.xid)
    assert kept[-1].last
    last = [line.xid for line in kept if line.last]
    assert len(last) == len(set(last))


def check_snapshots(
    kept: list[Line],
    names: dict[Any, Any],
    start: State,
    final: State,
    seen: list[tuple[PgSnapshot, State]],
) -> None:
    """Check that the changes visible in a snapshot lead to its rows, and the others to the final rows."""
    assert len(seen) > 20
    for snapshot, there in seen:
        before, after = Copy(start), Copy(there)
        for line in kept:
            copy = before if snapshot.sees(int(line.xid)) else after
            copy.apply(names[line.relation], line.old, line.new)
        assert before.wrong == []
        assert before.state == there
        assert after.wrong == []
        assert after.state == final


def check_made_again(server: Server, kept: list[Line], names: dict[Any, Any], start: State) -> None:
    """Check that reading ticks again gives the same changes, singly and in ranges."""
    connection = open_session(server.dsn, SessionSettings())
    tracked = tracked_txn(connection)
    copy, states = Copy(start), dict[int, State]()
    for line in kept:
        copy.apply(names[line.relation], line.old, line.new)
        states[line.tick] = dict(copy.state)
    ticks = [tick for tick in ticks_txn(connection, 1, 100_000) if tick.number in states]
    assert len(ticks) > 50
    dice = random.Random(1)
    for tick in dice.sample(ticks, 30):
        again = [
            (each.place, str(each.key), each.op, each.xid)
            for each in net_changes(rows_of(connection, tick), tracked, tick)
        ]
        told = [
            (each.index, each.key, each.op, each.xid) for each in kept if each.tick == tick.number
        ]
        assert [(i, key.strip("(),"), *rest) for i, key, *rest in again] == [
            (i, str(key[0]), *rest) for i, key, *rest in told
        ]
    for _ in range(30):
        first, last = sorted(dice.sample(ticks, 2), key=lambda tick: tick.number)
        merged = Tick(1, last.number, first.snapshot, last.snapshot, 0)
        copy = Copy(states[first.number])
        for change in net_changes(rows_of(connection, merged), tracked, merged):
            copy.apply(names[change.relation], change.old, change.new)
        assert copy.wrong == []
        assert copy.state == states[last.number]
    connection.close()


def rows_of(connection: PgConnection, tick: Tick) -> list[Any]:
    """Return the rows of all pages of a tick."""
    pages = pages_txn(connection, tick, 10_000)
    return [row for page in pages for row in page_txn(connection, page)]
