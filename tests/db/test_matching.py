"""
Terms of filters and their index, compared with PostgreSQL's results for the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from schema.changes import install
from service.changes.log import LogRow
from service.changes.match import Index, OneOf, terms_of
from service.changes.touched import row_change
from service.plan.read_plan import plan_find
from service.request.read_request import Limits, parse_find
from service.sql.select import select
from tests.amounts import amount
from tests.db.kept_queries import Reader

SCHEMA = f"""
{install()}
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN small AS int CHECK (VALUE < 100);
-- only ICU has such collations, and the server of the tests is built without it
CREATE COLLATION loose (locale = 'C');
UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'loose';
CREATE TABLE rows (id serial PRIMARY KEY, i int, b bigint, s small, n numeric, f float8, t text, v varchar(5),
    c char(3), l text COLLATE loose, o boolean, u uuid, m mood, d date, ts timestamp, tz timestamptz, j jsonb);
"""

TEXTS = ["", "a", "A", "b ", "é"]
NUMBERS = ["0", "-1", "1", "1.0", "1.50", "1.5", "2", "99"]
UUIDS = ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12"]
DATES = ["2026-01-01", "2026-01-02", "0001-01-01", "9999-12-31"]
TIMES = [
    "2026-01-01T00:00:00",
    "2026-01-01 00:00:00.5",
    "2026-01-01T00:00:00.123456",
    "1999-12-31T23:59:59",
]
COLUMNS: dict[str, tuple[list[Any], list[Any]]] = {
    # what a row may hold, as PostgreSQL reads it, and what a caller may ask for
    "i": (["-1", "0", "1", "2", "3"], [-1, 0, 1, 2, 3, "2", 1.0]),
    "b": (["-1", "0", "9007199254740993"], [0, -1, 9007199254740993, "9007199254740993"]),
    "s": (["0", "1", "2"], [0, 1, 2]),
    "n": ([*NUMBERS, "NaN", "Infinity"], [*NUMBERS, 1, 1.5, "NaN"]),
    "f": ([*NUMBERS, "NaN", "-Infinity", "1e300"], [0, 1.5, -1, "1.5", "NaN", 1e300]),
    "t": (TEXTS, TEXTS),
    "v": (TEXTS, TEXTS),
    "c": (["a", "b"], ["a", "a  ", "b"]),
    "l": (TEXTS, TEXTS),
    "o": (["true", "false"], [True, False, "t"]),
    "u": (UUIDS, [*UUIDS, UUIDS[0].upper(), "{" + UUIDS[1] + "}"]),
    "m": (["sad", "ok", "happy"], ["sad", "ok", "happy"]),
    "d": ([*DATES, "0044-03-15 BC", "infinity"], [*DATES, "Jan 1 2026", "infinity"]),
    "ts": ([*TIMES, "infinity"], [*TIMES, "2026-01-01"]),
    "tz": ([*(f"{t}+00" for t in TIMES), "-infinity"],
           ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00", "1999-12-31T23:59:59.0Z"]),
    "j": (['{"a": 1}', '[1]'], [1, "x"]),
}  # fmt: skip


def conditions(column: str) -> some.SearchStrategy[Any]:
    values = some.sampled_from(COLUMNS[column][1])
    found = [
        values,
        some.none(),
        some.lists(some.one_of(values, some.none()), max_size=3),
        values.map(lambda value: {"neq": value}),
    ]
    if column not in "jo":
        names = some.sampled_from(["gt", "gte", "lt", "lte"])
        found.append(some.dictionaries(names, values, min_size=1, max_size=2))
    return some.one_of(found)


@some.composite
def filters(draw: Any, depth: int = 0) -> dict[str, Any]:
    found = {}
    for column in draw(some.lists(some.sampled_from([*COLUMNS]), min_size=1, max_size=3)):
        found[column] = draw(conditions(column))
    if depth == 0 and draw(some.booleans()):
        found["or"] = draw(some.lists(filters(1), min_size=1, max_size=2))
    if depth == 0 and draw(some.integers(0, 3)) == 0:
        found["not"] = draw(filters(1))
    return found


rows = some.fixed_dictionaries(
    {name: some.one_of(some.none(), some.sampled_from(held)) for name, (held, _) in COLUMNS.items()}
)


@pytest.fixture(scope="module")
def reader(dsn: str) -> Iterator[Reader]:
    found = Reader(dsn)
    found.run("SET timezone = 'UTC'")
    yield found
    found.connection.close()


def terms(reader: Reader, where: Any) -> tuple[Any, list[Any], list[Any]]:
    relation = reader.catalog.relation("public", "rows")
    call = parse_find((), {"where": where, "select": ["id"]}, Limits(), "rows")
    plan = plan_find(reader.catalog, relation, call.request)
    values = list(call.values)
    return plan, values, terms_of(reader.catalog, reader.codec, plan.where, values)


@settings(max_examples=amount(10, 50), deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=some.lists(filters(), min_size=1, max_size=7), held=some.lists(rows, min_size=1, max_size=7))  # fmt: skip
def test_query_that_a_row_matches_in_postgresql_is_found_by_the_row(
    reader: Reader, asked: list[Any], held: list[dict[str, str | None]]
) -> None:
    index: Index[int] = Index()
    statements = []
    for number, where in enumerate(asked):
        plan, values, found = terms(reader, where)
        index.add(number, 7, found)
        statements.append((select(plan), values))
    reader.run("BEGIN")
    try:
        for row in held:
            names = ", ".join(row)
            with reader.connection.cursor() as cursor:
                cursor.execute("TRUNCATE rows")
                cursor.execute(
                    f"INSERT INTO rows ({names}) VALUES ({', '.join(['%s'] * len(row))})"
                    " RETURNING row_to_json(rows)::text",
                    list(row.values()),
                )
                ((text,),) = cursor.fetchall()
            change = row_change(LogRow(1, "1", "", 7, "I", None, text))
            right = {
                number
                for number, (statement, values) in enumerate(statements)
                if reader.rows(statement, values)
            }
            matched = index.matching(7, None, change.new)
            assert right <= matched, json.loads(text)
            # and no more than that, where terms are all there is
            for number in matched - right:
                where = asked[number]
                exact = terms(reader, where)[2]
                assert set(where) != {"i"} or not exact, (where, text)
    finally:
        reader.run("ROLLBACK")
    for number, where in enumerate(asked):
        index.remove(number, 7, terms(reader, where)[2])
    assert len(index) == 0


@pytest.mark.parametrize(
    ("where", "columns"),
    [
        ({"i": 1, "t": "a"}, ["i", "t"]),
        ({"i": [1, None]}, ["i"]),
        ({"m": "ok", "s": 1, "o": True}, ["m", "o", "s"]),
        ({"n": {"gte": 1, "lt": "1.5"}}, ["n"]),
        ({"tz": {"gt": "2026-01-01T00:00:00Z"}, "d": "2026-01-01"}, ["d", "tz"]),
        ({"or": [{"i": 1}, {"i": 2}]}, ["i"]),
        ({"or": [{"i": 1}, {"b": 2}]}, []),
        ({"not": {"i": 1}}, []),
        ({"l": "a"}, []),
        ({"c": "a"}, []),
        ({"t": {"gt": "a"}}, []),
        ({"j->a": 1}, []),
        ({"d": "yesterday"}, []),
        ({"tz": "2026-01-01T00:00:00"}, []),
        ({"n": "NaN"}, []),
        ({"f": {"lt": "NaN"}}, []),
    ],
)
def test_filter_is_indexed_by_columns_whose_values_python_compares_like_postgresql(
    reader: Reader, where: Any, columns: list[str]
) -> None:
    assert sorted(term.column for term in terms(reader, where)[2]) == columns


def test_ranges_of_one_column_are_combined(reader: Reader) -> None:
    (term,) = terms(reader, {"i": {"gte": 1, "lt": 5, "gt": 1}})[2]
    assert (term.low, term.low_in, term.high, term.high_in) == (1, False, 5, False)
    (none,) = terms(reader, {"and": [{"i": 1}, {"i": 2}]})[2]
    assert isinstance(none, OneOf)
    assert none.values == frozenset()
