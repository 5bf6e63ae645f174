"""Casts, names as values and planned counts reveal no names and rows that the caller may not see."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import InvalidArgument
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_roles import caller
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE nh_clerk;
CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO nh_clerk;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app."Odd""one" AS ENUM ('odd');
CREATE TYPE app.pair AS (a int, b text);
CREATE TYPE app.named AS (rel regclass, n int);
CREATE DOMAIN app.rel AS regclass;
CREATE TABLE app.secret (id int PRIMARY KEY);
CREATE TABLE app.things (id int PRIMARY KEY, word text, number text, rel regclass, rels regclass[],
    pair app.named, d app.rel, kind regtype, fn regproc, role regrole);
INSERT INTO app.things VALUES (1, 'app.secret', '1', 'app.things');
GRANT SELECT, INSERT, UPDATE ON app.things TO nh_clerk;
CREATE FUNCTION app.echo(rel regclass) RETURNS text LANGUAGE sql STABLE AS 'SELECT rel::text';
CREATE FUNCTION app.echoes(VARIADIC rels regclass[]) RETURNS text LANGUAGE sql STABLE
    AS 'SELECT rels::text';
CREATE TABLE app.guarded (id int PRIMARY KEY, thing int REFERENCES app.things, word text);
INSERT INTO app.guarded SELECT i, 1, 'hidden' FROM generate_series(1, 1000) i;
ALTER TABLE app.guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY none ON app.guarded TO nh_clerk USING (id < 3);
GRANT SELECT ON app.guarded TO nh_clerk;
CREATE VIEW app.through AS SELECT * FROM app.guarded;
CREATE VIEW app.twice WITH (security_invoker) AS SELECT * FROM app.through;
CREATE VIEW app.barrier WITH (security_barrier) AS SELECT id FROM app.things WHERE id < 1;
CREATE VIEW app.plain AS SELECT id FROM app.things;
GRANT SELECT ON app.through, app.twice, app.barrier, app.plain TO nh_clerk;
CREATE FUNCTION app.inlined() RETURNS SETOF app.guarded LANGUAGE sql STABLE
    AS 'SELECT * FROM app.guarded';
CREATE FUNCTION app.thing_of(app.guarded) RETURNS SETOF app.things ROWS 1 LANGUAGE sql STABLE
    AS 'SELECT * FROM app.things WHERE id = $1.thing';
CREATE FUNCTION app.n_guarded(app.things) RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT count(*) FROM app.guarded WHERE thing = $1.id';
ANALYZE;
"""
CLERK = caller("clerk")


pytestmark = pytest.mark.serving("app", roles=Roles({"clerk": "nh_clerk"}))


async def _refused(db: DirectCaller, name: str, *args: Any, **kwargs: Any) -> InvalidArgument:
    error = await failure_of(db.call_as(CLERK, name, *args, **kwargs))
    assert isinstance(error, InvalidArgument), error
    return error


REFUSED = """
    regclass regtype regproc regprocedure regoper regoperator regrole regnamespace regconfig
    regdictionary regcollation oid xid xid8 cid tid name aclitem pg_lsn pg_snapshot pg_node_tree
    oidvector int2vector refcursor cstring regclass[] _regclass pg_catalog.regclass oid[] "char"
    information_schema.sql_identifier app.rel app.named app.secret secret
"""


@pytest.mark.parametrize("type", REFUSED.split())
@pytest_twisted.ensureDeferred
async def test_cast_to_a_type_that_looks_up_names_is_refused(db: DirectCaller, type: str) -> None:
    cast = type if '"' not in type else "oid"
    refused = await _refused(db, "things.find", select=["id", f"word::{type}"])
    assert refused.details["path"] == "select.1"
    assert "secret" not in str(refused).replace(type, "")
    await _refused(db, "things.find", order=[f"word::{type}"])
    await _refused(db, "things.find", embed={"things": {"select": [f"word::{type}"]}})
    await _refused(db, "things.aggregate", measures={"n": {"max": "word", "cast": cast}})
    await _refused(db, "things.aggregate", measures={"n": "count"}, group=[f"word::{type}"])
    await _refused(db, "things.update", 1, {"word": "x"}, select=[f"word::{type}"])


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("int4", 1),
        ("integer", 1),
        ("numeric", "1"),
        ("text[]", None),
        ("varchar", "1"),
        ("json", 1),
        ("app.plain", None),
        ("app.pair", None),
        ("mood", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_cast_to_a_plain_type_is_accepted(db: DirectCaller, type: str, value: Any) -> None:
    item = f"x:number::{type}"
    if value is None:  # a cast of null looks nothing up
        item = f"x:pair->>n::{type}"
    (row,) = (await db.call_as(CLERK, "things.find", select=[item]))["rows"]
    assert row == {"x": value}


@pytest.mark.parametrize("name", ["app.secret", "secret", "pg_class", "nothing_at_all", "1"])
@pytest_twisted.ensureDeferred
async def test_name_of_a_hidden_relation_is_refused_like_an_unknown_one(
    db: DirectCaller, name: str
) -> None:
    told = set()
    for kwargs in (
        {"where": {"rel": name}},
        {"where": {"rel": {"in": [name]}}},
        {"where": {"d": name}},
        {"where": {"rels": {"cs": [name]}}},
        {"where": {"pair": {"eq": {"rel": name, "n": 1}}}},
        {"where": {"or": [{"kind": name}]}},
        {"where": {"fn": name}},
        {"where": {"role": name}},
    ):
        told.add(str(await _refused(db, "things.find", **kwargs)).replace(name, "?"))
    told.add(str(await _refused(db, "things.create", {"id": 2, "rel": name})))
    told.add(str(await _refused(db, "fn.echo", rel=name)))
    told.add(str(await _refused(db, "fn.echoes", rels=[name])))
    assert {each.split(", as ")[0] for each in told} == {"nothing served has this name"}
    for whole in (f"({name},1)", f"{{{name}}}"):
        column = "pair" if whole[0] == "(" else "rels"
        refused = await _refused(db, "things.find", where={column: {"eq": whole}})
        assert "not a text" in str(refused)


@pytest_twisted.ensureDeferred
async def test_name_of_a_served_relation_is_accepted_as_value(db: DirectCaller) -> None:
    for name in ("things", "app.things", '"things"', '"app"."things"'):
        found = await db.call_as(CLERK, "things.find", where={"rel": name}, select=["rel"])
        assert found["rows"] == [{"rel": "things"}]
    assert await db.call_as(CLERK, "fn.echo", rel="app.things") == "things"
    row = {"id": 3, "rels": ["things"], "kind": "integer", "fn": "n_guarded", "rel": "-"}
    made = await db.call_as(CLERK, "things.create", row)
    assert {name: made[name] for name in row} == row


@pytest.mark.parametrize("name", ["app.mood", "mood[]", 'app."Odd""one"', '"Odd""one"[]', "int4[]"])
@pytest_twisted.ensureDeferred
async def test_name_of_a_type_that_is_read_can_be_sent_back(
    db: DirectCaller, dsn: str, name: str
) -> None:
    """PostgreSQL writes it as in SQL: quoted, and with brackets for an array."""
    made = await db.call_as(CLERK, "things.create", {"id": 7, "kind": name})
    try:
        found = await db.call_as(CLERK, "things.find", where={"kind": made["kind"]}, select=["id"])
        assert found["rows"] == [{"id": 7}]
        again = await db.call_as(CLERK, "things.update", 7, {"kind": made["kind"]})
        assert again["kind"] == made["kind"]
    finally:
        execute(dsn, "DELETE FROM app.things WHERE id = 7")


@pytest_twisted.ensureDeferred
async def test_page_token_of_rows_sorted_by_names_cannot_look_up_names(db: DirectCaller) -> None:
    await db.call_as(CLERK, "things.create", [{"id": 4, "rel": "guarded"}, {"id": 5}])
    seen, after = [], None
    while True:
        page = await db.call_as(
            CLERK, "things.find", order=["rel"], select=["id"], limit=1, after=after
        )
        seen += [row["id"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
    assert {1, 4, 5} <= set(seen)
    assert len(set(seen)) == len(seen)
    await _refused(db, "things.import", format="csv", columns=["id", "rel"], data="9,app.secret\n")


@pytest.mark.parametrize("mode", ["planned", "estimated"])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("guarded.find", {}),
        ("guarded.find", {"where": {"word": "hidden"}}),
        ("through.find", {}),
        ("twice.find", {}),
        ("barrier.find", {}),
        ("things.find", {"where": {"guarded.word": "hidden"}}),
        ("things.find", {"where": {"not": {"guarded.word": "hidden"}}}),
        ("things.find", {"embed": {"guarded": {"inner": True}}}),
        ("things.find", {"where": {"n_guarded": 1}}),
        ("fn.inlined.find", {}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_planned_count_under_a_policy_is_refused(
    db: DirectCaller, mode: str, name: str, kwargs: dict[str, Any]
) -> None:
    refused = await _refused(db, name, count=mode, **kwargs)
    assert (refused.details["path"], refused.details["hint"]) == (
        "count",
        '"exact" counts what may be seen',
    )
    assert "count" in await db.call_as(CLERK, name, count="exact", **kwargs)


@pytest.mark.parametrize("name", ["things.find", "plain.find"])
@pytest_twisted.ensureDeferred
async def test_planned_count_without_policies_is_returned(db: DirectCaller, name: str) -> None:
    assert (await db.call_as(CLERK, name, count="planned"))["count"] == 1
