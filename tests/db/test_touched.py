"""
Keys of the rows of a query that a change touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from schema.changes import install
from service.changes.log import read_txn
from service.changes.touched import (
    groups_txn,
    own_keys,
    related_txn,
    row_change,
    sees_all_txn,
)
from service.db.transaction import Actor, apart_txn
from service.plan.read_plan import plan_find
from service.plan.watch_plan import keyed_read
from service.request.read_request import Limits, parse_find
from tests.conftest import execute
from tests.db.kept_queries import KeptQuery, Reader
from tests.db.ticks import snapshot_txn

SCHEMA = f"""
CREATE TABLE teams (id int PRIMARY KEY, name text);
CREATE TABLE people (id int PRIMARY KEY, team int REFERENCES teams, boss int REFERENCES people, name text);
CREATE TABLE notes (id bigint PRIMARY KEY, person int REFERENCES people, body text);
CREATE TABLE skills (code text PRIMARY KEY, name text);
CREATE TABLE knows (person int REFERENCES people, skill text REFERENCES skills, PRIMARY KEY (person, skill));
CREATE TABLE brief (id int PRIMARY KEY, person int REFERENCES people);
CREATE TABLE plain (n int, m int);
CREATE TABLE counted (id float8 PRIMARY KEY);
CREATE TABLE derived (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL);
CREATE TABLE asked (id int PRIMARY KEY, team int);
CREATE TABLE secrets (id int PRIMARY KEY, body text);
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE TABLE levels (amount numeric PRIMARY KEY, name text);
CREATE TABLE marks (id int PRIMARY KEY, n int, secret int REFERENCES secrets, level numeric REFERENCES levels);
CREATE VIEW seen AS SELECT * FROM people;
CREATE TABLE parts (id int, day int, team int REFERENCES teams, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
CREATE FUNCTION total(people) RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC SELECT count(*) FROM notes WHERE person = $1.id; END;
CREATE FUNCTION friends(people) RETURNS SETOF people LANGUAGE sql STABLE BEGIN ATOMIC SELECT * FROM people WHERE team = $1.team; END;
CREATE ROLE t_ann;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO t_ann;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY n ON notes FOR SELECT TO t_ann USING (EXISTS (SELECT FROM asked WHERE team = 1));
ALTER TABLE knows ENABLE ROW LEVEL SECURITY;
CREATE POLICY k ON knows FOR SELECT TO t_ann USING (EXISTS (SELECT FROM people t1 WHERE t1.name = 'x'));
INSERT INTO teams SELECT i, 't' || i FROM generate_series(1, 5) i;
INSERT INTO people SELECT i, i % 5 + 1, NULLIF(i / 10, 0), 'p' || i FROM generate_series(1, 40) i;
INSERT INTO notes SELECT i, i % 40 + 1, 'b' FROM generate_series(1, 80) i;
INSERT INTO skills SELECT 's' || i, 'n' FROM generate_series(1, 5) i;
INSERT INTO knows SELECT i, 's' || (i % 5 + 1) FROM generate_series(1, 40) i;
INSERT INTO parts SELECT i, i % 20, i % 5 + 1 FROM generate_series(1, 40) i;
INSERT INTO secrets VALUES (1, 'b');
INSERT INTO marks VALUES (1, 0, 1);
{install()}
SELECT rowcast.track(t::regclass) FROM unnest(ARRAY['teams', 'people', 'notes', 'skills', 'knows', 'plain', 'counted', 'asked', 'parts', 'derived', 'marks', 'levels', 'secrets']) t;
SELECT rowcast.track('brief', 'keys');
"""


@pytest.fixture
def reader(dsn: str) -> Iterator[Reader]:
    found = Reader(dsn)
    yield found
    found.connection.close()


def touched(
    reader: Reader,
    dsn: str,
    change: str,
    relation: str = "people",
    role: str = "",
    most: int = 1000,
    **query: Any,
) -> Any:
    """Return the keys that a change touches: those of rows, and those of rows if there are any."""
    kept = KeptQuery(reader, relation, role, query)
    if kept.run.keyed is None:
        return None
    plan = kept.run.keyed
    before = snapshot_txn(reader.connection)
    execute(dsn, change)
    with reader.snapshot():
        changes = [row_change(row) for row in read_txn(reader.connection, before)]
        assert changes
        own = [own_keys(plan, each) for each in changes if each.relation == plan.root]
        related = related_txn(reader.connection, Actor(), reader.codec, plan, changes, most)
        if None in own or related is None:
            return "all"
        own = set().union(*own)
        if plan.groups:
            starts = own | related.rows | related.related
            found = groups_txn(
                reader.connection, Actor(), reader.codec, plan, changes, starts, most
            )
            return "all" if found is None else set().union(*found.values())
    return {key for key in own | related.rows}, set(related.related)


def test_change_of_a_row_touches_its_key_before_and_after(reader: Reader, dsn: str) -> None:
    new = "INSERT INTO people VALUES (100, 1), (101, 1)"
    assert touched(reader, dsn, new) == ({(100,), (101,)}, set())
    moved = "UPDATE people SET id = 102 WHERE id = 101"
    assert touched(reader, dsn, moved) == ({(101,), (102,)}, set())
    assert touched(reader, dsn, "DELETE FROM people WHERE id = 102") == ({(102,)}, set())


def test_change_of_a_related_row_touches_the_rows_before_and_after(
    reader: Reader, dsn: str
) -> None:
    moved = "UPDATE notes SET person = 7 WHERE id = 3"
    assert touched(reader, dsn, moved, embed={"notes": True}) == (set(), {(4,), (7,)})
    assert touched(reader, dsn, moved.replace("7", "8")) == (set(), set())


def test_change_of_a_row_embedded_in_many_touches_all_of_them(reader: Reader, dsn: str) -> None:
    rows = {(i,) for i in range(1, 41) if i % 5 + 1 == 2}
    renamed = "UPDATE teams SET name = 'new' WHERE id = 2"
    assert touched(reader, dsn, renamed, embed={"teams": True}) == (set(), rows)
    assert touched(reader, dsn, renamed, most=3, embed={"teams": True}) == "all"


def test_change_of_a_row_that_only_decides_touches_the_rows_decided_by_it(
    reader: Reader, dsn: str
) -> None:
    rows = {(i,) for i in range(1, 41) if i % 5 + 1 == 3}
    renamed = "UPDATE teams SET name = 'again' WHERE id = 3"
    for query in (
        {"where": {"teams": {"name": "t3"}}},
        {"order": "teams.name"},
        {"embed": {"teams": {"inner": True}}},
    ):
        assert touched(reader, dsn, renamed, **query)[0] == rows, query


def test_rows_behind_a_junction_and_deeper_embeds_touch_the_outer_rows(
    reader: Reader, dsn: str
) -> None:
    named = "UPDATE skills SET name = 'x' WHERE code = 's2'"
    knowing = {(i,) for i in range(1, 41) if i % 5 + 1 == 2}
    assert touched(reader, dsn, named, embed={"skills": True}) == (set(), knowing)
    assert touched(
        reader, dsn, "UPDATE notes SET body = 'x' WHERE id = 3", "teams",
        embed={"people": {"embed": {"notes": True}}},
    ) == (set(), {(4,)})  # fmt: skip


def test_change_of_self_referencing_relation_touches_own_and_related_rows(
    reader: Reader, dsn: str
) -> None:
    renamed = "UPDATE people SET name = 'x' WHERE id = 2"
    embed = {"boss": {"relation": "people", "via": "boss", "direction": "one"}}
    own, related = touched(reader, dsn, renamed, embed=embed)
    assert (own, related) == ({(2,)}, {(i,) for i in range(20, 30)})


COUNT = {"measures": {"n": {"count": "*"}}}


def test_groups_of_related_rows_are_those_before_and_after(reader: Reader, dsn: str) -> None:
    execute(dsn, "UPDATE teams SET name = 't' || id")
    named = COUNT | {"group": ["teams.name"]}
    assert touched(reader, dsn, "UPDATE people SET name = 'a' WHERE id = 4", **named) == {("t5",)}
    assert touched(reader, dsn, "UPDATE people SET team = 1 WHERE id = 4", **named) == {
        ("t5",),
        ("t1",),
    }
    assert touched(reader, dsn, "UPDATE people SET team = NULL WHERE id = 4", **named) == {
        ("t1",),
        (None,),
    }
    assert touched(reader, dsn, "UPDATE teams SET name = 'x' WHERE id = 5", **named) == {
        ("t5",),
        ("x",),
    }
    both = "UPDATE people SET team = 1 WHERE id = 9; UPDATE teams SET name = 'y' WHERE id = 5"
    assert touched(reader, dsn, both, **named) == {("t1",), ("x",), ("y",)}
    assert touched(reader, dsn, both, most=1, **named) == "all"


def test_group_of_new_related_row_is_also_that_of_none(reader: Reader, dsn: str) -> None:
    named = COUNT | {"group": ["teams.name"]}
    new = "INSERT INTO teams VALUES (6, 't6'); INSERT INTO people VALUES (60, 6)"
    assert touched(reader, dsn, new, **named) == {("t6",), (None,)}


def test_groups_by_columns_of_several_relations_are_found_together(
    reader: Reader, dsn: str
) -> None:
    execute(dsn, "UPDATE teams SET name = 't' || id")
    query = COUNT | {"group": ["body", "people.teams.name", "people.boss"]}
    moved = "UPDATE people SET boss = 2 WHERE id = 12"
    assert touched(reader, dsn, moved, "notes", **query) == {("b", "t3", 1), ("b", "t3", 2)}
    renamed = "UPDATE teams SET name = 'z' WHERE id = 3"
    groups = touched(reader, dsn, renamed, "notes", **query)
    assert {name for _, name, _ in groups} == {"t3", "z"}
    assert {boss for _, _, boss in groups} == {None, 1, 2, 3}


def test_group_of_related_row_that_a_policy_may_hide_is_also_that_of_none(
    reader: Reader, dsn: str
) -> None:
    query = COUNT | {"group": ["secrets.body"]}
    execute(dsn, "UPDATE marks SET n = 0 WHERE id = 1")
    marked = "UPDATE marks SET n = 1 WHERE id = 1"
    assert touched(reader, dsn, marked, "marks", **query) == {("b",), (None,)}


def test_groups_by_columns_that_images_cannot_match_are_not_found_by_key(reader: Reader) -> None:
    for relation, group, keyed in (
        ("marks", "secrets.body", True),
        ("marks", "levels.name", False),
        ("knows", "skills.name", True),
    ):
        run = KeptQuery(reader, relation, "", COUNT | {"group": [group]}).run
        assert (run.keyed is not None) is keyed, group


def test_change_of_a_partition_touches_rows_of_its_table(reader: Reader, dsn: str) -> None:
    moved = "UPDATE parts SET day = 11 WHERE id = 1"
    assert touched(reader, dsn, moved, "parts")[0] == {(1, 1), (1, 11)}


@pytest.mark.parametrize(
    ("change", "query"),
    [
        ("TRUNCATE notes", {"embed": {"notes": True}}),
        ("SELECT rowcast.reset(id) FROM rowcast.tracked WHERE relation = 'notes'::regclass", {"embed": {"notes": True}}),
        ("INSERT INTO brief VALUES (1, 1)", {"embed": {"brief": True}}),
        ("INSERT INTO notes VALUES (1000, 1)", {"select": ["id", "total"]}),
        ("INSERT INTO people VALUES (200, 1)", {"embed": {"friends": True}}),
        ("INSERT INTO asked VALUES (1, 1)", {"role": "t_ann", "embed": {"notes": True}}),
        ("INSERT INTO people VALUES (201, 1)", {"role": "t_ann", "relation": "skills", "embed": {"knows": True}}),
        # the policy reads what the query reads too, and by the same alias
        ("INSERT INTO people VALUES (202, 1)", {"role": "t_ann", "embed": {"knows": True}}),
    ],
)  # fmt: skip
def test_change_that_names_no_rows_touches_all(
    reader: Reader, dsn: str, change: str, query: dict[str, Any]
) -> None:
    assert touched(reader, dsn, change, **query) == "all"


def test_change_of_an_unread_column_or_table_touches_nothing(reader: Reader, dsn: str) -> None:
    assert touched(reader, dsn, "INSERT INTO asked VALUES (50, 50)") == (set(), set())
    assert touched(reader, dsn, "INSERT INTO brief VALUES (50, 1)") == (set(), set())


@pytest.mark.parametrize(
    ("relation", "query"),
    [
        ("plain", {}),
        ("counted", {}),
        ("seen", {}),
        ("people", {"offset": 1}),
        ("people", {"distinct": True, "select": ["team"]}),
        ("people", {"distinct": ["team"]}),
    ],
)
def test_query_without_a_key_per_row_is_not_read_by_keys(
    reader: Reader, relation: str, query: dict[str, Any]
) -> None:
    found = reader.catalog.relation("public", relation)
    plan = plan_find(reader.catalog, found, parse_find((), query, Limits(), relation).request)
    assert keyed_read(reader.catalog, plan) is None


def test_virtual_column_is_in_no_image(reader: Reader, dsn: str) -> None:
    """So neither groups nor filters by it can be evaluated from the log."""
    groups = {"group": ["twice"], "measures": {"c": {"count": "*"}}}
    assert KeptQuery(reader, "derived", "", groups).run.keyed is None
    assert KeptQuery(reader, "derived", "", groups | {"group": ["n"]}).run.keyed is not None
    run = KeptQuery(reader, "derived", "", {"where": {"twice": 4, "n": 2}}).run
    assert run.keyed is not None
    assert [term.column for term in run.terms] == ["n"]


def test_role_that_may_not_read_all_rows_looks_up_its_touched_rows_alone(reader: Reader) -> None:
    direct = KeptQuery(reader, "teams", "t_ann", {"embed": {"people": {"embed": {"notes": True}}}})
    between = KeptQuery(reader, "people", "t_ann", {"embed": {"skills": True}})
    for kept, sees in ((direct, True), (between, False)):
        assert kept.run.keyed is not None
        assert kept.run.shape.shared
        with reader.snapshot() as connection:
            asked = sees_all_txn, kept.run.keyed, reader.tracked
            assert apart_txn(connection, kept.run.actor, *asked) is sees
