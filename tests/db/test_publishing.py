"""
The events of changes, and their audiences.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater

from schema.changes import install
from service.api.roles import Roles
from service.changes.net import Change
from service.changes.topics import Topics, rights_txn
from service.db.database import Database
from service.db.session_settings import SessionSettings, open_session
from service.payload import Audience, Publication
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.served import database_at
from tests.db.ticks import Ticks
from tests.deferreds import until

SCHEMA = f"""
CREATE SCHEMA app;
CREATE SCHEMA apart;
CREATE ROLE reader; CREATE ROLE clerk; CREATE ROLE nobody;
CREATE TABLE actions (id int PRIMARY KEY, name text, price numeric, secret text);
COMMENT ON COLUMN actions.secret IS '@hidden';
CREATE TABLE coded (a text, b int, note text, PRIMARY KEY (b, a));
CREATE TABLE loose (a int, b text);
CREATE TABLE keyed (id int PRIMARY KEY, note text);
CREATE TABLE touchy (id int PRIMARY KEY);
CREATE TABLE stats (id int PRIMARY KEY);
CREATE TABLE veiled (id int PRIMARY KEY, owner text);
ALTER TABLE veiled ENABLE ROW LEVEL SECURITY;
CREATE TABLE buried (id int PRIMARY KEY);
COMMENT ON TABLE buried IS '@hidden';
CREATE TABLE marked (code text PRIMARY KEY, a int);
COMMENT ON COLUMN marked.code IS '@hidden';
CREATE TABLE app.actions (id int PRIMARY KEY, at timestamptz);
CREATE TABLE apart.things (id int PRIMARY KEY);
CREATE TABLE sold (day int, id int, n int, PRIMARY KEY (day, id)) PARTITION BY LIST (day);
CREATE TABLE sold_1 PARTITION OF sold FOR VALUES IN (1);
CREATE TABLE sold_2 PARTITION OF sold FOR VALUES IN (2);
{install()}
SELECT rowcast.track(name::regclass) FROM unnest('{{actions, coded, loose, stats, veiled, buried, marked,
    app.actions, apart.things, sold}}'::text[]) name;
SELECT rowcast.track('keyed', 'keys'), rowcast.track('touchy', 'touch');
GRANT SELECT ON actions, coded, veiled, touchy TO reader, clerk;
REVOKE SELECT ON actions FROM clerk;
GRANT SELECT (id, name) ON actions TO clerk;
GRANT USAGE ON SCHEMA app TO reader;
GRANT SELECT ON app.actions TO reader;
"""

BEFORE_EACH = """
TRUNCATE actions, coded, loose, keyed, touchy, stats, veiled, buried, marked, app.actions,
    apart.things, sold
"""


@dataclass
class Publishing:
    """Topics on a database, with a record of what they publish."""

    db: DirectCaller
    dsn: str
    ticks: Ticks
    max_bytes: int = 8 << 20
    unwanted: set[str] = field(default_factory=set)
    sent: list[Publication] = field(default_factory=list)
    asked: int = 0

    def topics(self, roles: Roles = Roles(), database: Database | None = None) -> Topics:  # noqa: B008 - frozen
        """Return topics that publish to this object."""
        return Topics(
            database or self.db.database,
            self.db.dispatcher,
            roles,
            "rowcast",
            self.max_bytes,
            self._send,
            self._wanted,
        )

    async def _wanted(self, heads: Collection[str]) -> Collection[str]:
        self.asked += 1
        return set(heads) - self.unwanted

    async def _send(self, publications: Sequence[Publication]) -> None:
        self.sent += publications

    async def changes(self, sql: str) -> list[Change]:
        """Run SQL, and return its changes in the log."""
        execute(self.dsn, sql)
        return self.ticks.next()

    async def of(self, sql: str, roles: Roles = Roles()) -> list[Publication]:  # noqa: B008 - frozen
        """Run SQL, and return its publications."""
        self.sent.clear()
        await self.topics(roles).publish(await self.changes(sql), succeed(None), {})
        return list(self.sent)

    async def events(self, sql: str, roles: Roles = Roles()) -> list[tuple[str, Any]]:  # noqa: B008 - frozen
        """Run SQL, and return topics and events, without fields that differ between runs."""
        found = []
        for each in await self.of(sql, roles):
            event = {key: value for key, value in each.event.items() if key not in VARYING}
            found.append((each.topic, event))
        return found


VARYING = {"position", "prev", "tx", "at", "last"}


@pytest_twisted.async_yield_fixture
async def publishing(db: DirectCaller, dsn: str) -> AsyncIterator[Publishing]:
    """Yield topics on the database, beginning after the present end of the log."""
    await db.catalogs.refresh()
    ticks = Ticks(dsn)
    yield Publishing(db, dsn, ticks)
    ticks.close()


served = pytest.mark.serving("public", "app")


@served
@pytest_twisted.ensureDeferred
async def test_insert_update_delete_have_topic_key_and_rows(publishing: Publishing) -> None:
    actions = {"schema": "public", "relation": "actions", "key": {"id": 42}}
    (insert,) = await publishing.of("INSERT INTO actions VALUES (42, 'a', 1.50, 'x')")
    assert insert.topic == "rowcast.actions.changed.insert.42"
    assert insert.audience == Audience()
    position, tx, at = insert.event["position"], insert.event["tx"], insert.event["at"]
    assert insert.event == {
        **actions,
        "op": "insert",
        "row": {"id": 42, "name": "a", "price": "1.50"},
        "old": None,
        "position": position,
        "prev": None,
        "tx": tx,
        "last": True,
        "at": at,
    }
    assert at.endswith("Z")
    assert await publishing.events("UPDATE actions SET price = 1.5, secret = 'y'") == [
        (
            "rowcast.actions.changed.update.42",
            {
                **actions,
                "op": "update",
                "row": {"id": 42, "name": "a", "price": "1.5"},
                "old": {"price": "1.50"},
            },
        )
    ]
    assert await publishing.events("DELETE FROM actions") == [
        (
            "rowcast.actions.changed.delete.42",
            {
                **actions,
                "op": "delete",
                "row": None,
                "old": {"id": 42, "name": "a", "price": "1.5"},
            },
        )
    ]


@served
@pytest_twisted.ensureDeferred
async def test_changed_key_is_a_delete_and_an_insert(publishing: Publishing) -> None:
    await publishing.of("INSERT INTO coded VALUES ('a,b', 1, 'n'), ('', 2, 'n')")
    assert {each.topic for each in publishing.sent} == {
        "rowcast.coded.changed.insert.1,a%2Cb",
        "rowcast.coded.changed.insert.2,",
    }
    found = await publishing.of("UPDATE coded SET b = 3 WHERE b = 1")
    assert sorted(each.topic for each in found) == [
        "rowcast.coded.changed.delete.1,a%2Cb",
        "rowcast.coded.changed.insert.3,a%2Cb",
    ]
    assert [each.event["key"] for each in found if each.event["op"] == "insert"] == [
        {"b": 3, "a": "a,b"}
    ]
    assert [each.event["last"] for each in found] == [False, True]
    assert len({each.event["tx"] for each in found}) == 1


@served
@pytest_twisted.ensureDeferred
async def test_relation_without_a_key_has_rows_and_no_key(publishing: Publishing) -> None:
    assert await publishing.events("INSERT INTO loose VALUES (1, 'x')") == [
        (
            "rowcast.loose.changed.insert.-",
            {
                "op": "insert",
                "schema": "public",
                "relation": "loose",
                "key": None,
                "row": {"a": 1, "b": "x"},
                "old": None,
            },
        )
    ]


@served
@pytest_twisted.ensureDeferred
async def test_truncate_and_reset_are_published_for_the_relation(publishing: Publishing) -> None:
    nothing = {"schema": "public", "relation": "actions", "key": None, "row": None, "old": None}
    assert await publishing.events("TRUNCATE actions") == [
        ("rowcast.actions.changed.truncate.-", {"op": "truncate", **nothing})
    ]
    reset = "SELECT rowcast.reset(id) FROM rowcast.tracked WHERE relation = 'actions'::regclass"
    assert await publishing.events(reset) == [
        ("rowcast.actions.changed.reset.-", {"op": "reset", **nothing})
    ]


@served
@pytest_twisted.ensureDeferred
async def test_level_keys_publishes_keys_and_level_touch_neither_keys_nor_rows(
    publishing: Publishing,
) -> None:
    keyed = {"schema": "public", "relation": "keyed", "key": {"id": 1}, "row": None, "old": None}
    assert await publishing.events("INSERT INTO keyed VALUES (1, 'a')") == [
        ("rowcast.keyed.changed.insert.1", {"op": "insert", **keyed})
    ]
    assert await publishing.events("UPDATE keyed SET note = 'b'") == [
        ("rowcast.keyed.changed.update.1", {"op": "update", **keyed})
    ]
    sql = "INSERT INTO touchy VALUES (1); INSERT INTO touchy VALUES (2)"
    (touched,) = await publishing.of(sql)
    assert touched.topic == "rowcast.touchy.touched"
    assert touched.event.keys() == {"relation", "position"}


@served
@pytest_twisted.ensureDeferred
async def test_relation_of_another_schema_or_of_a_reserved_name_is_qualified(
    publishing: Publishing,
) -> None:
    (event,) = await publishing.of("INSERT INTO app.actions VALUES (1, '2026-01-02 03:04+01')")
    assert event.topic == "rowcast.app.actions.changed.insert.1"
    assert event.event["row"] == {"id": 1, "at": "2026-01-02T02:04:00Z"}
    (event,) = await publishing.of("INSERT INTO stats VALUES (1)")
    assert event.topic == "rowcast.public.stats.changed.insert.1"


@served
@pytest_twisted.ensureDeferred
async def test_relation_that_is_hidden_or_not_served_is_not_published(
    publishing: Publishing,
) -> None:
    assert not await publishing.of("INSERT INTO buried VALUES (1)")
    assert not await publishing.of("INSERT INTO apart.things VALUES (1)")


@served
@pytest_twisted.ensureDeferred
async def test_key_with_a_hidden_column_is_not_published(publishing: Publishing) -> None:
    (event,) = await publishing.of("INSERT INTO marked VALUES ('hush', 1)")
    assert event.topic == "rowcast.marked.changed.insert.-"
    assert event.event["key"] is None
    assert event.event["row"] == {"a": 1}


@served
@pytest_twisted.ensureDeferred
async def test_row_that_moves_to_another_partition_is_of_the_root(publishing: Publishing) -> None:
    await publishing.of("INSERT INTO sold VALUES (1, 1, 5)")
    found = await publishing.of("UPDATE sold SET day = 2")
    assert sorted(each.topic for each in found) == [
        "rowcast.sold.changed.delete.1,1",
        "rowcast.sold.changed.insert.2,1",
    ]


@served
@pytest_twisted.ensureDeferred
async def test_relation_with_row_security_publishes_neither_keys_nor_rows(
    publishing: Publishing,
) -> None:
    for sql in (
        "INSERT INTO veiled VALUES (1, 'a'), (2, 'b')",
        "UPDATE veiled SET owner = 'c'",
        "DELETE FROM veiled",
        "TRUNCATE veiled",
        "SELECT rowcast.reset(id) FROM rowcast.tracked WHERE relation = 'veiled'::regclass",
    ):
        (event,) = await publishing.of(sql)
        assert event.topic == "rowcast.veiled.touched"
        assert event.event.keys() == {"relation", "position"}, sql
        assert event.event["position"].endswith(".0"), "no count"


@served
@pytest_twisted.ensureDeferred
async def test_nothing_is_sent_before_it_is_durable(publishing: Publishing) -> None:
    changes = await publishing.changes("INSERT INTO actions VALUES (1)")
    for lost in (False, True):
        publishing.sent.clear()
        publishing.asked, durable = 0, Deferred[None]()
        publication = Deferred.fromCoroutine(publishing.topics().publish(changes, durable, {}))
        await until(lambda: publishing.asked == 2)
        assert not publishing.sent
        if lost:
            durable.errback(RuntimeError("the connection was lost"))
            with pytest.raises(RuntimeError):
                await publication
        else:
            durable.callback(None)
            await publication
        assert len(publishing.sent) == (not lost)


@served
@pytest_twisted.ensureDeferred
async def test_prev_is_not_the_position_of_a_change_that_was_not_durable(
    publishing: Publishing,
) -> None:
    changes, topics = (
        await publishing.changes("INSERT INTO actions VALUES (1)"),
        publishing.topics(),
    )
    with pytest.raises(RuntimeError):
        await topics.publish(changes, fail(RuntimeError("the connection was lost")), {})
    await topics.publish(changes, succeed(None), {})
    (event,) = publishing.sent
    assert event.event["prev"] is None


@served
@pytest_twisted.ensureDeferred
async def test_row_security_newer_than_the_catalog_is_obeyed(
    publishing: Publishing,
) -> None:
    """A row is written after the catalog has changed and before the service has read it again."""
    topics = publishing.topics()
    await topics.publish(
        await publishing.changes("INSERT INTO actions VALUES (1)"), succeed(None), {}
    )
    changes = await publishing.changes(
        "BEGIN; ALTER TABLE actions ENABLE ROW LEVEL SECURITY; INSERT INTO actions VALUES (2); COMMIT"
    )
    publishing.sent.clear()
    try:
        await topics.publish(changes, succeed(None), {})
    finally:
        execute(publishing.dsn, "ALTER TABLE actions DISABLE ROW LEVEL SECURITY")
    assert [each.topic for each in publishing.sent] == ["rowcast.actions.touched"]


@served
@pytest_twisted.ensureDeferred
async def test_column_hidden_or_added_or_altered_is_published_as_altered(
    publishing: Publishing,
) -> None:
    execute(publishing.dsn, "CREATE TABLE fresh (id int PRIMARY KEY, a int, b text)")
    execute(publishing.dsn, "SELECT rowcast.track('fresh')")
    topics = publishing.topics()
    for sql, row in (
        ("INSERT INTO fresh VALUES (1, 1, 'b')", {"id": 1, "a": 1, "b": "b"}),
        (
            "COMMENT ON COLUMN fresh.b IS '@hidden'; INSERT INTO fresh VALUES (2, 1, 'b')",
            {"id": 2, "a": 1},
        ),
        (
            "ALTER TABLE fresh ALTER a TYPE numeric; INSERT INTO fresh VALUES (3, 1.50, 'b')",
            {"id": 3, "a": "1.50"},
        ),
        (
            "ALTER TABLE fresh ADD c timestamptz; INSERT INTO fresh VALUES (4, 1, 'b', 'epoch')",
            {"id": 4, "a": "1", "c": "1970-01-01T00:00:00Z"},
        ),
        ("ALTER TABLE fresh RENAME TO fresher; INSERT INTO fresher VALUES (5)", None),
    ):
        publishing.sent.clear()
        await topics.publish(await publishing.changes(sql), succeed(None), {})
        *_, event = publishing.sent
        if row is not None:
            assert event.event["row"] == row
            assert "large" not in event.event
    assert event.topic == "rowcast.fresher.changed.insert.5"
    execute(publishing.dsn, "DROP TABLE fresher")


@served
@pytest_twisted.ensureDeferred
async def test_table_renamed_dropped_or_untracked_publishes_nothing_until_it_is_tracked(
    publishing: Publishing,
) -> None:
    made = "CREATE TABLE {0} (id int PRIMARY KEY); SELECT rowcast.track('{0}')"
    execute(publishing.dsn, made.format("passing"))
    topics = publishing.topics()
    for sql, heard in (
        ("INSERT INTO passing VALUES (1)", {"passing.changed.reset.-", "passing.changed.insert.1"}),
        (
            "ALTER TABLE passing RENAME TO passed; SELECT rowcast.notice()",  # as the feed does
            {"passed.changed.reset.-"},
        ),
        ("INSERT INTO passed VALUES (2)", {"passed.changed.insert.2"}),
        ("DROP TABLE passed; SELECT rowcast.notice()", set()),
        (made.format("passed"), {"passed.changed.reset.-"}),
        ("SELECT rowcast.untrack('passed'); INSERT INTO passed VALUES (3)", set()),
        ("SELECT rowcast.track('passed')", {"passed.changed.reset.-"}),
        ("INSERT INTO passed VALUES (4)", {"passed.changed.insert.4"}),
    ):
        publishing.sent.clear()
        await topics.publish(await publishing.changes(sql), succeed(None), {})
        assert {each.topic.removeprefix("rowcast.") for each in publishing.sent} == heard, sql
    execute(publishing.dsn, "DROP TABLE passed")


@served
@pytest_twisted.ensureDeferred
async def test_row_that_is_too_large_or_not_exact_is_left_out_of_its_event(
    publishing: Publishing,
) -> None:
    publishing.max_bytes = 100_000
    (event,) = await publishing.of(
        "INSERT INTO actions SELECT 1, string_agg(i::text, ' ') FROM generate_series(1, 30000) i"
    )
    assert event.event["large"] is True
    assert (event.event["row"], event.event["old"]) == (None, None)
    assert event.event["key"] == {"id": 1}
    execute(publishing.dsn, "CREATE TABLE odd (id int PRIMARY KEY, c regclass)")
    execute(publishing.dsn, "SELECT rowcast.track('odd')")
    reset, event = await publishing.of("INSERT INTO odd VALUES (1, 'actions')")
    assert reset.topic == "rowcast.odd.changed.reset.-", "it is tracked from here on"
    assert (event.event["row"], event.event["large"]) == (None, True)
    (event,) = await publishing.of("INSERT INTO odd VALUES (2, NULL)")
    assert event.event["row"] == {"id": 2, "c": None}
    execute(publishing.dsn, "DROP TABLE odd")


@served
@pytest_twisted.ensureDeferred
async def test_prev_is_the_position_of_the_change_before_of_the_same_relation(
    publishing: Publishing,
) -> None:
    topics = publishing.topics()
    sql = "INSERT INTO actions VALUES (1); INSERT INTO loose VALUES (1); INSERT INTO actions VALUES (2)"
    await topics.publish(await publishing.changes(sql), succeed(None), {})
    one, two, other = (each.event for each in publishing.sent)
    assert [each["relation"] for each in (one, two, other)] == ["actions", "actions", "loose"]
    assert (one["prev"], two["prev"], other["prev"]) == (None, one["position"], None)
    assert len({one["position"], other["position"], two["position"]}) == 3
    publishing.unwanted.add("rowcast.actions")
    publishing.sent.clear()
    skipped = await publishing.changes("INSERT INTO actions VALUES (3)")
    await topics.publish(skipped, succeed(None), {})
    assert not publishing.sent, "nobody is subscribed"
    publishing.unwanted.clear()
    await topics.publish(
        await publishing.changes("INSERT INTO actions VALUES (4)"), succeed(None), {}
    )
    (event,) = publishing.sent
    assert event.event["prev"] == str(skipped[0].position), "who should have had it notices"


ROLES = Roles({"staff": "reader", "desk": "clerk", "guests": "nobody"})


@served
@pytest.mark.parametrize(
    ("roles", "audience"),
    [
        (ROLES, Audience(("staff",))),
        (Roles({"desk": "clerk", "guests": "nobody"}), Audience(("desk",))),
        (Roles({"guests": "nobody"}), None),
        (Roles({"guests": "nobody"}, "reader"), Audience(excluded=("guests",))),
        (Roles({"staff": "reader"}, "nobody"), Audience(("staff",))),
        (Roles({"staff": "reader"}, "reader"), Audience()),
        (Roles({}, "nobody"), None),
        (Roles({}, "reader"), Audience()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_audience_is_the_roles_with_the_most_readable_columns(
    publishing: Publishing, roles: Roles, audience: Audience | None
) -> None:
    found = await publishing.of("INSERT INTO actions VALUES (1, 'a', 1, 'x')", roles)
    assert [each.audience for each in found] == ([] if audience is None else [audience])
    for each in found:
        columns = {"id", "name"} | ({"price"} if "reader" in roles.names else set())
        assert set(each.event["row"]) == columns


@served
@pytest_twisted.ensureDeferred
async def test_audience_changes_with_the_next_grant_or_revoke(
    publishing: Publishing,
) -> None:
    topics = publishing.topics(ROLES)
    for sql, found in (
        ("SELECT 1", [("staff",)]),
        ("GRANT SELECT ON actions TO nobody", [("staff", "guests")]),
        ("REVOKE SELECT (price) ON actions FROM nobody", [("staff", "guests")]),
        ("REVOKE SELECT ON actions FROM nobody", [("staff",)]),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", []),
        ("GRANT USAGE ON SCHEMA public TO PUBLIC", [("staff",)]),
    ):
        publishing.sent.clear()
        changes = await publishing.changes(
            f"BEGIN; {sql}; TRUNCATE actions; INSERT INTO actions VALUES (1); COMMIT"
        )
        await topics.publish(changes, succeed(None), {})
        eligible = [each.audience.eligible for each in publishing.sent if each.event["row"]]
        assert eligible == found, sql


@served
@pytest_twisted.ensureDeferred
async def test_touch_of_a_relation_with_row_security_is_for_roles_that_may_read_a_column(
    publishing: Publishing,
) -> None:
    (event,) = await publishing.of("INSERT INTO veiled VALUES (1)", ROLES)
    assert event.audience == Audience(("staff", "desk"))
    assert not await publishing.of("INSERT INTO veiled VALUES (2)", Roles({"guests": "nobody"}))


@served
@pytest_twisted.ensureDeferred
async def test_changes_wait_for_a_connection(publishing: Publishing) -> None:
    """If all connections are in use, events are delayed, and none is omitted."""
    changes = await publishing.changes("INSERT INTO actions VALUES (1)")
    async with database_at(publishing.dsn, most=1, acquire_timeout=0.2) as database:
        held = database.statement("SELECT pg_sleep(2)")
        topics = publishing.topics(database=database)
        publication = Deferred.fromCoroutine(topics.publish(changes, succeed(None), {}))
        await deferLater(reactor, 1)
        assert not publication.called
        await held
        await publication
    assert len(publishing.sent) == 1


@served
@pytest_twisted.ensureDeferred
async def test_event_newer_than_the_catalog_waits_until_the_catalog_is_read(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the catalog cannot be read in time, the event of a new table is late, and not left out."""
    made = "CREATE TABLE newest (id int PRIMARY KEY); SELECT rowcast.track('newest')"
    await publishing.changes(made)
    try:
        changes = await publishing.changes("INSERT INTO newest VALUES (1)")
        with monkeypatch.context() as patched:
            patched.setattr(publishing.db.dispatcher, "refresh", lambda: succeed(False))
            late = publishing.topics().publish(changes, succeed(None), {})
            sending = Deferred.fromCoroutine(late)
            await deferLater(reactor, 0.5, lambda: None)
            assert not sending.called
        await sending
        assert [each.topic for each in publishing.sent] == ["rowcast.newest.changed.insert.1"]
    finally:
        execute(publishing.dsn, "DROP TABLE newest")


@served
@pytest_twisted.ensureDeferred
async def test_changes_with_their_rights_need_no_connection(publishing: Publishing) -> None:
    insert = "INSERT INTO actions VALUES (1)"
    async with database_at(publishing.dsn, most=1, acquire_timeout=0.2) as database:
        topics = publishing.topics(database=database)
        assert not topics.subscribed().relations
        await topics.publish(await publishing.changes(insert), succeed(None), {})
        subscribed, changes = topics.subscribed(), await publishing.changes("DELETE FROM actions")
        assert list(subscribed.relations) == [changes[0].relation]
        with closing(open_session(publishing.dsn, SessionSettings())) as connection:
            rights = rights_txn(connection, subscribed.relations, subscribed.roles)
        held = database.statement("SELECT pg_sleep(2)")
        await topics.publish(changes, succeed(None), rights)
        assert not held.called
        await held
        publishing.unwanted.add("rowcast.actions")
        await topics.publish(await publishing.changes(insert), succeed(None), rights)
        assert not topics.subscribed().relations
    assert [each.event["op"] for each in publishing.sent] == ["insert", "delete"]


@served
@pytest_twisted.ensureDeferred
async def test_row_whose_columns_were_renamed_is_a_reset(
    publishing: Publishing,
) -> None:
    execute(
        publishing.dsn,
        "CREATE TABLE swapped (id int PRIMARY KEY, name text, secret text);"
        " COMMENT ON COLUMN swapped.secret IS '@hidden'; SELECT rowcast.track('swapped')",
    )
    _, event = await publishing.of("INSERT INTO swapped VALUES (1, 'a', 'hush')")
    assert event.event["row"] == {"id": 1, "name": "a"}
    changes = await publishing.changes(
        "INSERT INTO swapped VALUES (2, 'b', 'hush'), (3, 'c', 'hush')"
    )
    execute(
        publishing.dsn,
        "ALTER TABLE swapped RENAME secret TO x; ALTER TABLE swapped RENAME name TO secret;"
        " ALTER TABLE swapped RENAME x TO name",
    )
    publishing.sent.clear()
    await publishing.topics().publish(changes, succeed(None), {})
    (event,) = publishing.sent
    assert event.topic == "rowcast.swapped.changed.reset.-"
    assert "hush" not in repr(event)
    execute(publishing.dsn, "DROP TABLE swapped")
