"""
Live queries that resume at a position: by the log if it suffices, otherwise with a reset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from schema import changes
from service.api.roles import Roles
from service.changes import invalidation, positions
from service.changes.positions import parse_position
from service.changes.queries import WatchLimits
from service.changes.watchers import Watch
from service.db.session_settings import SessionSettings, open_session
from service.db.transaction import begin_statement
from service.errors import InvalidArgument
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.watched import Live, living
from tests.deferreds import until

SCHEMA = f"""
{changes.install()}
CREATE TABLE people (id int PRIMARY KEY, team int, name text, secret text);
CREATE TABLE pairs (a text, b date, n int, PRIMARY KEY (a, b));
CREATE TABLE badges (id int PRIMARY KEY, person int REFERENCES people ON DELETE CASCADE, kind text);
CREATE ROLE resume_reader;
GRANT SELECT (id, team, name) ON people TO resume_reader;
SELECT rowcast.track(t) FROM unnest('{{people,pairs,badges}}'::regclass[]) t;
"""

BEFORE_EACH = """
DELETE FROM badges; DELETE FROM people; DELETE FROM pairs;
INSERT INTO people SELECT n, n % 3, 'p' || n FROM generate_series(1, 9) n;
INSERT INTO badges SELECT n, n, 'b' || n FROM generate_series(1, 9) n;
INSERT INTO pairs VALUES ('x', '2026-01-01', 1), ('x', '2026-01-02', 2);
"""


@pytest.fixture(autouse=True)
def consecutive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number epochs from 1 on, without gaps."""
    monkeypatch.setattr(positions, "EPOCHS", 1)


@pytest_twisted.async_yield_fixture
async def live(dsn: str) -> AsyncIterator[Live]:
    """Serve the module's database with its initial rows."""
    execute(dsn, BEFORE_EACH)
    async with living(dsn, WatchLimits()) as found:
        yield found


MISSED = """
UPDATE people SET team = 1 WHERE id = 2;
UPDATE people SET team = 2 WHERE id = 1;
UPDATE people SET name = 'x' WHERE id = 4;
DELETE FROM people WHERE id = 7;
INSERT INTO people VALUES (20, 1, 'new'), (21, 2, 'other');
UPDATE people SET id = 50 WHERE id = 20;
"""


@pytest.mark.parametrize("order", [None, ["-name"], ["team", "name"]])
@pytest_twisted.ensureDeferred
async def test_resumed_watch_receives_only_the_missed_changes(
    dsn: str, live: Live, order: list[str] | None
) -> None:
    """The query reads one table, and the service has no state of the earlier watch."""
    asked = {"where": {"team": 1}} | ({"order": order} if order else {})
    watcher = live.watch("people", **asked)
    await watcher.first()
    await watcher.cancel()
    execute(dsn, MISSED)
    async with living(dsn, WatchLimits()) as other:
        again = await watcher.resumed(other)
        await again.same()
        (first,) = again.messages
        assert first["enter"] == []
        assert {row["id"] for row in first["update"]} == {2, 4, 50}
        # not of row 21, which was never in this team
        assert set(first["leave"]) == {1, 7, 20}
        assert again.copy.resets == 0
        assert again.copy.checksum() == first["checksum"]
        execute(dsn, "UPDATE people SET name = 'z' WHERE id = 2")
        await again.same()


@pytest_twisted.ensureDeferred
async def test_resumed_watch_of_composite_keys_receives_the_missed_changes(
    dsn: str, live: Live
) -> None:
    """Keys are in wire form: dates are strings."""
    watcher = live.watch("pairs", select=["n"])
    await watcher.first()
    execute(dsn, "UPDATE pairs SET n = 9 WHERE n = 1; DELETE FROM pairs WHERE n = 2")
    await watcher.same()
    old = await watcher.resumed()
    await old.same()
    await old.cancel()
    execute(dsn, "INSERT INTO pairs VALUES ('y', '2026-02-01', 3); DELETE FROM pairs WHERE a = 'x'")
    again = await old.resumed()
    await again.same()
    assert again.messages[0]["leave"] == [["x", "2026-01-01"]]
    assert again.messages[0]["keys"] == {"enter": [], "update": [["y", "2026-02-01"]]}


@pytest.mark.parametrize(
    "asked",
    [
        {"embed": {"badges": {"order": ["id"]}}, "where": {"team": 1}},
        {"where": {"badges.kind": {"lt": "b5"}}},
        {"measures": {"n": {"count": "*"}}, "group": ["team"]},
    ],
)
@pytest_twisted.ensureDeferred
async def test_resumed_watch_of_related_rows_and_groups_receives_the_missed_changes(
    dsn: str, live: Live, asked: dict[str, Any]
) -> None:
    """The relationships lead from the changed rows to the rows of the query."""
    watcher = live.watch("people", **asked)
    await watcher.first()
    await watcher.cancel()
    execute(dsn, "UPDATE badges SET person = 4 WHERE id = 1; DELETE FROM badges WHERE id = 7")
    execute(
        dsn, "INSERT INTO badges VALUES (20, 9, 'a'); UPDATE badges SET kind = 'z' WHERE id = 2"
    )
    execute(dsn, MISSED)
    again = await watcher.resumed()
    await again.same()
    assert again.copy.resets == 0
    assert len(again.messages[0]["update"]) < 8


@pytest_twisted.ensureDeferred
async def test_resumed_watch_of_groups_of_referenced_rows_receives_the_missed_changes(
    dsn: str, live: Live
) -> None:
    execute(dsn, "UPDATE people SET team = 5 WHERE id = 9")
    group = ["team:people.team"]
    watcher = live.watch("badges", measures={"n": {"count": "*"}}, group=group)
    await watcher.first()
    await watcher.cancel()
    execute(dsn, "UPDATE badges SET person = 2 WHERE id = 1")
    execute(dsn, "UPDATE people SET team = 7 WHERE id = 3")
    again = await watcher.resumed()
    await again.same()
    assert again.copy.resets == 0
    assert {row["team"] for row in again.messages[0]["update"]} == {0, 1, 2, 7}


@pytest_twisted.ensureDeferred
async def test_resumed_watch_without_changes_receives_an_empty_delta(dsn: str, live: Live) -> None:
    """This includes windows and groups, because nothing that they read has changed."""
    for asked in ({"limit": 2, "order": ["name"]}, {"measures": {"n": {"count": "*"}}}, {}):
        watcher = live.watch("people", **asked)
        await watcher.first()
        execute(dsn, "UPDATE pairs SET n = n + 1")
        again = await watcher.resumed()
        await again.first()
        (first,) = again.messages
        assert (first["enter"], first["update"], first["leave"]) == ([], [], [])
        assert first["step"] is True
        assert again.copy.resets == 0


@pytest_twisted.ensureDeferred
async def test_resumed_watch_receives_all_rows_if_the_log_does_not_suffice(
    dsn: str, live: Live
) -> None:
    """Windows, distinct rows, truncated tables, and positions whose log was pruned."""
    for asked, write in (
        ({"limit": 2, "order": ["name"]}, "UPDATE people SET name = 'a' WHERE id = 9"),
        ({"distinct": True, "select": ["team"]}, "DELETE FROM people WHERE id = 1"),
        ({}, "BEGIN; TRUNCATE people CASCADE; INSERT INTO people VALUES (3); COMMIT"),
        (
            {"where": {"id": 3}},
            "SELECT rowcast.reset(id) FROM rowcast.tracked WHERE name = 'public.people'",
        ),
    ):
        watcher = live.watch("people", **asked)
        await watcher.first()
        await watcher.cancel()
        execute(dsn, write)
        again = await watcher.resumed()
        await again.same()
        assert again.messages[0].get("reset") is True
        assert again.copy.resets == 1
        await again.cancel()


@pytest.mark.parametrize("between", ["; ", None], ids=["in one transaction", "one by one"])
@pytest_twisted.ensureDeferred
async def test_rows_written_while_a_table_was_not_tracked_reach_watches(
    dsn: str, live: Live, between: str | None
) -> None:
    """They reach a running watch and a resumed one."""
    lasting, left = live.watch("people"), live.watch("people", where={"team": 1})
    await lasting.first()
    await left.first()
    await left.cancel()
    gap = (
        "SELECT rowcast.untrack('people')",
        "UPDATE people SET name = 'in the gap' WHERE id = 4",
        "SELECT rowcast.track('people')",
    )
    for each in gap if between is None else [between.join(gap)]:
        execute(dsn, each)
    again = await left.resumed()
    await again.same()
    await live.served.catch_up()  # the service loads that it is tracked
    await lasting.same()


@pytest_twisted.ensureDeferred
async def test_watch_at_a_pruned_or_foreign_position_is_reset(dsn: str, live: Live) -> None:
    """No change is ever omitted silently."""
    watcher = live.watch("people")
    await watcher.first()
    await watcher.cancel()
    mark = watcher.copy.position.partition("~")[2]
    xmax = int(execute(dsn, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])
    for since in (
        f"7.{xmax}:{xmax}:~{mark}",
        f"0.{xmax}:{xmax}:~{mark}",
        f"1.{xmax + 5}:{xmax + 5}:~{mark}",
        f"1.{xmax}:{xmax}:~{'0' * 16}",
        "1.9.1",
    ):
        again = live.watch("people", since=since)
        await again.first()
        assert again.messages[0]["reset"] is True, since
    try:
        watcher.copy.position = f"1.{xmax}:{xmax}:~{mark}"
        again = await watcher.resumed()
        await again.first()
        assert again.copy.resets == 0
        await again.cancel()
        execute(dsn, f"UPDATE rowcast.epochs SET pruned_below = '{xmax + 1}'")
        pruned = live.watch("people", since=f"1.{xmax}:{xmax}:~{mark}")
        await pruned.first()
        assert pruned.copy.resets == 1
    finally:
        execute(dsn, "UPDATE rowcast.epochs SET pruned_below = '3'")
    with pytest.raises(InvalidArgument, match="not a position"):
        await live.watch("people", since="yesterday").first()


@pytest_twisted.ensureDeferred
async def test_resumed_watch_with_changed_rights_receives_all_rows(dsn: str) -> None:
    """A grant in between changes what the caller may see; a new session alone does not."""
    execute(dsn, BEFORE_EACH)
    roles = Roles({"user": "resume_reader"})
    ann = Caller(1, "ann", "user", "realm1")
    async with living(dsn, WatchLimits(), roles=roles) as live:
        watcher = live.watch("people", ann)
        assert "secret" not in (await watcher.first()).values[0]
        again = await watcher.resumed(caller=Caller(2, "ann", "user", "realm1"))
        await again.first()
        assert again.copy.resets == 0
        other = await again.resumed(caller=Caller(3, "bob", "user", "realm1"))
        await other.first()
        assert other.copy.resets == 1
        await other.cancel()
        execute(dsn, "GRANT SELECT ON people TO resume_reader")
        await live.served.dispatcher.refresh()
        more = await other.resumed()
        await more.same()
        assert more.copy.resets == 1
        assert "secret" in more.copy.values[0]
        execute(dsn, "REVOKE SELECT ON people FROM resume_reader")
        execute(dsn, "GRANT SELECT (id, team, name) ON people TO resume_reader")


@pytest.mark.parametrize(
    "condition",
    [
        "current_setting('rowcast.session', true) <> '9'",
        "session_is_not('9')",
        "plain_session_is_not('9')",
    ],
)
@pytest_twisted.ensureDeferred
async def test_resumed_watch_under_a_policy_that_reads_the_session_receives_all_rows(
    dsn: str, condition: str
) -> None:
    """The policy reads the session itself, or in a function whose body may or may not be readable."""
    execute(
        dsn,
        "CREATE TABLE own (id int PRIMARY KEY); GRANT SELECT ON own TO resume_reader;"
        "INSERT INTO own VALUES (1); SELECT rowcast.track('own');"
        "CREATE FUNCTION session_is_not(t text) RETURNS bool LANGUAGE sql STABLE SECURITY DEFINER"
        " BEGIN ATOMIC SELECT current_setting('rowcast.session', true) <> t; END;"
        "CREATE FUNCTION plain_session_is_not(t text) RETURNS bool LANGUAGE plpgsql STABLE"
        " AS $$ BEGIN RETURN current_setting('rowcast.session', true) <> t; END $$;"
        f"ALTER TABLE own ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON own USING ({condition})",
    )
    try:
        roles = Roles({"user": "resume_reader"})
        async with living(dsn, WatchLimits(), roles=roles) as live:
            watcher = live.watch("own", Caller(1, "ann", "user", "realm1"))
            assert len((await watcher.first()).values) == 1
            same = await watcher.resumed()
            await same.first()
            assert same.copy.resets == 0
            other = await same.resumed(caller=Caller(9, "ann", "user", "realm1"))
            await other.same()
            assert (other.copy.values, other.copy.resets) == ([], 1)
            await other.cancel()
    finally:
        execute(dsn, "DROP TABLE own; DROP FUNCTION session_is_not, plain_session_is_not")


@pytest_twisted.ensureDeferred
async def test_resumed_watch_under_a_policy_reveals_no_keys_of_hidden_rows(dsn: str) -> None:
    """Leaving keys would reveal that hidden rows exist, so the watch is reset instead."""
    execute(
        dsn,
        """
        DROP TABLE IF EXISTS letters; DROP ROLE IF EXISTS resume_owner;
        CREATE TABLE letters (id text PRIMARY KEY, owner text);
        INSERT INTO letters VALUES ('a1', 'ann'), ('b1', 'bob'), ('b2', 'bob');
        SELECT rowcast.track('letters');
        CREATE ROLE resume_owner; GRANT SELECT ON letters TO resume_owner;
        ALTER TABLE letters ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own ON letters USING (owner = current_setting('rowcast.authid', true));
        """,
    )
    ann = Caller(1, "ann", "user", "realm1")
    async with living(dsn, WatchLimits(), roles=Roles({"user": "resume_owner"})) as live:
        watcher = live.watch("letters", ann)
        await watcher.first()
        await watcher.cancel()
        idle = await watcher.resumed()
        await idle.first()
        assert idle.copy.resets == 0
        await idle.cancel()
        execute(
            dsn, "UPDATE letters SET id = 'b3' WHERE id = 'b2'; DELETE FROM letters WHERE id = 'b1'"
        )
        execute(dsn, "INSERT INTO letters VALUES ('a2', 'ann')")
        again = await watcher.resumed()
        await again.same()
        assert [row["id"] for row in again.copy.values] == ["a1", "a2"]
        assert again.copy.resets == 1
        assert not any("leave" in message for message in again.messages)


@pytest_twisted.ensureDeferred
async def test_only_the_newest_positions_of_a_caller_are_resolved(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest are resolved: these belong to callers who have just lost their connection."""
    monkeypatch.setattr(invalidation, "MOST_MISSED", 1)
    watcher = live.watch("people")
    await watcher.first()
    old = parse_position(watcher.copy.position)
    execute(dsn, "UPDATE people SET name = 'x' WHERE id = 1")
    await watcher.same()
    new = parse_position(watcher.copy.position)
    execute(dsn, "UPDATE people SET name = 'y' WHERE id = 2")
    (run,) = live.watches._runs
    connection = open_session(dsn, SessionSettings())
    connection.begin(begin_statement("repeatable read", read_only=True))
    missed = invalidation.MissedChanges([run])
    missed.read_txn(connection, {old, new})
    assert missed.keys_txn(connection, run, new) == [2]
    assert missed.keys_txn(connection, run, old) is None
    connection.close()


@pytest_twisted.ensureDeferred
async def test_position_of_another_history_resets_before_its_epoch_begins(
    dsn: str, live: Live
) -> None:
    """As after a promotion that lost commits: the same transaction ids then stand for other transactions."""
    watcher = live.watch("people")
    await watcher.first()
    await watcher.cancel()
    execute(dsn, "UPDATE rowcast.epochs SET timeline = timeline + 1")
    try:
        again = await watcher.resumed()
        await again.first()
        assert again.messages[0]["reset"] is True
        await again.cancel()
    finally:
        execute(dsn, "UPDATE rowcast.epochs SET timeline = timeline - 1")


@pytest_twisted.ensureDeferred
async def test_position_stays_valid_after_a_promotion_without_loss_of_commits(
    dsn: str, live: Live
) -> None:
    watcher = live.watch("people")
    await watcher.first()
    await watcher.cancel()
    execute(
        dsn,
        "INSERT INTO rowcast.ticks VALUES (2, 1, pg_current_snapshot(), 0);"
        "UPDATE rowcast.epochs SET timeline = timeline - 1;"
        "INSERT INTO rowcast.epochs SELECT 2, system, timeline + 1, 3, '3' FROM rowcast.epochs",
    )
    try:
        execute(dsn, "UPDATE people SET name = 'x' WHERE id = 1")
        again = await watcher.resumed()
        await again.same()
        assert again.copy.resets == 0
        assert again.copy.position.startswith("2.")
        assert [row["id"] for row in again.messages[0]["update"]] == [1]
        await again.cancel()
    finally:
        execute(
            dsn,
            "DELETE FROM rowcast.epochs WHERE epoch = 2; DELETE FROM rowcast.ticks WHERE tick > 1;"
            "UPDATE rowcast.epochs SET timeline = timeline + 1",
        )


@pytest_twisted.ensureDeferred
async def test_position_of_an_event_resumes_from_the_tick_before(dsn: str, live: Live) -> None:
    """So no change of the event's own tick is missed."""
    watcher = live.watch("people")
    await watcher.first()
    await watcher.cancel()
    execute(dsn, "INSERT INTO rowcast.ticks VALUES (2, 1, pg_current_snapshot(), 0)")
    try:
        execute(dsn, "UPDATE people SET name = 'x' WHERE id = 1")
        execute(dsn, "INSERT INTO rowcast.ticks VALUES (3, 1, pg_current_snapshot(), 1)")
        execute(dsn, "UPDATE people SET name = 'y' WHERE id = 2")
        watcher.copy.position = "1.3.1"
        again = await watcher.resumed()
        await again.same()
        assert again.copy.resets == 0
        assert {row["id"] for row in again.messages[0]["update"]} == {1, 2}
        await again.cancel()
    finally:
        execute(dsn, "DELETE FROM rowcast.ticks WHERE tick > 1")


@pytest_twisted.ensureDeferred
async def test_equal_rows_leave_a_resumed_watch_one_by_one(dsn: str) -> None:
    """This also holds while another watch of the session waits for its rows."""
    execute(
        dsn,
        """
        DROP TABLE IF EXISTS bare CASCADE;
        CREATE TABLE bare (a int); INSERT INTO bare VALUES (1), (1), (1);
        SELECT rowcast.track('bare');
        CREATE OR REPLACE FUNCTION slow() RETURNS SETOF pairs STABLE LANGUAGE sql
            AS 'SELECT p.* FROM pairs p, pg_sleep(0.3)';
        """,
    )
    session = Caller(7, None, None, "realm1")
    async with living(dsn, WatchLimits()) as live:
        watcher = live.watch("bare", session)
        await watcher.first()
        await watcher.cancel()
        again = await watcher.resumed()
        slow = live.watch("fn.slow", session)
        await until(lambda: live.watches.stats()["rows"])
        execute(dsn, "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare)")
        await slow.first()
        await again.same()
        assert again.copy.values == [{"a": 1}, {"a": 1}]


@pytest.mark.parametrize("found", [False, True])
@pytest_twisted.ensureDeferred
async def test_resumed_watch_that_restarts_before_its_first_message_is_reset(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    """For example when a column is added meanwhile: the caller still has rows."""
    caller, other = Caller(2, None, None, "realm1"), live.watch("people")
    watcher, sibling = live.watch("people", caller), live.watch("pairs", caller)
    for each in (other, watcher, sibling):
        await each.first()
    await watcher.cancel()
    execute(dsn, "UPDATE people SET name = name || '.' WHERE id = 1")
    await other.same()
    again = await watcher.resumed()
    await until(lambda: len(watches_of(live, caller)) == 2)
    _, watch = watches_of(live, caller)
    monkeypatch.setattr(watch.session, "send_steps", lambda: None)
    if found:
        await until(lambda: watch.touched)
        execute(dsn, "UPDATE people SET name = name || '!' WHERE id = 2")
        await other.same()
    assert not again.messages
    watch.start_over()
    await until(lambda: watch.rows is not None)
    monkeypatch.undo()
    watch.session.schedule(watch)
    watch.session.send_steps()
    await again.same()
    assert again.messages[0].get("reset") is True


def watches_of(live: Live, caller: Caller) -> tuple[Watch, ...]:
    """Return the watches of a session, in the order of their calls."""
    return live.watches._sessions[caller.session].members
