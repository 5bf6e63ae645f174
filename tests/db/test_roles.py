"""
Calls with the rights of the caller's role: grants, row-level security, claims.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twistar.registry import Registry
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import LogLevel, capturedLogs, formatEvent

from service.api.roles import Roles
from service.describe.document import describe
from service.errors import (
    ForeignKeyViolation,
    InternalError,
    InvalidArgument,
    NoSuchProcedure,
    NotAuthorized,
    NotFound,
    ServiceError,
    UniqueViolation,
)
from service.models.model import Model
from service.request.arguments import Caller
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.relay import Relay
from tests.deferreds import failure_of

ROLES = Roles({"clerk": "rc_clerk", "boss": "rc_boss"}, "rc_anyone")

SCHEMA = """
CREATE ROLE rc_clerk; CREATE ROLE rc_boss; CREATE ROLE rc_anyone;
CREATE TABLE notes (id int PRIMARY KEY, owner text, text text, salary int);
INSERT INTO notes SELECT i, 'p' || i % 3, 'note ' || i, i * 100 FROM generate_series(1, 12) i;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO rc_clerk USING (owner = current_setting('rowcast.authid', true));
CREATE POLICY every ON notes TO rc_boss USING (true);
GRANT SELECT (id, owner, text), INSERT (id, owner, text), UPDATE (text), DELETE ON notes
    TO rc_clerk;
GRANT ALL ON notes TO rc_boss;
CREATE TABLE news (id int PRIMARY KEY, text text); INSERT INTO news VALUES (1, 'hi');
GRANT SELECT ON news TO rc_anyone, rc_clerk;
CREATE TABLE tags (id int PRIMARY KEY, note int REFERENCES notes);
INSERT INTO tags SELECT i, i FROM generate_series(1, 12) i;
GRANT SELECT ON tags TO rc_clerk;
CREATE TABLE vault (code text UNIQUE, note int UNIQUE REFERENCES news);
INSERT INTO vault VALUES ('hush', 1);
ALTER TABLE vault ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON vault TO rc_clerk; GRANT INSERT, DELETE ON news TO rc_clerk;
CREATE FUNCTION stash() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN INSERT INTO vault SELECT code FROM vault; RETURN NULL; END$$;
CREATE TRIGGER stash AFTER INSERT ON news FOR EACH ROW EXECUTE FUNCTION stash();
CREATE FUNCTION stashed() RETURNS void LANGUAGE sql SECURITY DEFINER
    AS 'INSERT INTO vault SELECT code FROM vault';
CREATE VIEW me AS SELECT current_user::text AS role,
    current_setting('rowcast.authid', true) AS authid,
    current_setting('rowcast.authrole', true) AS authrole,
    current_setting('rowcast.realm', true) AS realm,
    current_setting('rowcast.session', true) AS session;
GRANT SELECT ON me TO rc_clerk, rc_anyone;
"""


def caller(authrole: str | None, authid: str | None = "p1", session: int | None = 7) -> Caller:
    """Return a caller."""
    return Caller(session, authid, authrole, "realm1")


CLERK, BOSS, STRANGER = caller("clerk"), caller("boss"), caller("guest", None)


pytestmark = pytest.mark.serving(roles=ROLES)


@pytest_twisted.ensureDeferred
async def test_rows_of_a_role_are_those_that_its_policies_allow(db: DirectCaller) -> None:
    """This holds for reads, counts and writes."""
    mine = await db.call_as(CLERK, "notes.find")
    assert [row["id"] for row in mine["rows"]] == [1, 4, 7, 10]
    assert await db.call_as(CLERK, "notes.count") == 4
    assert await db.call_as(BOSS, "notes.count") == 12
    assert await db.call_as(caller("clerk", "p2"), "notes.count") == 4
    assert await db.call_as(caller("clerk", None), "notes.count") == 0
    assert isinstance(await failure_of(db.call_as(CLERK, "notes.get", 2)), NotFound)
    refused = await failure_of(db.call_as(CLERK, "notes.update", 2, {"text": "x"}))
    assert isinstance(refused, NotFound)
    changed = await db.call_as(CLERK, "notes.update", all=True, changes={"text": "mine"})
    assert changed["affected"] == 4
    refused = await failure_of(
        db.call_as(CLERK, "notes.create", {"id": 99, "owner": "p2", "text": "forged"})
    )
    assert isinstance(refused, NotAuthorized)
    assert "row-level security" in str(refused), "it is no GRANT that is missing"


@pytest_twisted.ensureDeferred
async def test_column_that_a_role_may_not_read_is_refused(db: DirectCaller) -> None:
    """It can neither be selected, nor be used in a filter or sort key."""
    row = await db.call_as(CLERK, "notes.get", 1)
    assert set(row) == {"id", "owner", "text"}
    assert (await db.call_as(BOSS, "notes.get", 1))["salary"] == 100
    for kwargs in ({"where": {"salary": {"gt": 1}}}, {"order": ["salary"]}, {"select": ["salary"]}):
        refused = await failure_of(db.call_as(CLERK, "notes.find", **kwargs))
        assert isinstance(refused, NotAuthorized | InvalidArgument), refused
    refused = await failure_of(db.call_as(CLERK, "notes.update", 1, {"owner": "p2"}))
    assert isinstance(refused, NotAuthorized)


@pytest_twisted.ensureDeferred
async def test_relation_that_a_role_may_not_use_is_unknown(db: DirectCaller) -> None:
    """Such a relation does not exist for the role, in embeds either."""
    assert await db.call_as(STRANGER, "news.count") == 1
    assert isinstance(await failure_of(db.call_as(STRANGER, "notes.find")), NoSuchProcedure)
    assert isinstance(await failure_of(db.call_as(BOSS, "news.find")), NoSuchProcedure)
    tags = await db.call_as(CLERK, "tags.find", embed={"notes": {"select": ["text"]}})
    assert sum(row["notes"] is not None for row in tags["rows"]) == 4


@pytest_twisted.ensureDeferred
async def test_claims_of_a_caller_are_readable_by_policies_and_reset_after_the_call(
    db: DirectCaller,
) -> None:
    """Policies can read the claims; they are reset before the next call."""
    odd = caller("clerk", "o'hara %s \\ \" ; --", 2**53 - 1)
    assert (await db.call_as(odd, "me.find"))["rows"] == [
        {
            "role": "rc_clerk",
            "authid": "o'hara %s \\ \" ; --",
            "authrole": "clerk",
            "realm": "realm1",
            "session": str(2**53 - 1),
        }
    ]
    found = (await db.call_as(caller(None, None, None), "me.find"))["rows"][0]
    assert (found["role"], found["authid"], found["session"]) == ("rc_anyone", "", "")
    database = db.catalogs._database
    assert await database.statement("SELECT current_user::text") == [("postgres",)]
    assert await database.statement("SELECT current_setting('rowcast.authid', true)") in (
        [(None,)],
        [("",)],
    )


@pytest.mark.parametrize("authid", ["p\0001", "p1\0", "p\ud8001"])
@pytest_twisted.ensureDeferred
async def test_caller_whose_claim_the_database_cannot_hold_is_refused(
    db: DirectCaller, authid: str
) -> None:
    """Without the characters that a setting cannot hold, the authid would be that of another caller."""
    for name, args in (
        ("me.find", ()),
        ("notes.find", ()),
        ("transaction", ([{"call": "me.find"}],)),
    ):
        refused = await failure_of(db.call_as(caller("clerk", authid), name, *args))
        assert isinstance(refused, NotAuthorized), name
        assert str(refused) == "PostgreSQL's text cannot hold this caller's authid"


@pytest_twisted.ensureDeferred
async def test_call_with_a_role_is_one_message(dsn: str) -> None:
    """The role and the claims are sent with the statement, so a call remains one round trip."""
    with Relay(dsn) as relay:
        async with serving(relay.dsn, roles=ROLES) as db:
            await db.call_as(CLERK, "notes.get", 1)
            for verb, args in (("get", (4,)), ("find", ()), ("count", ()), ("get", (7,))):
                before = len(relay.messages)
                await db.call_as(CLERK, f"notes.{verb}", *args)
                (message,) = relay.messages[before:]
                assert message.startswith(
                    b"SET LOCAL role='rc_clerk';SET LOCAL rowcast.authid='p1';"
                )


@pytest_twisted.ensureDeferred
async def test_caller_without_a_role_is_not_authorized(dsn: str) -> None:
    """Each call of a caller without a role is refused."""
    async with serving(dsn, roles=Roles({"clerk": "rc_clerk"})) as callee:
        for name in ("notes.find", "news.find", "nope.find"):
            refused = await failure_of(callee.call_as(STRANGER, name))
            assert isinstance(refused, NotAuthorized), refused
        assert await callee.call_as(CLERK, "notes.count") == 4


@pytest_twisted.ensureDeferred
async def test_role_that_cannot_be_served_is_logged_with_a_remedy(dsn: str) -> None:
    """Other roles are served, and the log says what the operator has to do."""
    execute(dsn, "CREATE ROLE rc_plain LOGIN; CREATE ROLE rc_alone; GRANT rc_clerk TO rc_plain")
    roles = Roles({"clerk": "rc_clerk", "boss": "rc_nobody"}, "rc_alone")
    plain = psycopg2.extensions.make_dsn(dsn, user="rc_plain")
    try:
        with capturedLogs() as captured:
            async with serving(plain, roles=roles) as callee:
                assert await callee.call_as(CLERK, "notes.count") == 4
        said = sorted(formatEvent(each) for each in captured if each["log_level"] is LogLevel.warn)
        alone, nobody = (each for each in said if "are refused" in each)
        assert 'GRANT "rc_alone" TO' in alone
        assert "ROWCAST_ANONYMOUS" in alone
        assert 'CREATE ROLE "rc_nobody"' in nobody
        assert "ROWCAST_ROLES (boss=rc_nobody)" in nobody
    finally:
        execute(dsn, "DROP OWNED BY rc_plain, rc_alone; DROP ROLE rc_plain, rc_alone")


@pytest_twisted.ensureDeferred
async def test_concurrent_calls_of_roles_keep_their_own_role(db: DirectCaller) -> None:
    """Concurrent calls of different roles never run with each other's role."""

    async def count(who: Caller, expected: int) -> None:
        for _ in range(20):
            assert await db.call_as(who, "notes.count") == expected

    await gatherResults(
        [
            ensureDeferred(count(who, expected))
            for who, expected in ((CLERK, 4), (BOSS, 12), (caller("clerk", "nobody"), 0)) * 4
        ]
    )


POLICY = st.lists(st.sampled_from(range(1, 13)), max_size=12, unique=True)
FILTERS = st.sampled_from(
    [
        {},
        {"id": {"gt": 3}},
        {"text": {"like": "note 1%"}},
        {"not": {"id": 5}},
        {"or": [{"id": 1}, {"owner": "p2"}]},
        {"owner": {"in": ["p0", "p1"]}},
    ]
)
ORDERS = st.sampled_from([[], ["-id"], ["owner", "-text"], ["-owner"]])


@settings(
    max_examples=amount(6, 40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(visible=POLICY, columns=st.sampled_from(["id", "id, owner", "id, owner, text"]),
       where=FILTERS, order=ORDERS)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_random_policies_hide_rows_from_every_read(
    dsn: str, visible: list[int], columns: str, where: Any, order: Any
) -> None:
    """With any policies and grants, no role can read, count, filter or sort by hidden rows and columns."""
    rows = ",".join(map(str, visible)) or "NULL"
    execute(
        dsn,
        "DROP TABLE IF EXISTS random; CREATE TABLE random AS SELECT id, 'p' || id % 3 AS owner,"
        " 'note ' || id AS text FROM generate_series(1, 12) id;"
        " ALTER TABLE random ADD PRIMARY KEY (id), ENABLE ROW LEVEL SECURITY;"
        f" CREATE POLICY shown ON random TO rc_clerk USING (id IN ({rows}));"
        f" GRANT SELECT ({columns}) ON random TO rc_clerk",
    )
    allowed = set(columns.split(", "))
    asked = set(str(where).replace("'", " ").split()) & {"id", "owner", "text"}
    asked |= {key.lstrip("-") for key in order}
    async with serving(dsn, roles=ROLES) as callee:
        try:
            found = await callee.call_as(
                CLERK, "random.find", where=where, order=order, count="exact"
            )
        except ServiceError as refused:
            assert isinstance(refused, NotAuthorized | InvalidArgument), refused
            assert asked - allowed
            return
    assert not asked - allowed
    assert {row["id"] for row in found["rows"]} <= set(visible)
    assert all(set(row) == allowed for row in found["rows"])
    assert found["count"] == len(found["rows"])


class Paid(Model):
    """A model with a hook that sets a column for which a clerk has no privilege."""

    TABLENAME = "notes"

    def beforeSave(self) -> None:
        """Set the salary."""
        self.salary = 7


@pytest_twisted.ensureDeferred
async def test_rule_that_sets_a_column_beyond_the_role_is_refused(dsn: str) -> None:
    """A model writes with its caller's privileges, and the refusal does not name the column."""
    async with serving(dsn, roles=ROLES, written=(Paid,)) as callee:
        row = {"id": 80, "owner": "p1", "text": "x"}
        calls = [
            callee.call_as(CLERK, "notes.create", row),
            callee.call_as(CLERK, "notes.update", 1, {"text": "y"}),
            callee.call_as(CLERK, "notes.import", rows=[row]),
        ]
        for call in calls:
            refused = await failure_of(call)
            assert isinstance(refused, NotAuthorized), refused
            assert "salary" not in f"{refused} {refused.details}"
        assert (await callee.call_as(BOSS, "notes.create", row))["salary"] == 7
        await callee.call_as(BOSS, "notes.delete", 80)


RIGHTS = st.sets(st.sampled_from(["SELECT", "INSERT", "UPDATE"]))
TREES = ("amber", "birch", "cedar", "douglas")
NEAR: list[tuple[str, dict[str, Any]]] = [
    ("woods.find", {"where": {"ambe": 1}}),
    ("woods.find", {"where": {"embers.birc": 1}, "embed": {"embers": {"relation": "birc"}}}),
    ("woods.find", {"order": ["birc"]}),
    ("woods.find", {"select": ["ceda"], "distinct": ["dougla"]}),
    ("woods.find", {"embed": {"ambe": True}}),
    ("woods.find", {"embed": {"woods": {"via": "ambe"}}}),
    ("woods.find", {"embed": {"woods": True}}),
    ("woods.aggregate", {"measures": {"n": {"sum": "dougla"}}, "group": ["ceda"]}),
    ("woods.get", {"key": {"ceda": 1}}),
    ("woods.get", {"key": [1, 2, 3]}),
    ("woods.update", {"key": 1, "changes": {"birc": 1}}),
    ("woods.update", {"all": True, "changes": {"id": None}}),
    ("woods.update", {"all": True, "changes": {"id": 3}, "select": ["id"]}),
    ("woods.update", {"key": 1, "changes": {"birc": {"$add": 1}}}),
    ("woods.update", {"all": True, "changes": {"ceda": {"$add": 1}}}),
    ("woods.update", {"all": True, "changes": {"dougla->a": 1}}),
    ("woods.update", {"all": True, "changes": {"id": 3}, "order": ["birc"], "limit": 1}),
    ("woods.update", {"rows": [{"id": 1, "ceda": 1}]}),
    ("woods.update", {"rows": [{"id": 1, "ambe": 1}], "by": ["birc"]}),
    ("woods.update", {"rows": [{"ceda": 1, "id": 1}], "by": ["ceda"]}),
    ("woods.update", {"rows": [{"id": 9, "ambe": {"$multiply": 1}}], "returning": False}),
    ("woods.update", {"key": 1, "changes": {"ambe": 1}, "returning": "both"}),
    ("woods.delete", {"key": 1, "returning": "both"}),
    ("woods.create", {"values": {}}),
    ("woods.create", {"values": {"id": 3}, "returning": False}),
    ("woods.create", {"values": {"id": 1}, "returning": False}),
    ("woods.create", {"values": {"ceda": 3}}),
    ("woods.upsert", {"values": {"id": 1}, "on_conflict": ["ceda"]}),
    ("woods.upsert", {"values": {"id": 1}, "on_conflict": "woods_ceda_key"}),
    ("woods.upsert", {"values": {"id": 1}, "update": ["birc"]}),
    ("woods.import", {"csv": "id,ambe\n3,4\n"}),
    ("woods.import", {"csv": "id\n3\n"}),
    ("woods.delete", {"key": 1}),
    ("woods.delete", {"where": {"id": 1}}),
    ("fn.grow", {}),
]


@pytest.mark.timeout(600)
@settings(
    max_examples=amount(2, 30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rights=st.fixed_dictionaries({name: RIGHTS for name in ("id", *TREES)}))
@pytest_twisted.ensureDeferred
async def test_refusals_under_random_rights_name_no_unreadable_column(
    dsn: str, rights: dict[str, set[str]]
) -> None:
    """Neither refusals nor `describe` name a column on which the role has no privilege."""
    grants = [f"{right} ({name})" for name, found in rights.items() for right in sorted(found)]
    execute(
        dsn,
        "DROP TABLE IF EXISTS woods; CREATE TABLE woods (id int PRIMARY KEY,"
        " amber int REFERENCES woods, birch int NOT NULL DEFAULT 1 REFERENCES woods,"
        " cedar int DEFAULT 1 UNIQUE, douglas int DEFAULT 7 NOT NULL CHECK (douglas < id + 6));"
        " CREATE UNIQUE INDEX woods_douglas_twice ON woods ((douglas * 2));"
        " INSERT INTO woods VALUES (1, 1, 1, 1, 6), (2, 1, 1, 2, 7);"
        " CREATE OR REPLACE FUNCTION grow() RETURNS void LANGUAGE sql SECURITY DEFINER"
        " AS 'INSERT INTO woods (id) VALUES (4)';"
        " GRANT DELETE ON woods TO rc_clerk;"
        + "".join(f" GRANT {each} ON woods TO rc_clerk;" for each in grants),
    )
    unseen = [name for name in TREES if not rights[name]]
    async with serving(dsn, roles=ROLES) as callee:
        catalog = callee.dispatcher.served_to(CLERK).catalog
        document = str(describe(catalog, "rowcast", "0", callee.dispatcher.verbs, {}))
        assert not [each for each in unseen if each in document]
        for name, kwargs in NEAR:
            try:
                await callee.call_as(CLERK, name, **kwargs)
            except ServiceError as refused:
                assert not isinstance(refused, InternalError), (name, kwargs)
                told = f"{refused} {refused.details}"
                assert not [each for each in unseen if each in told], (name, kwargs, told)


SOIL = ("loam", "peat", "chalk")
COLUMNS = tuple(f"{soil}_{plant}" for soil in SOIL for plant in ("fern", "moss"))
FUNCTIONS = tuple(f"{verb}_{soil}" for soil in SOIL for verb in ("takes", "gives", "lists"))


def beds() -> str:
    """Return SQL for tables whose every name has a unique word, and for functions of their rows."""
    sql = ["DROP SCHEMA IF EXISTS beds CASCADE; CREATE SCHEMA beds; GRANT USAGE ON SCHEMA beds"
           " TO rc_clerk;"]  # fmt: skip
    for soil in SOIL:
        words = [f"{soil}_{plant}" for plant in ("fern", "moss")]
        for word in words:
            sql.append(
                f"CREATE TYPE beds.kind_{word} AS ENUM ('label_{word}');"
                f"CREATE FUNCTION beds.made_{word}() RETURNS text LANGUAGE sql AS $$SELECT 'x'$$;"
                f"REVOKE EXECUTE ON FUNCTION beds.made_{word} FROM public;"
            )
        columns = ", ".join(
            f"{word} beds.kind_{word} DEFAULT 'label_{word}',"
            f" x_{word} text DEFAULT beds.made_{word}(),"
            f" CONSTRAINT check_{word} CHECK ({word} IS NOT NULL)"
            for word in words
        )
        sql.append(
            f"CREATE TABLE beds.{soil} ({columns}, UNIQUE ({words[0]}));"
            f"COMMENT ON TABLE beds.{soil} IS 'about_{soil}';"
            + "".join(f"COMMENT ON COLUMN beds.{soil}.{word} IS 'of_{word}';" for word in words)
            + f"CREATE FUNCTION beds.takes_{soil}(r beds.{soil}) RETURNS int LANGUAGE sql"
            f" AS 'SELECT 1'; CREATE FUNCTION beds.gives_{soil}() RETURNS beds.{soil} LANGUAGE sql"
            f" AS 'SELECT * FROM beds.{soil}'; CREATE FUNCTION beds.lists_{soil}(r beds.{soil}[])"
            f" RETURNS SETOF beds.{soil} LANGUAGE sql AS 'SELECT * FROM beds.{soil}';"
        )
    return "".join(sql)


@settings(
    max_examples=amount(3, 15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rights=st.fixed_dictionaries({name: RIGHTS for name in COLUMNS}),
    run=st.sets(st.sampled_from(FUNCTIONS)),
)
@pytest_twisted.ensureDeferred
async def test_descriptions_under_random_rights_name_no_inaccessible_object(
    dsn: str, rights: dict[str, set[str]], run: set[str]
) -> None:
    """No part of a description contains a name on which the role has no privilege."""
    grants = [
        f"GRANT {right} ({name}) ON beds.{name.split('_')[0]} TO rc_clerk;"
        for name, found in rights.items()
        for right in sorted(found)
    ]
    revoked = [f"REVOKE EXECUTE ON FUNCTION beds.{name} FROM public;" for name in FUNCTIONS
               if name not in run]  # fmt: skip
    execute(dsn, beds() + "".join([*grants, *revoked]))
    async with serving(dsn, "beds", roles=ROLES) as callee:
        catalog = callee.dispatcher.served_to(CLERK).catalog
        document = json.dumps(describe(catalog, "rowcast", "0", callee.dispatcher.verbs, {}))
    execute(dsn, "DROP SCHEMA beds CASCADE")
    for name, found in rights.items():
        soil = name.split("_")[0]
        known = any(rights[each] for each in COLUMNS if each.startswith(soil))
        assert bool(re.search(rf"\b{name}\b", document)) is bool(found), name
        assert bool(re.search(rf"\b(label|of|kind)_{name}\b", document)) is bool(found), name
        assert not re.search(rf"(x|made|check)_{name}", document), name
        assert bool(re.search(rf"\b(about_)?{soil}\b", document)) is known, soil
    for name in FUNCTIONS:
        known = any(rights[each] for each in COLUMNS if each.startswith(name.split("_")[1]))
        assert bool(re.search(rf"\b{name}\b", document)) is (known and name in run), name


@pytest_twisted.ensureDeferred
async def test_rows_of_a_security_definer_have_all_columns_and_are_described(dsn: str) -> None:
    """A SECURITY DEFINER function returns all columns, and the description has them."""
    execute(
        dsn,
        "CREATE TABLE safe (code text, pin int DEFAULT 1); INSERT INTO safe VALUES ('a', 2);"
        " CREATE FUNCTION opened() RETURNS SETOF safe LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT * FROM safe';"
        " CREATE FUNCTION wanted(s safe) RETURNS int LANGUAGE sql AS 'SELECT s.pin';"
        " CREATE FUNCTION next_pin() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        " REVOKE EXECUTE ON FUNCTION next_pin FROM public;"
        " ALTER TABLE safe ADD number int DEFAULT next_pin();"
        " GRANT SELECT (number) ON safe TO rc_anyone",
    )
    async with serving(dsn, roles=ROLES) as callee:
        assert await callee.call_as(CLERK, "fn.opened") == [{"code": "a", "pin": 2, "number": 1}]
        document = describe(
            callee.dispatcher.served_to(CLERK).catalog, "x", "0", callee.dispatcher.verbs, {}
        )
        assert set(document["$defs"]["row.fn.opened.0"]["properties"]) == {"code", "pin", "number"}
        assert "fn.wanted" not in document["functions"]
        for kwargs in ({"args": [{"pim": 1}]}, {"s": {"cod": 1}}, {"s": ["a", "b", 1]}):
            refused = await failure_of(callee.call_as(STRANGER, "fn.wanted", **kwargs))
            assert isinstance(refused, InvalidArgument), refused
            assert not re.search("pin|code", f"{refused} {refused.details}"), refused.details
        known = describe(
            callee.dispatcher.served_to(STRANGER).catalog, "x", "0", callee.dispatcher.verbs, {}
        )
        assert "next_pin" not in json.dumps(known)
        assert known["relations"]["safe"]["columns"]["number"]["default"]


@pytest_twisted.ensureDeferred
async def test_statement_by_twistars_pool_runs_as_the_caller(db: DirectCaller) -> None:
    """A query through the Registry's pool runs with the caller's role, in the caller's transaction."""
    who = "SELECT current_user::text, current_setting('rowcast.authid', true)"

    def ask(cursor: Any) -> Any:
        cursor.execute(who)
        return cursor.fetchall()

    async def asking(_: Caller, args: Any, kwargs: Any) -> list[Any]:
        pool = Registry.DBPOOL
        found = [
            await pool.runQuery(who),
            await pool.runInteraction(ask),
            await pool.runWithConnection(lambda connection: ask(connection.cursor())),
        ]
        with suppress(KeyError):
            async with db.database.transaction():
                new = "INSERT INTO notes (id, owner, text) VALUES (70, 'p1', 'x')"
                assert await pool.runOperation(new) is None
                found.append(await pool.runQuery("SELECT id FROM notes WHERE id = %s", [70]))
                raise KeyError
        return [*found, await pool.runQuery("SELECT id FROM notes WHERE id = 70")]

    db.dispatcher.add({"asking": asking})
    assert await db.call_as(CLERK, "asking") == [[("rc_clerk", "p1")]] * 3 + [[(70,)], []]


@pytest_twisted.ensureDeferred
async def test_violation_inside_a_trigger_shows_no_hidden_key(db: DirectCaller) -> None:
    """The key of a row that a trigger writes and the caller may not read is not shown."""
    calls = [db.call_as(CLERK, "news.create", {"id": 9}), db.call_as(CLERK, "fn.stashed")]
    for call in calls:
        refused = await failure_of(call)
        assert isinstance(refused, UniqueViolation)
        assert refused.details["columns"] == ["code"]
        assert "hush" not in f"{refused} {refused.details}"
    refused = await failure_of(db.call_as(CLERK, "news.create", {"id": 1}))
    assert isinstance(refused, UniqueViolation)
    assert refused.details["detail"] == "Key (id)=(1) already exists."
    refused = await failure_of(db.call_as(CLERK, "news.delete", 1))
    assert isinstance(refused, ForeignKeyViolation)
    assert "Key (id)=(1)" in refused.details["detail"]
