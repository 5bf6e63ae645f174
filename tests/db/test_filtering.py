"""
Rows that a filter matches: nulls in lists, one related row for several conditions.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument, TooManyRows
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE makers (id int PRIMARY KEY, name text, land text);
CREATE TABLE hotels (
    id int PRIMARY KEY, name text, maker int REFERENCES makers, tags text[], doc jsonb, raw json,
    at date, open boolean, spot box, "in" int);
CREATE TABLE rooms (
    id int PRIMARY KEY, hotel int REFERENCES hotels, stars int, price int, "match" text);
CREATE TABLE beds (id int PRIMARY KEY, room int REFERENCES rooms, wide boolean);
INSERT INTO makers VALUES (1, 'Ann', 'it'), (2, NULL, 'de');
INSERT INTO hotels VALUES
    (1, 'Ann', 1, '{a}', '{"a": 1}', '{"a": 1}', '2026-01-01', true, '(0,0),(1,1)', 1),
    (2, 'Ben', 2, '{a,NULL}', '{"a": null}', '{"b": 1}', '2026-02-01', false, '(0,0),(2,2)', 2),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, 'Eve', 1, '{}', '{"a": "x"}', '[1]', '2026-03-01', NULL, NULL, NULL);
INSERT INTO rooms VALUES (1, 1, 3, 99, 'x'), (2, 1, 5, 10, NULL), (3, 2, 3, 10, 'y'), (4, 4, 3, NULL, 'x');
INSERT INTO beds VALUES (1, 1, true), (2, 2, false), (3, 3, true), (4, 3, false);
"""


BOX = "(1,1),(0,0)"
MEANT: list[tuple[dict[str, Any], list[int]]] = [
    # a null in a list is IS NULL
    ({"name": [None]}, [3]),
    ({"name": ["Ann", None]}, [1, 3]),
    ({"name": {"in": [None, "Ben", None]}}, [2, 3]),
    ({"name": {"not": ["Ann", None]}}, [2, 4]),
    ({"name": {"not": {"in": [None]}}}, [1, 2, 4]),
    ({"name": {"not": ["Ann"]}}, [2, 4]),
    ({"not": {"name": ["Ann", None]}}, [2, 4]),
    ({"name": {"not": {"not": [None]}}}, [3]),
    ({"name": {"eq": {"any": ["Ann", None]}}}, [1, 3]),
    ({"name": {"eq": {"all": ["Ann", None]}}}, []),
    ({"name": {"eq": {"all": [None]}}}, [3]),
    ({"name": {"neq": {"all": ["Ann", None]}}}, [2, 4]),
    ({"name": {"neq": {"any": ["Ann", None]}}}, [1, 2, 4]),
    ({"id": [None]}, []),
    ({"id": {"not": [None, 1]}}, [2, 3, 4]),
    ({"tags": [None, ["a"]]}, [1, 3]),
    ({"tags": {"not": [None, ["a", None]]}}, [1, 4]),
    ({"tags": {"eq": ["a", None]}}, [2]),
    ({"doc->a": [1, None]}, [1, 3]),
    ({"doc->>a": ["x", None]}, [2, 3, 4]),
    ({"raw->a": [None]}, [2, 3, 4]),
    ({"raw": [None, {"a": 1}]}, [1, 3]),
    ({"at": {"not": ["2026-01-01", None]}}, [2, 4]),
    ({"open": [None, True]}, [1, 3, 4]),
    ({"spot": [BOX, None]}, [1, 3, 4]),
    ({"maker.name": [None]}, [2]),
    ({"maker.name": {"not": ["Zoe", None]}}, [1, 4]),
    ({"rooms.price": [99, None]}, [1, 4]),
    # one related row that matches all of it, or one for each
    ({"rooms.stars": 3, "rooms.price": 10}, [1, 2]),
    ({"rooms": {"stars": 3, "price": 10}}, [2]),
    ({"rooms": {}}, [1, 2, 4]),
    ({"rooms": {"not": {}}}, []),
    ({"rooms": {"not": {"stars": 3}}}, [1]),
    ({"not": {"rooms": {"stars": 3}}}, [3]),
    ({"rooms": {"or": [{"price": 99}, {"price": None}], "stars": 3}}, [1, 4]),
    ({"rooms": {"and": [{"price": 10}, {"beds": {"wide": True}}]}}, [2]),
    ({"rooms": {"beds": {"wide": True, "not": {"id": 1}}}}, [2]),
    ({"rooms": {"stars": {"gt": 3, "lt": 9}, "price": {"in": [10, None]}}}, [1]),
    ({"rooms.beds": {"wide": False, "id": {"lt": 3}}}, [1]),
    ({"rooms": {"hotels": {"name": "Ben"}}}, [2]),
    ({"maker": {"name": "Ann", "land": "it"}}, [1, 4]),
    ({"makers": {"name": None}}, [2]),
    ({"rooms": None}, [3]),
    ({"rooms": {"is": None}}, [3]),
    ({"rooms": {"not": None}}, [1, 2, 4]),
    ({"rooms": {"not": {"is": "not null"}}}, [3]),
    # a column that is called like an operator
    ({"rooms": {'"match"': "x", "stars": 3}}, [1, 4]),
    ({"rooms": {'"match"': "y"}}, [2]),
    ({'"in"': {"gt": 1}}, [2]),
]


@pytest.mark.parametrize(("where", "expected"), MEANT)
@pytest_twisted.ensureDeferred
async def test_filter_in_any_verb_finds_its_rows(
    db: DirectCaller, where: Any, expected: list[int]
) -> None:
    """Reads and writes match the same rows."""
    found = await db.call("hotels.find", where=where, select=["id"])
    assert [row["id"] for row in found["rows"]] == expected
    assert await db.call("hotels.count", where=where) == len(expected)
    assert await db.call("hotels.exists", where=where) is bool(expected)
    measures = {"n": {"count": "*", "where": where}}
    assert await db.call("hotels.aggregate", measures) == [{"n": len(expected)}]
    changing = db.call("hotels.update", where=where, changes={"in": 7}, max_affected=0)
    if expected:  # nothing is written
        assert isinstance(await failure_of(changing), TooManyRows)
    else:
        assert (await changing)["affected"] == 0


REFUSED: list[tuple[dict[str, Any], str, str, str | None]] = [
    ({"nam": {"x": 1}}, "where.nam", 'no column "nam"', 'did you mean "name"?'),
    ({"name": {"lik": 1}}, "where.name.lik", 'no operator "lik"', 'did you mean "like"?'),
    ({"name": {"not": {"lik": 1}}}, "where.name.not.lik", 'no operator "lik"', None),
    ({"name": {}}, "where.name", "a condition names an operator", None),
    ({"name": {"not": {}}}, "where.name.not", "a condition names an operator", None),
    ({"doc": {"a": 1}}, "where.doc.a", 'no operator "a"', 'a value inside of it is "doc->a"'),
    ({"doc->a": {"b": 1}}, "where.doc->a.b", 'no operator "b"', None),
    ({"rooms.stars": {"x": 1}}, "where.rooms.stars.x", 'no operator "x"', None),
    ({"rooms": {"star": 1}}, "where.rooms.star", 'no column "star"', 'did you mean "stars"?'),
    ({"rooms": {"stars": {"eqq": 1}}}, "where.rooms.stars.eqq", 'no operator "eqq"', None),
    ({"rooms": {"stars": ["a"]}}, "where.rooms.stars.0", "expected an integer", None),
    ({"id": [None, "x"]}, "where.id.1", "expected an integer", None),
    ({"id": {"gt": {"any": [1, None]}}}, "where.id.gt.any.1", '"gt" takes no null', None),
    ({"id": {"between": [1, None]}}, "where.id.between", '"between" takes a list', None),
]


@pytest.mark.parametrize(("where", "path", "message", "hint"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_invalid_filter_is_refused_with_its_path(
    db: DirectCaller, where: Any, path: str, message: str, hint: str | None
) -> None:
    """The path leads to the invalid operator, also within a list after a null."""
    refused = await failure_of(db.call("hotels.count", where=where))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
    assert refused.message.startswith(message)
    assert hint is None or refused.details["hint"] == hint


@pytest_twisted.ensureDeferred
async def test_having_with_null_in_a_list_matches_null(db: DirectCaller) -> None:
    """A filter of measures treats nulls like a filter of columns."""
    groups = await db.call(
        "rooms.aggregate", {"sum": {"sum": "price"}}, group=["hotel"], having={"sum": [109, None]}
    )
    assert [each["hotel"] for each in groups] == [1, 4]
    refused = await failure_of(
        db.call("rooms.aggregate", {"n": {"count": "*"}}, having={"n": {"x": 1}})
    )
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "having.n.x"


@pytest_twisted.ensureDeferred
async def test_expected_null_matches_null(db: DirectCaller) -> None:
    """This holds for columns of any type."""
    for column in ("name", "doc", "raw", "tags", "at"):
        assert (await db.call("hotels.update", 3, {"in": 3}, expect={column: None}))["in"] == 3
    await db.call("hotels.update", 3, {"in": None})


@pytest_twisted.ensureDeferred
async def test_condition_on_an_embed_applies_to_rows_that_match_its_where(db: DirectCaller) -> None:
    """One related row has to meet both."""
    embed = {"rooms": {"select": ["id"], "where": {"price": {"lt": 50}}}}
    found = await db.call("hotels.find", where={"rooms": {"stars": 3}}, select=["id"], embed=embed)
    assert found["rows"] == [{"id": 2, "rooms": [{"id": 3}]}]


@pytest.mark.parametrize("page", [{"offset": 9}, {"limit": 0}, {"limit": 1, "offset": 1}])
@pytest_twisted.ensureDeferred
async def test_inner_with_an_offset_past_the_matches_keeps_the_row(
    db: DirectCaller, page: Any
) -> None:
    """Matches count before limit and offset, so the list may be empty."""
    embed = {"rooms": {"select": ["id"], "where": {"stars": 3}, "inner": True, **page}}
    found = await db.call("hotels.find", select=["id"], embed=embed)
    assert found["rows"] == [{"id": at, "rooms": []} for at in (1, 2, 4)]


@pytest_twisted.ensureDeferred
async def test_documents_in_a_filter_are_values_in_repeated_calls(
    db: DirectCaller, dsn: str
) -> None:
    """A second call, and calls with other documents, reuse the cached statement of the first."""
    execute(
        dsn,
        "INSERT INTO hotels (id, name, doc) VALUES"
        """ (11, 'd', '{"x": 5}'), (12, 'd', '{"x": 6}'), (13, 'd', '5'), (14, 'd', '{"a": 1, "b": 2}')""",
    )
    signs = {"eq": "=", "neq": "<>", "gt": ">", "lte": "<=", "isdistinct": "IS DISTINCT FROM"}
    try:
        for sign, words in signs.items():
            for document in (
                "{'x': 5}",
                "{'x': 5}",
                "{'x': 6}",
                "{'a': 1, 'b': 2}",
                "5",
                "{'x': 5}",
            ):
                text = document.replace("'", '"')
                found = await db.call(
                    "hotels.find",
                    where={"doc": {sign: json.loads(text)}, "name": "d"},
                    order=["id"],
                )
                right = execute(
                    dsn,
                    f"SELECT id FROM hotels WHERE doc {words} '{text}'::jsonb AND name = 'd' ORDER BY id",
                )
                assert [(row["id"],) for row in found["rows"]] == right, (sign, document)
        for _ in range(2):
            await db.call("hotels.delete", where={"name": "d", "doc": {"neq": {"x": 5}}})
            assert execute(dsn, "SELECT id FROM hotels WHERE name = 'd'") == [(11,)]
    finally:
        execute(dsn, "DELETE FROM hotels WHERE id > 10")
