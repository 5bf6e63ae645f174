"""
Relationships that `describe` lists, by each of their names, as embeds and as filters.

The rows are compared with those of hand-written joins, over schemas in which many names of
relationships are ambiguous.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import pytest_twisted

from service.catalog import Catalog, Relation
from service.describe.document import describe
from service.errors import InvalidArgument
from service.plan.joins import Join, relationships
from tests.amounts import amount
from tests.conftest import ROOT, execute, missing
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA away;
CREATE TABLE stadium (id int PRIMARY KEY, city text);
CREATE TABLE team (id int PRIMARY KEY, ground int REFERENCES stadium, rival int UNIQUE REFERENCES team);
CREATE TABLE match (
    home int REFERENCES team, away int REFERENCES team, place int REFERENCES stadium,
    spare int REFERENCES stadium, PRIMARY KEY (home, away, place, spare));
CREATE TABLE person (id int PRIMARY KEY, boss int REFERENCES person, team int REFERENCES team,
    CONSTRAINT "odd.name" FOREIGN KEY (team) REFERENCES team);
CREATE TABLE league (country text, year int, PRIMARY KEY (country, year));
CREATE TABLE season (
    team int REFERENCES team, country text, year int, PRIMARY KEY (team, country, year),
    FOREIGN KEY (country, year) REFERENCES league);
CREATE TABLE away.team (id int PRIMARY KEY, host int REFERENCES team);
CREATE TABLE away.match (home int REFERENCES team, place int REFERENCES stadium, PRIMARY KEY (home, place));
CREATE TABLE goal (id int, match_home int REFERENCES team, half int, PRIMARY KEY (id, half))
    PARTITION BY LIST (half);
CREATE TABLE goal_first PARTITION OF goal FOR VALUES IN (1);
CREATE TABLE goal_second PARTITION OF goal FOR VALUES IN (2);
CREATE TABLE "wow!" (id int PRIMARY KEY, "a.b" int REFERENCES team, "c:d" int REFERENCES team);
CREATE FUNCTION mates(person) RETURNS SETOF person STABLE LANGUAGE sql AS
    $$ SELECT p FROM person p WHERE p.team = $1.team AND p.id <> $1.id $$;
CREATE FUNCTION team(stadium) RETURNS SETOF team STABLE LANGUAGE sql AS
    $$ SELECT t FROM team t WHERE t.ground = $1.id AND t.id < 3 $$;
CREATE VIEW v_team AS SELECT * FROM team;
CREATE VIEW v_match AS SELECT * FROM match;
CREATE VIEW v_stadium AS SELECT * FROM stadium;
CREATE VIEW v_person AS SELECT id, boss, team AS one, team AS two FROM person;
CREATE VIEW v_season AS SELECT * FROM season;
CREATE VIEW v_league AS SELECT * FROM league;
CREATE VIEW big_match AS SELECT * FROM match WHERE home < 3;
INSERT INTO stadium SELECT i, 'city ' || i FROM generate_series(1, 4) i;
INSERT INTO team SELECT i, 1 + i % 3, nullif(i, 1) - 1 FROM generate_series(1, 5) i;
INSERT INTO match SELECT 1 + i % 5, 1 + i % 4, 1 + i % 3, 1 + i * i % 4 FROM generate_series(1, 30) i
    ON CONFLICT DO NOTHING;
INSERT INTO person SELECT i, nullif(i / 2, 0), nullif(i % 6, 0) FROM generate_series(1, 12) i;
INSERT INTO league SELECT c, y FROM unnest(ARRAY['a', 'b']) c, generate_series(2000, 2002) y;
INSERT INTO season SELECT 1 + i % 4, chr(97 + i % 2), 2000 + i % 3 FROM generate_series(1, 12) i
    ON CONFLICT DO NOTHING;
INSERT INTO away.team SELECT i, 1 + i % 4 FROM generate_series(1, 5) i;
INSERT INTO away.match SELECT 1 + i % 3, 1 + i % 4 FROM generate_series(1, 9) i ON CONFLICT DO NOTHING;
INSERT INTO goal SELECT i, 1 + i % 5, 1 + i % 2 FROM generate_series(1, 9) i;
INSERT INTO "wow!" SELECT i, 1 + i % 5, 1 + i % 4 FROM generate_series(1, 6) i;
"""
NORTHWIND = ROOT.parent / "shared" / "data" / "northwind" / "northwind.sql"


pytestmark = pytest.mark.serving("public", "away")


def texts(relation: Relation) -> list[str]:
    """Return a select list of all columns as text, named c0, c1 and so on."""
    return [f'c{at}:"{name}"::text' for at, name in enumerate(relation.columns)]


def json_list(relation: Relation, alias: str) -> str:
    """Return an SQL expression for the same columns as a JSON list."""
    each = ", ".join(f'{alias}."{name}"::text' for name in relation.columns)
    return f"json_build_array({each})"


def join_query(join: Join, relation: Relation) -> str:
    """Return the query of the rows of a relation and their related rows."""
    on = [f't."{here}" = r."{there}"' for here, there in join.pairs]
    target, between = f'"{join.target.schema}"."{join.target.name}"', ""
    if join.junction is not None:
        middle = join.junction.relation
        on = [f't."{here}" = j."{there}"' for here, there in join.junction.outer_pairs]
        on += [f'j."{here}" = r."{there}"' for here, there in join.junction.related_pairs]
        between = f'"{middle.schema}"."{middle.name}" j, '
    if join.function is not None:
        target, on = f'"{join.function.schema}"."{join.function.name}"(t.*)', ["true"]
    return (
        f"SELECT {json_list(relation, 't')}, coalesce((SELECT json_agg({json_list(join.target, 'r')})"
        f" FROM {between}{target} r WHERE {' AND '.join(on)}), '[]')"
        f' FROM "{relation.schema}"."{relation.name}" t'
    )


def served_as(catalog: Catalog, relation: Relation) -> str:
    """Return the name of a relation in URIs."""
    short = relation.schema == catalog.schemas[0]
    return relation.name if short else f"{relation.schema}.{relation.name}"


async def check_all(db: DirectCaller, dsn: str) -> int:
    """Check the described relationships, in a quick run each fourth; return the number of all."""
    catalog = db.dispatcher.served.catalog
    described = describe(catalog, "rowcast", "1", db.dispatcher.verbs, {})["relations"]
    known = 0
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        for relation in catalog.relations.values():
            name = served_as(catalog, relation)
            joins, items = relationships(catalog, relation), described[name]["relationships"]
            assert len({(each["relation"], each["via"]) for each in items}) == len(joins), name
            for join, each in zip(joins, items, strict=True):
                known += 1
                if known % amount(4, 1) == 0:
                    cursor.execute(join_query(join, relation))
                    await check(db, relation, name, join, each, cursor.fetchall())
    return known


async def check(
    db: DirectCaller, relation: Relation, name: str, join: Join, item: Any, rows: list[Any]
) -> None:
    """Compare the related rows, by each name of a relationship, with those of its join."""
    expected = sorted(json.dumps([here, sorted(there, key=str)]) for here, there in rows)
    target, via = item["relation"], item["via"]
    for key, options in (
        ("x", {"relation": target, "via": via}),
        (f"{target}!{via}", {}),
        *((called, {}) for called in item["names"]),
    ):
        embed = {key: {**options, "select": texts(join.target)}}
        found = await db.call(f"{name}.find", select=texts(relation), embed=embed, limit=1000)
        got = []
        for row in found["rows"]:
            there = row.pop(key)
            many = there if item["many"] else [there] if there else []
            lists = sorted(([*each.values()] for each in many), key=str)
            got.append(json.dumps([[*row.values()], lists]))
        assert sorted(got) == expected, (name, key, options)
    some = sum(bool(there) for _, there in rows)
    key = f'"{target}"!{via}'
    for condition, count in (({"is": "not null"}, some), (None, len(rows) - some), ({}, some)):
        assert await db.call(f"{name}.count", where={key: condition}) == count, (name, key)


@pytest_twisted.ensureDeferred
async def test_each_described_relationship_gives_the_rows_of_its_join(
    db: DirectCaller, dsn: str
) -> None:
    """Self references, junctions with several keys, views on all sides, functions, partitions."""
    assert await check_all(db, dsn) > 100


AMBIGUOUS = [
    ("team", "stadium"),
    ("team", "team"),
    ("team", "v_stadium"),
    ("v_team", "v_stadium"),
    ("person", "person"),
    ("person", "v_person"),
    ("v_person", "v_team"),
    ("wow!", "team"),
    ("person", "team!none"),
]


@pytest.mark.parametrize(("relation", "name"), AMBIGUOUS)
@pytest_twisted.ensureDeferred
async def test_candidates_of_an_ambiguous_relationship_are_accepted(
    db: DirectCaller, relation: str, name: str
) -> None:
    """Each candidate goes behind a `!` and into `via`, in every verb; they are different ways."""
    where = {f'"{name}"': {"is": "not null"}}
    refused = await failure_of(db.call(f"{relation}.count", where=where))
    assert isinstance(refused, InvalidArgument)
    candidates = refused.details["candidates"]
    assert len(set(candidates)) == len(candidates)
    assert len(candidates) > 1 or "!" in name
    assert refused.details["path"] == f"where.{next(iter(where))}"
    again = await failure_of(db.call(f"{relation}.find", embed={"x": {"relation": name}}))
    assert isinstance(again, InvalidArgument)
    assert again.details["candidates"] == candidates
    target = name.partition("!")[0]
    for via in candidates:
        key = f'"{target}"!{via}'
        query = {"where": {key: {"is": "not null"}}}
        n = await db.call(f"{relation}.count", **query)
        assert await db.call(f"{relation}.count", where={key: {}}) == n
        assert await db.call(f"{relation}.exists", **query) is (n > 0)
        assert await db.call(f"{relation}.aggregate", {"n": {"count": "*"}}, **query) == [{"n": n}]
        for embed in ({f"{target}!{via}": {"inner": True}}, {"x": {"relation": target, "via": via, "inner": True}}):  # fmt: skip
            found = await db.call(f"{relation}.find", select=[], embed=embed, count="exact")
            assert found["count"] == n
        none = {"where": {**query["where"], "id": -1}}
        for verb, changes in (("update", {"changes": {"id": 1}}), ("delete", {})):
            if db.dispatcher.served.catalog.relations["public", relation].deletable:
                assert (await db.call(f"{relation}.{verb}", **none, **changes))["affected"] == 0


@pytest_twisted.ensureDeferred
async def test_via_with_two_keys_names_a_relationship_through_a_junction(db: DirectCaller) -> None:
    """By constraints or by columns, as far as it is needed; a sort key and a condition too."""
    for via in (
        "home!spare",
        "match_home_fkey!match_spare_fkey",
        "match!home!spare",
        '"public.match!id=home!spare=id"',
    ):
        rows = await db.call(
            "team.find",
            select=["id"],
            embed={"x": {"relation": "stadium", "via": via}},
            order=["id"],
        )
        home = await db.call("match.find", select=["home", "spare"])
        for row in rows["rows"]:
            places = sorted(each["spare"] for each in home["rows"] if each["home"] == row["id"])
            assert sorted(each["id"] for each in row["x"]) == places
        where = {f"stadium!{via}.city": "city 2"}
        expected = {each["home"] for each in home["rows"] if each["spare"] == 2}
        assert await db.call("team.count", where=where) == len(expected)
    found = await db.call("wow!.find", order=['-team!"a.b".id', "id"], select=['a:team!"a.b".id'])
    assert [row["a"] for row in found["rows"]] == sorted(
        (row["a"] for row in found["rows"]), reverse=True
    )


@pytest.fixture(scope="module")
def northwind(dsn: str) -> str:
    """Load the Northwind sample with a view of every table, into a schema of its own."""
    if not NORTHWIND.exists():
        missing("the Northwind sample is not here: its folder is not part of a clone")
    execute(dsn, f"CREATE SCHEMA trade; SET search_path TO trade; {NORTHWIND.read_text()}")
    tables = execute(dsn, "SELECT relname FROM pg_class WHERE relkind = 'r'"
                          " AND relnamespace = 'trade'::regnamespace")  # fmt: skip
    views = [f"CREATE VIEW trade.v_{name} AS SELECT * FROM trade.{name}" for (name,) in tables]
    fewer = [
        f"DELETE FROM trade.{name} WHERE order_id > 10350" for name in ("order_details", "orders")
    ]
    execute(dsn, ";".join(views + fewer))
    return dsn


@pytest_twisted.ensureDeferred
async def test_each_relationship_of_northwind_with_views_gives_the_rows_of_its_join(
    northwind: str,
) -> None:
    """A view of every table doubles each side and each junction."""
    async with serving(northwind, "trade") as db:
        assert await check_all(db, northwind) > 100
