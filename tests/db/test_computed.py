"""Computed columns and relationships, which are functions of a row, compared with SQL."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE people (id int PRIMARY KEY, first text, last text, boss int REFERENCES people,
                     t int, pay numeric(8,2), secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
CREATE TABLE tasks (id int PRIMARY KEY, owner int REFERENCES people, title text, done boolean);
INSERT INTO people VALUES (1, 'Ada', 'King', NULL, 5, 10.5, 'x'), (2, 'Bob', NULL, 1, 6, 2, 'y'),
    (3, 'Cyd', 'Lee', 1, 7, NULL, 'z');
INSERT INTO tasks VALUES (1, 1, 'a', true), (2, 1, 'b', false), (3, 2, 'c', false),
    (4, NULL, 'd', false);
CREATE FUNCTION full_name(people) RETURNS text STABLE
    LANGUAGE sql AS $$SELECT concat_ws(' ', $1.first, $1.last)$$;
CREATE FUNCTION "odd ""%s"(p people) RETURNS numeric LANGUAGE sql AS 'SELECT p.pay * 2';
CREATE FUNCTION facts(people) RETURNS jsonb IMMUTABLE
    LANGUAGE sql AS $$SELECT jsonb_build_object('id', $1.id, 'in', jsonb_build_object('x', 1))$$;
CREATE FUNCTION first(people) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'shadowed'$$;
CREATE FUNCTION size(people) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION app.size(people) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2';
CREATE FUNCTION open_tasks(people) RETURNS SETOF tasks STABLE
    LANGUAGE sql AS 'SELECT * FROM tasks WHERE owner = $1.id AND NOT done ORDER BY id DESC';
CREATE FUNCTION chief(people) RETURNS people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE id = $1.boss';
CREATE FUNCTION newest(people) RETURNS SETOF tasks ROWS 1 STABLE
    LANGUAGE sql AS 'SELECT * FROM tasks WHERE owner = $1.id ORDER BY id DESC LIMIT 1';
CREATE FUNCTION label(tasks) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT '#' || $1.title$$;
CREATE FUNCTION hushed(people) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'x'$$;
COMMENT ON FUNCTION hushed(people) IS '@hidden';
CREATE VIEW staff AS SELECT id, first FROM people;
CREATE FUNCTION shout(staff) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1.first)';
"""


pytestmark = pytest.mark.serving("public", "app")


FOUND: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("people", {"select": ["full_name"], "limit": 2}, [{"full_name": "Ada King"},
                                                       {"full_name": "Bob"}]),
    ("people", {"select": ["n:full_name", "size::text"], "where": {"id": 1}},
     [{"n": "Ada King", "size": "1"}]),
    ("people", {"select": ["first"], "where": {"id": 1}}, [{"first": "Ada"}]),
    ("people", {"select": ["facts->in->>x"], "where": {"id": 1}}, [{"x": "1"}]),
    ("people", {"select": ['"odd ""%s"'], "where": {"id": 1}}, [{'odd "%s': "21.00"}]),
    ("people", {"select": ["id"], "where": {"full_name": {"like": "%e%"}}}, [{"id": 3}]),
    ("people", {"select": ["id"], "where": {"facts->id": {"gte": 2}}}, [{"id": 2}, {"id": 3}]),
    ("people", {"select": ["id"], "order": ["-full_name"]}, [{"id": 3}, {"id": 2}, {"id": 1}]),
    ("people", {"select": ["full_name"], "distinct": True, "order": ["-full_name"], "limit": 1},
     [{"full_name": "Cyd Lee"}]),
    ("tasks", {"select": ["label"], "where": {"owner.full_name": "Bob"}}, [{"label": "#c"}]),
    ("tasks", {"select": ["id"], "order": ["-owner.full_name", "id"], "limit": 2},
     [{"id": 4}, {"id": 3}]),
    ("tasks", {"select": [], "where": {"id": 1},
               "embed": {"owner": {"select": ["full_name", '"odd ""%s"']}}},
     [{"owner": {"full_name": "Ada King", 'odd "%s': "21.00"}}]),
    ("staff", {"select": ["shout"], "where": {"id": 1}}, [{"shout": "ADA"}]),
    # relationships
    ("people", {"select": ["id"], "embed": {"open_tasks": {"select": ["label"]}}, "limit": 2},
     [{"id": 1, "open_tasks": [{"label": "#b"}]}, {"id": 2, "open_tasks": [{"label": "#c"}]}]),
    ("people", {"select": ["id"], "embed": {"chief": {"select": ["full_name"]}}, "limit": 2},
     [{"id": 1, "chief": None}, {"id": 2, "chief": {"full_name": "Ada King"}}]),
    ("people", {"select": ["id"], "embed": {"newest": {"select": ["id"]}}},
     [{"id": 1, "newest": {"id": 2}}, {"id": 2, "newest": {"id": 3}}, {"id": 3, "newest": None}]),
    ("people", {"select": ["id"], "embed": {"it": {"relation": "open_tasks", "select": [],
                "embed": {"owner": {"select": ["first"], "spread": True}}}}, "limit": 1},
     [{"id": 1, "it": [{"first": "Ada"}]}]),
    ("people", {"select": ["id"], "embed": {"it": {"relation": "tasks", "via": "open_tasks",
                "select": ["id"], "where": {"label": "#b"}}}, "limit": 2},
     [{"id": 1, "it": [{"id": 2}]}, {"id": 2, "it": []}]),
    ("people", {"select": ["id"], "embed": {"open_tasks": {"select": [], "inner": True}}},
     [{"id": 1}, {"id": 2}]),
    ("people", {"select": ["id"], "where": {"chief.chief": None, "chief": {"is": "not null"}}},
     [{"id": 2}, {"id": 3}]),
    ("people", {"select": ["id"], "where": {"open_tasks": None}}, [{"id": 3}]),
    ("people", {"select": ["id"], "where": {"chief.full_name": "Ada King"}},
     [{"id": 2}, {"id": 3}]),
    ("people", {"select": ["id"], "order": [{"by": "chief.first", "nulls": "first"}, "-id"]},
     [{"id": 1}, {"id": 3}, {"id": 2}]),
    ("people", {"select": ["id"], "embed": {"tasks": {"select": ["id"], "order": ["-label"]}},
                "where": {"id": 1}}, [{"id": 1, "tasks": [{"id": 2}, {"id": 1}]}]),
]  # fmt: skip


@pytest.mark.parametrize(("relation", "kwargs", "expected"), FOUND)
@pytest_twisted.ensureDeferred
async def test_computed_column_is_accepted_wherever_a_column_is(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    """Computed relationships can be used like other relationships."""
    found = await db.call(f"{relation}.find", **kwargs)
    assert found["rows"] == expected


@pytest_twisted.ensureDeferred
async def test_computed_column_not_selected_is_not_returned(db: DirectCaller) -> None:
    """It is not selected by default, and may have the name of an internal column of keyset pages."""
    row = await db.call("people.get", 1)
    assert set(row) == {"id", "first", "last", "boss", "t", "pay"}
    page = await db.call("people.find", select=["id"], order=["full_name"], limit=2)
    rest = await db.call(
        "people.find", select=["id"], order=["full_name"], limit=2, after=page["next"]
    )
    assert [row["id"] for row in (*page["rows"], *rest["rows"])] == [1, 2, 3]
    assert rest["next"] is None


@pytest_twisted.ensureDeferred
async def test_computed_column_in_an_aggregate_is_counted_and_grouped(db: DirectCaller) -> None:
    found = await db.call(
        "people.aggregate", {"n": {"count": "*"}, "most": {"max": "full_name"}}, group=["size"]
    )
    assert found == [{"size": 1, "n": 3, "most": "Cyd Lee"}]


@pytest_twisted.ensureDeferred
async def test_computed_column_of_a_written_row_is_as_after_the_write(db: DirectCaller) -> None:
    """The function receives the written row."""
    made = await db.call(
        "people.create", {"id": 9, "first": "Dot", "last": "Oh", "boss": 1}, select=["full_name"]
    )
    assert made == {"full_name": "Dot Oh"}
    changed = await db.call(
        "people.update",
        where={"full_name": "Dot Oh"},
        changes={"last": "Moe"},
        select=["id", "full_name"],
        order=["full_name"],
        embed={
            "chief": {"select": ["first"]},
            "open_tasks": True,
            "boss": {"select": ["full_name"]},
        },
    )
    assert changed["rows"] == [
        {
            "id": 9,
            "full_name": "Dot Moe",
            "chief": {"first": "Ada"},
            "open_tasks": [],
            "boss": {"full_name": "Ada King"},
        }
    ]
    with_tasks = {"open_tasks": {"select": [], "inner": True}, "chief": {"inner": True}}
    none = await db.call("people.update", 9, {"last": "Moe"}, select=["id"], embed=with_tasks)
    assert none is None
    gone = await db.call("people.delete", 9, select=["full_name"], embed={"newest": True})
    assert gone == {"full_name": "Dot Moe", "newest": None}


@pytest.mark.parametrize(
    ("verb", "kwargs"),
    [
        ("find", {"select": ["hushed"]}),
        ("find", {"select": ["open_tasks"]}),
        ("find", {"select": ["label"]}),
        ("find", {"where": {"full_nam": "x"}}),
        ("find", {"embed": {"full_name": True}}),
        ("find", {"embed": {"chief": {"direction": "many"}}}),
        ("find", {"embed": {"x": {"relation": "tasks", "via": "chief"}}}),
        ("create", {"values": {"id": 10, "full_name": "x"}}),
        ("update", {"key": 1, "changes": {"full_name": "x"}}),
        ("create", {"values": {"id": 10, "secret": "x"}}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_hidden_or_unknown_computed_column_is_refused(
    db: DirectCaller, verb: str, kwargs: dict[str, Any]
) -> None:
    """Hidden functions, and those of other relations; nothing is written."""
    assert isinstance(await failure_of(db.call(f"people.{verb}", **kwargs)), InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_computed_column_misspelled_is_in_the_hint(db: DirectCaller) -> None:
    """The nearest name may be that of a computed column."""
    refused = await failure_of(db.call("people.find", select=["ful_name"]))
    assert refused.details["hint"] == 'did you mean "full_name"?'  # type: ignore[attr-defined]
