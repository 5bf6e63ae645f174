"""
Catch-up: `changes` returns missed changes, as far as the caller's role may read them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import succeed

from schema.changes import install
from service.api.roles import Roles
from service.changes.catchup import CatchUpProcedures
from service.changes.log import page_txn
from service.errors import InvalidArgument, PositionGone, ServiceError, Unavailable
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.db.ticks import Ticks
from tests.deferreds import failure_of

SCHEMA = f"""
CREATE SCHEMA app;
CREATE ROLE reader; CREATE ROLE clerk; CREATE ROLE nobody;
CREATE TABLE actions (id int PRIMARY KEY, name text, secret text);
COMMENT ON COLUMN actions.secret IS '@hidden';
CREATE TABLE drivers (id int PRIMARY KEY, phone text);
CREATE TABLE veiled (id int PRIMARY KEY, owner text);
ALTER TABLE veiled ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON veiled USING (owner = current_user);
CREATE TABLE touchy (id int PRIMARY KEY);
CREATE TABLE untracked (id int PRIMARY KEY);
CREATE TABLE app.notes (id int PRIMARY KEY);
GRANT SELECT ON actions, veiled TO reader;
GRANT SELECT (id) ON drivers TO reader;
GRANT SELECT (name) ON actions TO clerk;
{install()}
SELECT rowcast.track(name::regclass) FROM unnest('{{actions, drivers, veiled, app.notes}}'::text[]) name;
SELECT rowcast.track('touchy', 'touch');
"""

BEFORE_EACH = "TRUNCATE actions, drivers, veiled, touchy, app.notes"

ROLES = Roles({"staff": "reader", "desk": "clerk", "guests": "nobody"})
STAFF, DESK, GUEST = (
    Caller(number, name, name, "realm1") for number, name in enumerate(ROLES.mapped)
)


@dataclass
class LateCallers:
    """A log, and callers that have missed some changes."""

    db: DirectCaller
    dsn: str
    ticks: Ticks

    def serve(self, max_rows: int = 1000, max_bytes: int = 8 << 20, most: int = 10_000) -> None:
        """Serve the procedures, with other limits."""
        dispatcher = self.db.dispatcher
        catchup = CatchUpProcedures(self.db.database, dispatcher, max_rows, max_bytes, most)
        dispatcher.add(catchup.procedures(), once=False)

    def run(self, *statements: str) -> list[Any]:
        """Run statements, each in its own tick; return the changes."""
        found = []
        for each in statements:
            execute(self.dsn, each)
            found += self.ticks.next()
        return found

    async def position(self, caller: Caller = ANYONE) -> str:
        """Return the newest position."""
        found: str = await self.db.call_as(caller, "position")
        return found

    async def changes(self, *args: Any, caller: Caller = ANYONE, **kwargs: Any) -> Any:
        """Call `changes`."""
        return await self.db.call_as(caller, "changes", *args, **kwargs)

    async def all_after(self, since: str, caller: Caller = ANYONE, **kwargs: Any) -> list[Any]:
        """Return all changes after a position, page by page."""
        found = []
        while True:
            page = await self.changes(since, caller=caller, **kwargs)
            found += page["changes"]
            assert page["position"] != since or not page["more"], "it goes on"
            since = page["position"]
            if not page["more"]:
                return found


@pytest_twisted.async_yield_fixture
async def late(db: DirectCaller, dsn: str) -> AsyncIterator[LateCallers]:
    """Serve the log of the module's database, from the present position on."""
    ticks = Ticks(dsn)
    made = LateCallers(db, dsn, ticks)
    made.serve()
    yield made
    ticks.close()


served = pytest.mark.serving("public", "app")
with_roles = pytest.mark.serving("public", roles=ROLES)


@served
@pytest_twisted.ensureDeferred
async def test_changes_after_a_position_are_those_that_were_published(late: LateCallers) -> None:
    since = await late.position()
    before = late.run(
        "INSERT INTO actions VALUES (1, 'a', 'x'), (2, 'b', 'x')",
        "BEGIN; UPDATE actions SET name = 'c' WHERE id = 1; INSERT INTO app.notes VALUES (1); COMMIT",
        "DELETE FROM actions WHERE id = 2",
        "TRUNCATE app.notes",
    )
    answer = await late.changes(since)
    found = answer["changes"]
    assert [each["position"] for each in found] == [str(each.position) for each in before]
    assert [each["op"] for each in found] == [each.op for each in before]
    assert [each["tx"] for each in found] == [each.xid for each in before]
    assert [each["last"] for each in found] == [each.last for each in before]
    assert [each["at"] for each in found] == [each.at for each in before]
    update = next(each for each in found if each["op"] == "update")
    assert (update["row"], update["old"]) == ({"id": 1, "name": "c"}, {"name": "a"})
    assert found[-2]["old"] == {"id": 2, "name": "b"}
    assert not answer["more"]
    assert answer["position"] == await late.position()
    assert await late.changes(answer["position"]) == {
        "changes": [],
        "position": answer["position"],
        "more": False,
    }


@served
@pytest_twisted.ensureDeferred
async def test_changes_as_json_are_the_same_in_one_text(late: LateCallers) -> None:
    since = await late.position()
    execute(late.dsn, "DROP TABLE IF EXISTS kinds; CREATE TABLE kinds (id int PRIMARY KEY, n numeric,"
            " b bytea, j jsonb, t timestamptz, f float8); SELECT rowcast.track('kinds')")  # fmt: skip
    await late.db.dispatcher.refresh()
    late.run(
        "INSERT INTO actions SELECT i, 'é \" ' || i || repeat('x', 300) FROM generate_series(1, 20) i",
        "INSERT INTO kinds VALUES (1, 1.50, '\\x00ff', '{\"a\": [1.0]}', '2026-11-29 12:00+09', 'NaN')",
        "UPDATE kinds SET n = 1.500, f = 2",
    )
    answer = await late.changes(since)
    text = await late.changes(since, form="json")
    row = answer["changes"][-1]["row"]
    assert row["b"] == b"\0\xff"
    assert answer["changes"][-1]["old"] == {"n": "1.50", "f": "NaN"}
    for each in answer["changes"]:
        for image in (each["row"], each["old"]):
            if image and "b" in image:
                image["b"] = "AP8="
    assert json.loads(text) == answer
    late.serve(max_bytes=8000)
    pages, position = [], since
    while not pages or pages[-1]["more"]:
        pages.append(json.loads(await late.changes(position, form="json")))
        position = pages[-1]["position"]
    assert len(pages) > 2
    assert all("large" not in each for page in pages for each in page["changes"])
    assert [each["key"] for page in pages for each in page["changes"]] == [
        each["key"] for each in answer["changes"]
    ]
    with pytest.raises(InvalidArgument) as caught:
        await late.changes(since, form="lists")
    assert caught.value.details["path"] == "form"


@served
@pytest_twisted.ensureDeferred
async def test_changes_after_each_position_are_the_rest(late: LateCallers) -> None:
    since = await late.position()
    late.run(
        "INSERT INTO actions SELECT generate_series(1, 5)",
        "UPDATE actions SET name = 'b'",
        "DELETE FROM actions WHERE id < 3",
    )
    every = (await late.changes(since))["changes"]
    assert len(every) == 12
    for at, change in enumerate(every):
        assert (await late.changes(change["position"]))["changes"] == every[at + 1 :]
    for limit in (1, 2, 5, 11, 12, 1000):
        paged = await late.all_after(since, limit=limit)
        without = [{**each, "last": None} for each in paged]
        assert without == [{**each, "last": None} for each in every], limit
    assert (await late.changes(since, limit=0)) == {
        "changes": [],
        "position": since,
        "more": True,
    }
    late.serve(max_rows=3)
    assert len((await late.changes(since, limit=12))["changes"]) == 3


async def busy(late: LateCallers) -> tuple[str, list[Any]]:
    """Make ticks, one transaction that spans several, and one with many changes; return all changes."""
    since, running = await late.position(), psycopg2.connect(late.dsn)
    with running.cursor() as cursor:
        found = late.run("INSERT INTO actions VALUES (1, 'a')", "DELETE FROM actions")
        cursor.execute("INSERT INTO actions VALUES (100)")
        found += late.run("INSERT INTO actions VALUES (2)", "INSERT INTO drivers VALUES (1)")
        running.commit()
        for at in range(3, 40):
            execute(late.dsn, f"INSERT INTO actions VALUES ({at})")
        execute(late.dsn, "INSERT INTO drivers SELECT generate_series(2, 13)")
        cursor.execute("INSERT INTO actions VALUES (101)")
        found += late.ticks.next()
        running.commit()
        found += late.run("DELETE FROM drivers WHERE id = 1")
    running.close()
    return since, [(str(each.position), each.op, each.xid) for each in found]


@served
@pytest.mark.parametrize(("rows", "least"), [(1, 1), (3, 2), (60, 10), (1000, 100)])
@pytest_twisted.ensureDeferred
async def test_changes_are_the_same_however_many_ticks_are_read_at_once(
    late: LateCallers, monkeypatch: pytest.MonkeyPatch, rows: int, least: int
) -> None:
    monkeypatch.setattr("service.changes.catchup.ROWS", rows)
    monkeypatch.setattr("service.changes.catchup.LEAST", least)
    since, every = await busy(late)
    assert len(every) == 56
    for limit in (1, 7, 1000):
        found = await late.all_after(since, limit=limit)
        assert [(each["position"], each["op"], each["tx"]) for each in found] == every
    for at, (position, _, _) in enumerate(every):
        (change, *_) = (await late.changes(position, limit=1))["changes"] or [None]
        assert (change and change["position"]) == (every[at + 1][0] if every[at + 1 :] else None)
    monkeypatch.setattr("service.changes.log.PAGE_BYTES", 1000)  # no two ticks are read together
    found = await late.all_after(since, limit=7)
    assert [(each["position"], each["op"], each["tx"]) for each in found] == every


@served
@pytest_twisted.ensureDeferred
async def test_large_tick_is_not_read_from_its_beginning_for_each_page(
    late: LateCallers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []

    def read_txn(connection: Any, page: Any) -> Any:
        pages.append(page)
        return page_txn(connection, page)

    monkeypatch.setattr("service.changes.catchup.page_txn", read_txn)
    monkeypatch.setattr("service.changes.catchup.ROWS", 5)
    since = await late.position()
    for at in range(60):
        execute(late.dsn, f"INSERT INTO actions VALUES ({at})")
    late.ticks.next()
    found = await late.all_after(since, limit=5)
    assert [each["key"]["id"] for each in found] == list(range(60))
    assert len(set(pages)) == 12
    assert len(pages) < 40


@served
@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("gone", ["untrack", "rename"])
@pytest_twisted.ensureDeferred
async def test_table_untracked_or_renamed_key_between_two_pages_of_a_tick_loses_nothing(
    late: LateCallers, monkeypatch: pytest.MonkeyPatch, rows: int, gone: str
) -> None:
    monkeypatch.setattr("service.changes.catchup.ROWS", rows)
    execute(late.dsn, "CREATE TABLE brief (id int PRIMARY KEY); SELECT rowcast.track('brief')")
    try:
        late.ticks.next()
        since = await late.position()
        execute(late.dsn, "INSERT INTO brief SELECT generate_series(1, 3)")
        for at in range(6):
            execute(late.dsn, f"INSERT INTO actions VALUES ({at})")
        late.ticks.next()
        page = await late.changes(since, limit=5)
        assert [each["relation"] for each in page["changes"]] == ["brief"] * 3 + ["actions"] * 2
        if gone == "untrack":
            execute(late.dsn, "SELECT rowcast.untrack('brief')")
        else:
            execute(late.dsn, "ALTER TABLE brief RENAME id TO number")
        found = await late.all_after(page["position"], relations=["actions"], limit=2)
        assert [each["key"]["id"] for each in found] == [2, 3, 4, 5]
    finally:
        execute(late.dsn, "SELECT rowcast.untrack('brief'); DROP TABLE brief")


@served
@pytest_twisted.ensureDeferred
async def test_page_is_bounded_in_bytes(late: LateCallers) -> None:
    since = await late.position()
    late.run("INSERT INTO actions SELECT i, repeat('x', 20000) FROM generate_series(1, 20) i")
    late.serve(max_bytes=100_000)
    page = await late.changes(since)
    assert 1 <= len(page["changes"]) < 5
    assert page["more"]
    assert not page["changes"][-1]["last"]
    every = await late.all_after(since)
    assert [each["key"]["id"] for each in every] == list(range(1, 21))
    assert [each["last"] for each in every] == [False] * 19 + [True]
    late.serve(max_bytes=10_000)
    assert all(each["large"] for each in await late.all_after(since))


@served
@pytest_twisted.ensureDeferred
async def test_changes_of_some_relations_are_selected_by_their_names_in_procedures(
    late: LateCallers,
) -> None:
    since = await late.position()
    late.run(
        "INSERT INTO actions VALUES (1)",
        "BEGIN; INSERT INTO app.notes VALUES (1); INSERT INTO drivers VALUES (1); COMMIT",
    )
    for names, found in (
        (["actions"], ["actions"]),
        ("app.notes", ["notes"]),
        (["public.actions", "drivers"], ["actions", "drivers"]),
        ([], []),
    ):
        answer = await late.changes(since, relations=names)
        assert [each["relation"] for each in answer["changes"]] == found
        assert all(each["last"] for each in answer["changes"]), "the last that the caller sees"
        assert answer["position"] == await late.position()
    for names, path in ((["nothing"], "relations.0"), ("x", "relations"), ([5], "relations.0")):
        with pytest.raises(InvalidArgument) as caught:
            await late.changes(since, relations=names)
        assert caught.value.details["path"] == path
    with pytest.raises(InvalidArgument, match="not logged") as caught:
        await late.changes(since, relations=["untracked"])
    assert caught.value.details["hint"] == "rowcast track public.untracked"
    assert caught.value.details["relation"] == "untracked"


@served
@pytest_twisted.ensureDeferred
async def test_changes_after_a_snapshot_are_those_that_it_does_not_show(late: LateCallers) -> None:

    running = psycopg2.connect(late.dsn)
    with running.cursor() as cursor:
        cursor.execute("INSERT INTO actions VALUES (1)")
        late.run("INSERT INTO actions VALUES (2)")
        ((snapshot,),) = execute(late.dsn, "SELECT pg_current_snapshot()::text")
        late.run("INSERT INTO actions VALUES (3)")
        running.commit()
        late.run("INSERT INTO actions VALUES (4)")
    running.close()
    epoch = (await late.position()).split(".")[0]
    found = await late.changes(f"{epoch}.{snapshot}")
    assert sorted(each["key"]["id"] for each in found["changes"]) == [1, 3, 4]


@served
@pytest_twisted.ensureDeferred
async def test_transaction_that_is_too_large_is_a_reset(late: LateCallers) -> None:
    since = await late.position()
    late.run("INSERT INTO actions SELECT generate_series(1, 30)")
    late.serve(most=10)
    (change,) = (await late.changes(since))["changes"]
    assert (change["op"], change["relation"], change["key"]) == ("reset", "actions", None)


HOSTILE = [
    *("", "x", "1", "1.2", "1.2.3.4", "-1.2.3", "1.-2.3", " 1.2.3", "1.2.3\n", "1.2.3 ", "١.٢.٣"),
    *("1.2:1:", "1.1:2:3", "1.5:9:7,6", "1.5:9:7,7", "1.1:2:3,", "1.1:2", "1.:::", "1.2.0x3"),
    *("9" * 100, f"1.{'9' * 30}.1", f"{'9' * 30}.1.1", f"1.1.{'9' * 30}", "1.1:2:" + "1," * 60_000),
    *("\0", "1.2.3\0", "1';DROP TABLE actions;--", "\ud800", "1.2.3" * 30_000),
    *(None, 5, 1.5, True, [], {}, b"1.2.3", ["1.2.3"]),
]


@served
@pytest_twisted.ensureDeferred
async def test_invalid_since_is_refused(late: LateCallers) -> None:
    for since in HOSTILE:
        with pytest.raises(InvalidArgument) as caught:
            await late.db.dispatcher.answer("changes", [since], {}, ANYONE)
        assert caught.value.details["path"] == "since", since
        caught.value.message.encode("utf-8", "replace")
    for args, kwargs in (([], {}), (["1.1.1", 2], {}), (["1.1.1"], {"limit": -1}), ([], {"x": 1})):
        with pytest.raises(InvalidArgument):
            await late.db.dispatcher.answer("changes", args, kwargs, ANYONE)


@served
@pytest_twisted.ensureDeferred
async def test_position_that_is_not_known_or_not_kept_is_gone(late: LateCallers) -> None:
    now = await late.position()
    epoch, tick, _ = map(int, now.split("."))
    late.run("INSERT INTO actions VALUES (1)")
    for gone in (
        f"{epoch + 1}.{tick}.0",
        f"{epoch}.{tick + 1000}.0",
        f"{epoch}.{tick + 1000}.5",
        f"{epoch}.0.0",
        f"{2**31 - 1}.{2**63 - 1}.{2**31 - 1}",
        f"{epoch + 1}.100:100:",
        f"0.{tick}.0",
        f"{epoch}.{tick}.1",
        f"{epoch}.{tick}.3",
        f"{epoch}.{tick}.1000",
    ):
        with pytest.raises(PositionGone):
            pytest.fail(f"{gone}: {len(await late.changes(gone))}")
    execute(late.dsn, "UPDATE rowcast.epochs SET pruned_below = pg_current_xact_id()")
    with pytest.raises(PositionGone):
        await late.changes(now)
    execute(late.dsn, "UPDATE rowcast.epochs SET pruned_below = '3'")


@served
@pytest_twisted.ensureDeferred
async def test_changes_without_a_log_are_refused_with_the_command_to_install_it(
    late: LateCallers,
) -> None:
    position = await late.position()
    execute(late.dsn, "ALTER TABLE rowcast.log RENAME TO elsewhere")
    try:
        for name, args in (("position", []), ("changes", [position])):
            with pytest.raises(InvalidArgument, match="no changes are logged"):
                await late.db.call(name, *args)
    finally:
        execute(late.dsn, "ALTER TABLE rowcast.elsewhere RENAME TO log")
    execute(late.dsn, "UPDATE rowcast.epochs SET timeline = timeline + 1")
    try:
        for name, args in (("position", []), ("changes", [position])):
            with pytest.raises(Unavailable, match="not read yet"):
                await late.db.call(name, *args)
    finally:
        execute(late.dsn, "UPDATE rowcast.epochs SET timeline = timeline - 1")


@with_roles
@pytest_twisted.ensureDeferred
async def test_caller_sees_the_columns_that_its_role_may_read(late: LateCallers) -> None:
    since = await late.position(STAFF)
    late.run(
        "INSERT INTO actions VALUES (1, 'a', 'x')",
        "INSERT INTO drivers VALUES (1, '555')",
        "UPDATE drivers SET phone = '556'",
        "DELETE FROM actions",
        "DELETE FROM drivers",
    )

    def seen(found: Any) -> list[Any]:
        return [
            (each["op"], each["relation"], each["key"], each["row"], each["old"])
            for each in found["changes"]
        ]

    assert seen(await late.changes(since, caller=STAFF)) == [
        ("insert", "actions", {"id": 1}, {"id": 1, "name": "a"}, None),
        ("insert", "drivers", {"id": 1}, {"id": 1}, None),
        ("update", "drivers", {"id": 1}, {"id": 1}, {}),
        ("delete", "actions", {"id": 1}, None, {"id": 1, "name": "a"}),
        ("delete", "drivers", {"id": 1}, None, {"id": 1}),
    ]
    assert seen(await late.changes(since, caller=DESK)) == [
        ("insert", "actions", None, {"name": "a"}, None),
        ("delete", "actions", None, None, {"name": "a"}),
    ]
    assert seen(await late.changes(since, caller=GUEST)) == []


@with_roles
@pytest_twisted.ensureDeferred
async def test_relation_with_row_security_returns_touches_to_roles_that_may_read_it(
    late: LateCallers,
) -> None:
    since = await late.position(STAFF)
    late.run(
        "INSERT INTO veiled VALUES (1, 'reader'), (2, 'clerk')",
        "UPDATE veiled SET owner = 'clerk'",
        "DELETE FROM veiled",
    )
    found = (await late.changes(since, caller=STAFF))["changes"]
    assert len(found) == 3
    for each in found:
        assert (each["op"], each["relation"]) == ("touch", "veiled")
        assert each["position"].endswith(".0")
        nothing = ("key", "row", "old", "tx", "at")
        assert [each[name] for name in nothing] == [None] * 5
    assert (await late.changes(since, caller=DESK))["changes"] == []


@with_roles
@pytest_twisted.ensureDeferred
async def test_rights_at_the_time_of_reading_apply(late: LateCallers) -> None:
    """This holds although the served catalog is out of date."""
    since = await late.position(STAFF)
    late.run("INSERT INTO actions VALUES (1, 'a', 'x')")
    try:
        execute(late.dsn, "REVOKE SELECT ON actions FROM reader")
        assert (await late.changes(since, caller=STAFF))["changes"] == []
        execute(late.dsn, "GRANT SELECT (id) ON actions TO reader")
        late.run("INSERT INTO actions VALUES (2, 'a', 'x')")
        before, change = (await late.changes(since, caller=STAFF))["changes"]
        assert before["op"] == "reset", "a column is not what it was"
        assert change["row"] == {"id": 2}
        execute(late.dsn, "GRANT SELECT ON actions TO reader")
        execute(late.dsn, "ALTER TABLE actions ENABLE ROW LEVEL SECURITY")
        found = (await late.changes(since, caller=STAFF))["changes"]
        assert [each["op"] for each in found] == ["touch", "touch"]
    finally:
        execute(late.dsn, "ALTER TABLE actions DISABLE ROW LEVEL SECURITY")
    with pytest.raises(ServiceError):
        await late.changes(since, relations=["drivers"], caller=GUEST)


FORGET = (
    "DELETE FROM rowcast.tracked t WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = t.relation)"
)
WRITE = "UPDATE {} SET name = 'in the gap' WHERE id = 1"
GAPS = {
    "untracked": ["SELECT rowcast.untrack('gap')", WRITE, "SELECT rowcast.track('gap')"],
    "truncated": ["SELECT rowcast.untrack('gap')", "TRUNCATE gap", "SELECT rowcast.track('gap')"],
    "level": ["SELECT rowcast.track('gap', 'touch')", WRITE, "SELECT rowcast.track('gap')"],
    "triggers": [
        "ALTER TABLE gap DISABLE TRIGGER USER",
        WRITE,
        "ALTER TABLE gap ENABLE TRIGGER USER; SELECT rowcast.notice()",
    ],
    "anew": [
        "SELECT rowcast.untrack('gap'); DROP TABLE gap",
        "CREATE TABLE gap (id int PRIMARY KEY, name text); SELECT rowcast.track('gap')",
    ],
    "anew under its number": [
        "DROP TABLE gap",
        "CREATE TABLE gap (id int PRIMARY KEY, name text); SELECT rowcast.track('gap')",
    ],
    "another of its name": [
        "ALTER TABLE gap RENAME TO gap_before",
        "CREATE TABLE gap (id int PRIMARY KEY, name text); INSERT INTO gap VALUES (1)",
        WRITE,
        "SELECT rowcast.track('gap')",
    ],
}


@served
@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "in one transaction"])
@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
@pytest_twisted.ensureDeferred
async def test_table_written_while_untracked_is_reset(
    late: LateCallers, gap: list[str], at_once: bool
) -> None:
    execute(
        late.dsn,
        "CREATE TABLE gap (id int PRIMARY KEY, name text); INSERT INTO gap VALUES (1), (2);"
        "SELECT rowcast.track('gap')",
    )
    try:
        late.ticks.next()
        since = await late.position()
        steps = [*(each.format("gap") for each in gap), "UPDATE gap SET name = 'b' WHERE id = 2"]
        published = late.run(*(["; ".join(steps)] if at_once else steps))
        assert "reset" in {each.op for each in published}, "who is subscribed hears it, too"
        # On a loaded machine the reload that `changes` waits for may exceed the call's timeout.
        await late.db.catch_up()
        found = await late.all_after(since)
        assert ("gap", "reset") in {(each["relation"], each["op"]) for each in found}
    finally:
        execute(late.dsn, f"DROP TABLE IF EXISTS gap, gap_before; {FORGET}")


@served
@pytest_twisted.ensureDeferred
async def test_partition_tracked_alone_after_detach_is_reset(
    late: LateCallers,
) -> None:
    execute(
        late.dsn,
        "CREATE TABLE whole (id int PRIMARY KEY, name text) PARTITION BY LIST (id);"
        "CREATE TABLE part PARTITION OF whole FOR VALUES IN (1); INSERT INTO whole VALUES (1);"
        "SELECT rowcast.track('whole')",
    )
    try:
        late.ticks.next()
        since = await late.position()
        late.run(
            "ALTER TABLE whole DETACH PARTITION part; SELECT rowcast.notice()",
            WRITE.format("part"),
            "SELECT rowcast.track('part')",
        )
        await late.db.catch_up()
        found = await late.all_after(since)
        assert [each["relation"] for each in found if each["op"] == "reset"] == ["whole", "part"]
    finally:
        execute(late.dsn, f"DROP TABLE whole, part; {FORGET}")


@served
@pytest_twisted.ensureDeferred
async def test_changes_newer_than_the_catalog_are_refused_as_retryable(
    late: LateCallers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the catalog cannot be read in time, they are not omitted from a page whose position is beyond them."""
    since = await late.position()
    execute(late.dsn, "CREATE TABLE newest (id int PRIMARY KEY); SELECT rowcast.track('newest')")
    try:
        late.run("INSERT INTO newest VALUES (1)")
        with monkeypatch.context() as patched:
            patched.setattr(late.db.dispatcher, "refresh", lambda: succeed(False))
            refused = await failure_of(late.changes(since))
        assert isinstance(refused, Unavailable)
        assert refused.details["retry"] is True
        await late.db.catch_up()
        assert [each["row"] for each in await late.all_after(since) if each["row"]] == [{"id": 1}]
    finally:
        execute(late.dsn, f"DROP TABLE newest; {FORGET}")


RENAMED = [
    "ALTER TABLE swapped RENAME secret TO x; ALTER TABLE swapped RENAME name TO secret;"
    " ALTER TABLE swapped RENAME x TO name",
    "ALTER TABLE swapped DROP secret; ALTER TABLE swapped ADD secret text",
    "DROP TABLE swapped; CREATE TABLE swapped (id int PRIMARY KEY, name text, secret text);"
    " SELECT rowcast.track('swapped')",
    "ALTER TABLE swapped RENAME secret TO old_secret; ALTER TABLE swapped ADD secret text",
]


@served
@pytest.mark.parametrize("ddl", RENAMED)
@pytest_twisted.ensureDeferred
async def test_hidden_column_is_not_shown_after_its_name_was_swapped(
    late: LateCallers, ddl: str
) -> None:
    execute(
        late.dsn,
        "DROP TABLE IF EXISTS swapped; CREATE TABLE swapped (id int PRIMARY KEY, name text, secret text);"
        " COMMENT ON COLUMN swapped.secret IS '@hidden'; SELECT rowcast.track('swapped')",
    )
    since = await late.position()
    late.run("INSERT INTO swapped VALUES (1, 'a', 'hush')", "DELETE FROM swapped")
    # the reset by `rowcast.notice` may be logged later
    late.run(ddl)
    answer = await late.changes(since, relations=["swapped"])
    assert {each["op"] for each in answer["changes"]} == {"reset"}
    assert "hush" not in repr(answer)
    late.run("INSERT INTO swapped (id, secret) VALUES (2, 'shown')")
    *_, change = (await late.changes(answer["position"], relations=["swapped"]))["changes"]
    assert change["row"]["id"] == 2
