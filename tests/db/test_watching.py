"""
Live queries on a real database: each kind of query, with writes from any client.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
import pytest_twisted

from schema import changes
from service.api.roles import Roles
from service.changes import cycle
from service.changes.cycle import Cycle, Outcome
from service.changes.positions import SnapshotPosition, parse_position
from service.changes.queries import WatchLimits
from service.errors import DatabaseRefused, InvalidArgument, TooLarge, Unavailable, UnknownName
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import ANYONE
from tests.db.watched import Live, Watcher, living, watch_of
from tests.deferreds import failure_of, until

SCHEMA = f"""
{changes.install()}
CREATE TABLE teams (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE people (
    id int PRIMARY KEY, team int REFERENCES teams ON UPDATE CASCADE, name text, score numeric, seen timestamptz,
    extra jsonb, photo bytea
);
CREATE TABLE notes (body text, weight float8);
CREATE TABLE untold (id int PRIMARY KEY);
CREATE TABLE seats (place text, row int, taken boolean, PRIMARY KEY (place, row));
CREATE TABLE mine (id int PRIMARY KEY, owner text, body text);
CREATE TABLE members (who text PRIMARY KEY);
SELECT rowcast.track(t) FROM unnest('{{teams,people,notes,seats,mine,members}}'::regclass[]) t;
CREATE VIEW crew AS SELECT p.id, p.name, t.name AS team FROM people p JOIN teams t ON t.id = p.team;
COMMENT ON VIEW crew IS '@key id';
CREATE MATERIALIZED VIEW stored AS SELECT id FROM people;
CREATE FUNCTION best(low numeric) RETURNS SETOF people STABLE LANGUAGE sql
    AS 'SELECT * FROM people WHERE score >= low';
CREATE ROLE watch_reader;
GRANT SELECT ON mine, teams TO watch_reader;
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON mine USING (
    owner = current_setting('rowcast.authid', true)
    AND EXISTS (SELECT FROM members WHERE who = current_setting('rowcast.authid', true)));
GRANT SELECT ON members TO watch_reader;
"""

BEFORE_EACH = """
TRUNCATE teams, people, notes, seats, mine, members;
INSERT INTO teams VALUES (1, 'red'), (2, 'blue');
INSERT INTO people SELECT n, 1 + n % 2, 'p' || n, n * 1.5, '2026-01-01Z', '{"a": 1.5}', '\\x00ff'
  FROM generate_series(1, 6) n;
INSERT INTO notes VALUES ('a', 1), ('a', 1), ('b', 0.1);
INSERT INTO seats VALUES ('x', 1, true), ('x', 2, false), ('y', 1, false);
INSERT INTO mine VALUES (1, 'ann', 'a'), (2, 'bob', 'b'), (3, 'ann', 'c');
INSERT INTO members VALUES ('ann'), ('bob');
"""


@pytest_twisted.async_yield_fixture
async def live(dsn: str) -> AsyncIterator[Live]:
    """Serve the module's database with its initial rows."""
    execute(dsn, BEFORE_EACH)
    async with living(dsn, WatchLimits(session=5, rows=50)) as found:
        yield found


WRITES = (
    "INSERT INTO people VALUES (10, 1, 'new', 7, NULL, NULL, NULL)",
    "UPDATE people SET score = 0 WHERE id = 4",
    "UPDATE people SET team = 3 - team WHERE id IN (1, 2, 3)",
    "UPDATE people SET id = 20 WHERE id = 5",
    "UPDATE teams SET name = name || '!'",
    "UPDATE teams SET id = 9 WHERE id = 1",
    "BEGIN; DELETE FROM people WHERE id = 2; INSERT INTO people VALUES (2, 2, 'again', 99); COMMIT",
    "UPDATE people SET name = NULL, extra = '[1e400, {\"x\": null}]' WHERE id = 6",
    "DELETE FROM people WHERE id < 4",
    "TRUNCATE people",
)

QUERIES = {
    "all": ("people", {}),
    "filter": ("people", {"where": {"score": {"gte": 4}}, "select": ["id", "score"]}),
    "keyless select": ("people", {"select": ["name"]}),
    "ordered": ("people", {"order": ["-score", "name"]}),
    "ordered by what is not shown": ("people", {"order": ["team.name"], "select": ["name"]}),
    "window": ("people", {"order": ["score"], "limit": 3, "select": ["id", "name"]}),
    "offset": ("people", {"order": ["-score"], "limit": 2, "offset": 1}),
    "renamed key": ("people", {"select": ["nr:id", "name"]}),
    "embedded": ("people", {"embed": {"teams": True}, "select": ["id"]}),
    "children": ("teams", {"embed": {"people": {"order": ["score"], "select": ["name"]}}}),
    "where of children": ("teams", {"where": {"people.score": {"gt": 7}}}),
    "distinct": ("people", {"distinct": True, "select": ["team"]}),
    "distinct ordered": ("people", {"distinct": True, "select": ["team"], "order": ["-team"]}),
    "distinct on": ("people", {"distinct": ["team"], "order": ["team", "-score"]}),
    "groups": ("people", {"measures": {"n": {"count": "*"}, "s": {"sum": "score"}}, "group": ["team"]}),
    "groups having": (
        "people",
        {"measures": {"n": {"count": "*"}}, "group": ["team.name"], "having": {"n": {"gt": 2}}, "order": ["-n"]},
    ),
    "one group": ("people", {"measures": {"s": {"sum": "score"}}}),
    "view": ("crew", {}),
    "function": ("fn.best", {"args": {"low": 4}, "select": ["name"]}),
    "function ordered": ("fn.best", {"args": {"low": 4}, "order": ["name"]}),
    "function groups": ("fn.best", {"args": {"low": 1}, "measures": {"n": {"count": "*"}}, "group": ["team"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUERIES)
@pytest_twisted.ensureDeferred
async def test_copy_equals_find_after_each_write(dsn: str, live: Live, kind: str) -> None:
    """This holds after each write of any client, for each kind of query."""
    name, asked = QUERIES[kind]
    watcher = live.watch(name, **asked)
    await watcher.first()
    await watcher.same()
    for write in WRITES:
        execute(dsn, write)
        await watcher.same()
    assert watcher.copy.resets == 0
    assert all(message["step"] for message in watcher.messages)
    await watcher.cancel()


@pytest_twisted.ensureDeferred
async def test_rows_without_a_key_are_sent_without_keys(dsn: str, live: Live) -> None:
    """One of two equal rows can leave alone; with an order, all rows are sent again."""
    watcher, ordered = live.watch("notes"), live.watch("notes", order=["body"])
    await watcher.first()
    await ordered.first()
    execute(dsn, "DELETE FROM notes WHERE ctid = (SELECT min(ctid) FROM notes WHERE body = 'a')")
    await watcher.same()
    assert watcher.messages[-1]["leave"] == [{"body": "a", "weight": 1.0}]
    assert "key" not in watcher.messages[0]
    await ordered.same()
    assert ordered.copy.resets == 1
    execute(dsn, "INSERT INTO notes VALUES ('b', 0.1), ('c', 5)")
    await watcher.same()
    await ordered.same()


@pytest_twisted.ensureDeferred
async def test_key_of_several_columns_is_a_list(dsn: str, live: Live) -> None:
    """The list has the order of the primary key."""
    watcher = live.watch("seats", where={"taken": False})
    await watcher.first()
    execute(dsn, "UPDATE seats SET taken = NOT taken")
    await watcher.same()
    assert watcher.messages[0]["key"] == ["place", "row"]
    assert sorted(watcher.messages[1]["leave"]) == [["x", 2], ["y", 1]]


@pytest_twisted.ensureDeferred
async def test_watch_of_an_untracked_table_is_refused(live: Live) -> None:
    """The error says how to track the table."""
    with pytest.raises(DatabaseRefused, match="untold") as caught:
        await live.watch("untold").first()
    refusal = {"relation": "untold", "hint": "rowcast track untold", "sqlstate": "55000"}
    assert caught.value.details == refusal
    with pytest.raises(DatabaseRefused, match="untold") as caught:
        await live.watch("people", tables=["untold"]).first()
    assert caught.value.details == {"path": "tables.0", **refusal}


@pytest_twisted.ensureDeferred
async def test_watch_of_what_cannot_be_tracked_is_refused_with_a_way_out(live: Live) -> None:
    """`rowcast track` would refuse a view, and a materialized one."""
    with pytest.raises(DatabaseRefused, match="stored are not logged") as caught:
        await live.watch("stored").first()
    hint = "watch a view of the same query, and track the tables under that"
    assert caught.value.details["hint"] == hint
    with pytest.raises(DatabaseRefused, match="crew are not logged") as caught:
        await live.watch("people", tables=["crew"]).first()
    assert caught.value.details["hint"] == "track the tables under it"


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [({"since": 1}, "since"), ({"limits": 1}, "limits"), ({"where": {"nme": 1}}, "where.nme")],
)
@pytest_twisted.ensureDeferred
async def test_watch_without_progressive_results_is_refused_for_its_arguments_first(
    live: Live, kwargs: dict[str, Any], path: str
) -> None:
    """Check that a caller learns about a wrong argument before it asks for progressive results."""
    refused = await failure_of(live.served.call("people.watch", **kwargs))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
    refused = await failure_of(live.served.call("people.watch"))
    assert isinstance(refused, InvalidArgument)
    assert "receive_progress" in refused.details["hint"]


@pytest_twisted.ensureDeferred
async def test_identical_watches_share_one_query(dsn: str, live: Live) -> None:
    """A later one receives the present rows, and both receive changes; nothing remains when both have ended."""
    first = live.watch("people", where={"team": 1})
    await first.first()
    execute(dsn, "UPDATE people SET name = 'x' WHERE id = 2")
    second = live.watch("people", where={"team": 1})
    other = live.watch("people", where={"team": 2})
    for each in (first, second, other):
        await each.first()
    assert live.watches.stats()["queries"] == 2
    execute(dsn, "UPDATE people SET name = 'y' WHERE id = 4")
    for each in (first, second, other):
        await each.same()
    for each in (first, second, other):
        await each.cancel()
    stats = live.watches.stats()
    assert {stats[name] for name in ("watches", "queries", "rows")} == {0}


@pytest_twisted.ensureDeferred
async def test_rows_over_the_limit_are_too_large(dsn: str, live: Live) -> None:
    """Both at the beginning, and when the limit is exceeded later."""
    watcher = live.watch("people")
    await watcher.first()
    execute(dsn, "INSERT INTO people SELECT n FROM generate_series(100, 150) n")
    await until(lambda: watcher.error is not None)
    assert isinstance(watcher.error, TooLarge)
    with pytest.raises(TooLarge):
        await live.watch("people").first()
    window = live.watch("people", limit=50)
    assert len((await window.first()).rows) == 50


@pytest_twisted.ensureDeferred
async def test_watches_over_the_limit_are_refused(live: Live) -> None:
    """The limit is per session."""
    ann, bob = (Caller(each, None, None, "realm1") for each in (1, 2))
    watchers = [live.watch("people", ann, limit=n) for n in range(5)]
    for each in watchers:
        await each.first()
    with pytest.raises(Unavailable, match="5 watches"):
        await live.watch("people", ann).first()
    await live.watch("people", bob).first()
    await watchers[0].cancel()
    await live.watch("people", ann).first()


@pytest_twisted.ensureDeferred
async def test_watch_has_only_the_rows_that_the_role_may_read(dsn: str) -> None:
    """Rows enter and leave when another table, which the policy reads, changes."""
    execute(dsn, BEFORE_EACH)
    roles = Roles({"user": "watch_reader"})
    ann, bob = (Caller(n, name, "user", "realm1") for n, name in enumerate(("ann", "bob")))
    async with living(dsn, roles=roles) as live:
        watchers = [live.watch("mine", who) for who in (ann, bob)]
        assert [row["id"] for row in (await watchers[0].first()).values] == [1, 3]
        assert [row["id"] for row in (await watchers[1].first()).values] == [2]
        execute(dsn, "UPDATE mine SET owner = 'bob' WHERE id = 3")
        for each in watchers:
            await each.same()
        execute(dsn, "DELETE FROM members WHERE who = 'ann'")
        await until(lambda: not watchers[0].copy.rows)
        assert watchers[0].messages[-1]["leave"] == [1]
        execute(dsn, "INSERT INTO members VALUES ('ann')")
        await watchers[0].same()
        assert watchers[0].copy.resets == 0


@asynccontextmanager
async def step_held(
    dsn: str, tx: bool = False, **limits: int
) -> AsyncIterator[tuple[Live, list[Watcher]]]:
    """Serve two watches of one session with pending rows; one has started to receive them, and is held."""
    execute(dsn, BEFORE_EACH + "INSERT INTO notes SELECT 'n', n FROM generate_series(1, 1200) n")
    async with living(dsn, WatchLimits(rows=5000, **limits)) as live:
        mine = replace(ANYONE, session=1)
        both = [
            live.watch("notes", caller=mine, tx=tx, where={"weight": {"gt": least}})
            for least in (0, 0.01)
        ]
        for each in both:
            await each.first()
            each.hold()
            each.messages.clear()
        try:
            execute(dsn, "ALTER TABLE notes ADD extra int")  # so that all rows are sent to both
            await live.served.catch_up()
            await until(lambda: any(each.messages for each in both))
            yield live, sorted(both, key=lambda each: not each.messages)
        finally:
            execute(dsn, "ALTER TABLE notes DROP extra")


@pytest_twisted.ensureDeferred
async def test_step_is_ended_although_its_last_watch_has_left(dsn: str) -> None:
    """Another watch then receives the message that ends the step."""
    async with step_held(dsn) as (_, (sent, waits)):
        assert waits.messages == []
        await waits.cancel()
        sent.release()
        await until(lambda: sent.messages[-1].get("step"))
        assert sent.messages[-1]["position"] == sent.messages[0]["position"]


@pytest_twisted.ensureDeferred
async def test_step_is_ended_although_its_remaining_watches_are_reset(dsn: str) -> None:
    """While the step was sent, the queue has overflowed, and the last watch of the step has left."""
    async with step_held(dsn, max_bytes=1 << 20) as (_, (sent, waits)):
        execute(dsn, "INSERT INTO notes VALUES (repeat('long', 150000), 1)")
        await until(lambda: watch_of(sent).base is None)
        await waits.cancel()
        sent.release()
        await until(lambda: any(each.get("step") for each in sent.messages))
        end = next(each for each in sent.messages if each.get("step"))
        assert (end["type"], end["position"]) == ("alive", sent.messages[0]["position"])
        await until(lambda: len(sent.copy.values) == 1204)


@pytest_twisted.ensureDeferred
async def test_transaction_is_covered_by_no_step_from_before_it(dsn: str) -> None:
    """The transaction commits while the step is being sent."""
    async with step_held(dsn, tx=True) as (live, both):
        insert = "INSERT INTO notes VALUES ('c', 2) RETURNING pg_current_xact_id()::text"
        ((tx,),) = execute(dsn, insert)
        live.watches.wrote(1, str(tx))
        await until(lambda: all(watch_of(each).covered for each in both))
        for each in both:
            each.release()
        for each in both:
            await until(lambda each=each: any("covers" in message for message in each.messages))
            (end,) = [message for message in each.messages if "covers" in message]
            position = parse_position(end["position"])
            assert isinstance(position, SnapshotPosition)
            assert position.snapshot.sees(int(str(tx)))


SLEEPING = (
    "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


@pytest_twisted.ensureDeferred
async def test_slow_first_run_delays_no_other_watch(dsn: str) -> None:
    """Neither other sessions nor watches of its own session wait; afterwards it has their position."""
    execute(
        dsn,
        BEFORE_EACH + "CREATE OR REPLACE FUNCTION slow() RETURNS SETOF teams STABLE LANGUAGE sql"
        " AS 'SELECT t.* FROM teams t, pg_sleep(1)'",
    )
    async with living(dsn, limits=WatchLimits(timeout=20)) as live:
        mine, others = (replace(ANYONE, session=number) for number in (1, 2))
        quick = [live.watch("notes", caller=each) for each in (mine, others)]
        for each in quick:
            await each.first()
        slow = live.watch("fn.slow", caller=mine)
        await until(lambda: execute(dsn, SLEEPING))
        execute(dsn, "INSERT INTO notes VALUES ('c', 2)")
        await until(lambda: all(len(each.messages) == 2 for each in quick))
        assert execute(dsn, SLEEPING)
        assert slow.messages == []
        # writes before its rows arrive are in these rows
        execute(dsn, "UPDATE teams SET name = 'later' WHERE id = 1; DELETE FROM notes")
        await slow.first()
        await slow.same()
        for each in quick:
            await each.same()
        assert slow.copy.resets == 0


@pytest_twisted.ensureDeferred
async def test_query_that_begins_while_rows_change_has_the_changed_rows(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes between its first run and the first cycle that includes it are not lost."""
    execute(dsn, BEFORE_EACH)
    async with living(dsn) as live:
        one = live.watch("notes")
        await one.first()
        run_alone, writes = Cycle.run_alone, iter(range(100))

        def delayed(cycle: Cycle, orders: Any) -> Any:
            def write(outcome: Outcome) -> Outcome:
                number = next(writes)
                execute(
                    dsn,
                    f"UPDATE teams SET name = 'n{number}' WHERE id = 1; "
                    f"DELETE FROM teams WHERE id = {899 + number}; INSERT INTO teams VALUES ({900 + number}, 'new')",
                )
                return outcome

            return run_alone(cycle, orders).addCallback(write)

        monkeypatch.setattr(Cycle, "run_alone", delayed)
        for query in (
            {},
            {"order": ["name"]},
            {"order": ["-id"], "limit": 2},
            {"distinct": True, "select": ["name"]},
        ):
            watcher = live.watch("teams", **query)
            first = await watcher.first()
            assert first.values
            await watcher.same()
            await watcher.cancel()
        assert next(writes) >= 4


@pytest.mark.parametrize(
    "change", ["TRUNCATE notes", "ALTER TABLE notes ALTER body TYPE varchar USING body || ''"]
)
@pytest_twisted.ensureDeferred
async def test_table_rewritten_during_a_cycle_keeps_its_rows(dsn: str, change: str) -> None:
    """Rewriting is not MVCC-safe: to the snapshot of the cycle the table looks empty although it was not."""
    execute(
        dsn,
        BEFORE_EACH + "ALTER TABLE notes ALTER body TYPE text;"
        "CREATE OR REPLACE FUNCTION slow() RETURNS SETOF teams STABLE LANGUAGE sql"
        " AS 'SELECT t.* FROM teams t, pg_sleep(0.5)'",
    )
    async with living(dsn) as live:
        slow, watcher = live.watch("fn.slow"), live.watch("notes")
        await slow.first()
        await watcher.first()
        for query in live.watches._queries.values():  # the slow query runs first, without a rest
            query.run.duration = 0.0 if query.run.shape.guarded else 0.05
            query.run.until = 0.0
        connection = psycopg2.connect(dsn)  # connecting takes time, too
        execute(dsn, "UPDATE teams SET name = 'x' WHERE id = 1; INSERT INTO notes VALUES ('c', 2)")
        await until(lambda: execute(dsn, SLEEPING))
        with connection, connection.cursor() as rows:
            rows.execute(f"{change}; SELECT pg_current_xact_id()::text::bigint")
            ((xid,),) = rows.fetchall()
        connection.close()
        await until(lambda: len(watcher.messages) > 1)
        position = parse_position(watcher.messages[1]["position"])
        assert isinstance(position, SnapshotPosition)
        assert position.snapshot.sees(xid)
        assert bool(watcher.copy.rows) == change.startswith("ALTER")
        await watcher.same()
        await slow.same()


@pytest_twisted.ensureDeferred
async def test_function_with_opaque_body_is_run_again_after_changes_of_tracked_tables(
    dsn: str, live: Live
) -> None:
    """Without `tables`, a change of any tracked table runs it again; with `tables`, only changes of these."""
    execute(
        dsn,
        "CREATE OR REPLACE FUNCTION hidden_read() RETURNS SETOF teams STABLE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN QUERY SELECT * FROM teams; END'",
    )
    await live.served.dispatcher.refresh()
    every, named = live.watch("fn.hidden_read"), live.watch("fn.hidden_read", tables=["teams"])
    wrong = live.watch("fn.hidden_read", tables="seats")
    for each in (every, named, wrong):
        await each.first()
    execute(dsn, "UPDATE teams SET name = 'changed' WHERE id = 1")
    await every.same()
    await named.same()
    execute(dsn, "UPDATE seats SET taken = NOT taken")
    await wrong.same()  # only now
    for name, error in (("nothing", UnknownName), ("untold", DatabaseRefused)):
        for query in ("fn.hidden_read", "teams"):
            with pytest.raises(error):
                await live.watch(query, tables=[name]).first()


@pytest_twisted.ensureDeferred
async def test_function_that_may_write_is_not_watched(dsn: str, live: Live) -> None:
    """A watched function runs repeatedly, and would repeat its writes."""
    execute(
        dsn,
        "CREATE OR REPLACE FUNCTION writes() RETURNS SETOF teams LANGUAGE sql AS 'SELECT * FROM teams'",
    )
    await live.served.dispatcher.refresh()
    with pytest.raises(InvalidArgument, match="may write"):
        await live.watch("fn.writes").first()


@pytest_twisted.ensureDeferred
async def test_transaction_already_in_the_rows_is_covered_at_once(dsn: str) -> None:
    """If the result of a write arrives after the delta that shows it, no further cycle is awaited."""
    execute(dsn, BEFORE_EACH)
    async with living(dsn, poll=60) as live:
        watcher = live.watch("people", caller=Caller(7, "ann", "ann", "realm1"), tx=True)
        await watcher.first()
        insert = "INSERT INTO people VALUES (50) RETURNING pg_current_xact_id()::text"
        ((tx,),) = execute(dsn, insert)
        live.watches.wake()
        await until(lambda: watcher.messages[-1]["type"] == "delta")
        live.watches.wrote(7, str(tx))
        assert watcher.messages[-1]["covers"] == [tx]


WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"


@pytest_twisted.ensureDeferred
async def test_slow_query_that_runs_again_delays_no_other_session(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All watches of its own session move to one commit together, when its rows have been read."""
    monkeypatch.setattr(cycle, "LOCK_TIMEOUT", math.inf)  # reads wait for the lock that holds them
    execute(
        dsn,
        BEFORE_EACH + "CREATE OR REPLACE FUNCTION slow() RETURNS SETOF teams STABLE LANGUAGE sql"
        " AS 'SELECT t.* FROM teams t, pg_sleep(0.2), pg_advisory_xact_lock_shared(7)'",
    )
    lock = psycopg2.connect(dsn)
    async with living(dsn, limits=WatchLimits(timeout=20)) as live:
        mine, others = (replace(ANYONE, session=number) for number in (1, 2))
        slow = live.watch("fn.slow", caller=mine, tables=["teams"])
        beside, quick = (live.watch("notes", caller=each) for each in (mine, others))
        for each in (slow, beside, quick):
            await each.first()
        for word in ("first", "second"):
            lock.cursor().execute("SELECT pg_advisory_xact_lock(7)")
            for run in live.watches._runs:
                run.until = 0.0  # as if its rest were over
            execute(
                dsn,
                f"BEGIN; UPDATE teams SET name = '{word}' WHERE id = 1;"
                f" INSERT INTO notes VALUES ('{word}', 3); COMMIT",
            )
            await until(lambda: execute(dsn, WAITING))
            for each in (slow, beside):
                each.messages.clear()
            for number in range(3):
                execute(dsn, f"INSERT INTO notes VALUES ('{word}', {number})")
                await quick.same()
            assert execute(dsn, WAITING)
            assert slow.messages == beside.messages == []
            lock.rollback()
            await until(lambda: slow.messages and beside.messages)
            # at one commit, without later changes of the notes
            first, other = slow.messages[0], beside.messages[0]
            assert first["position"].split("~")[0] == other["position"].split("~")[0]
            assert ("step" in first) != ("step" in other)
            assert [row["name"] for row in first["enter"]] == [word]
            assert [row["weight"] for row in other["enter"]] == [3]
            await slow.same()
            await beside.same()
        assert slow.copy.resets == beside.copy.resets == quick.copy.resets == 0
    lock.close()
