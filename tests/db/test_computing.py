"""
Values that an update computes from stored values, compared with hand-written SQL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred, gatherResults

from service.errors import CheckViolation, InvalidArgument, ServiceError
from service.request.row_values import COMPUTING, MAX_ALL_STEPS, MAX_PATHS, MAX_STEPS
from service.request.select_list import quoted_item
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller

SCHEMA = """
CREATE DOMAIN level AS int CHECK (VALUE < 100);
CREATE DOMAIN settings AS jsonb;
CREATE TYPE pair AS (a int, b text);
CREATE TABLE things (
    id int PRIMARY KEY,
    i2 smallint, i4 int, i8 bigint, r real, d double precision, n numeric(10, 2), free numeric,
    cash money, at timestamptz, local timestamp, day date, hour time, took interval, level level,
    tags text[], short varchar(3)[], grid int[], pairs pair[], docs json[], flags bool[],
    doc jsonb, raw json, own settings, label text, gone uuid,
    twice int GENERATED ALWAYS AS (i4 * 2) STORED);
"""
BEFORE_EACH = "TRUNCATE things; INSERT INTO things (id) VALUES (1)"

CASES = [
    ("i2", "7", {"$add": -9}, "7::smallint - 9::smallint"),
    ("i4", "7", {"$add": 5}, "12"),
    ("i4", "7", {"$multiply": -3}, "-21"),
    ("i4", "NULL", {"$add": 5}, "NULL"),
    ("i8", "9007199254740993", {"$add": "9007199254740993"}, "18014398509481986"),
    ("r", "1.5", {"$multiply": 3}, "4.5"),
    ("d", "0.1", {"$add": 0.2}, "0.1::float8 + 0.2::float8"),
    ("d", "1", {"$add": "NaN"}, "'NaN'"),
    ("n", "10.10", {"$add": "0.05"}, "10.15"),
    ("n", "10.10", {"$multiply": 1.005}, "10.10 * 1.005"),
    ("free", "1e30", {"$add": "0.0000000001"}, "1e30 + 0.0000000001"),
    ("free", "3", {"$multiply": "0.333333333333333333333"}, "0.999999999999999999999"),
    ("cash", "'12.50'", {"$add": "0.50"}, "'13.00'"),
    ("cash", "'12.50'", {"$multiply": 2}, "'25.00'"),
    ("at", "'2024-02-29 12:00Z'", {"$add": "P1Y"}, "'2025-02-28 12:00Z'"),
    ("local", "'2024-01-31'", {"$add": "1 month"}, "'2024-02-29'"),
    ("day", "'2024-01-31'", {"$add": "P1D"}, "'2024-02-01'"),
    ("hour", "'23:30'", {"$add": "PT1H"}, "'00:30'"),
    ("took", "'1 day'", {"$add": "PT2S"}, "'1 day 2 seconds'"),
    ("took", "'1 day'", {"$multiply": 1.5}, "'1 day 12:00'"),
    ("level", "98", {"$add": 1}, "99"),
    ("tags", "'{a}'", {"$append": ["b", None, "c,\"d"]}, "ARRAY['a', 'b', NULL, 'c,\"d']"),
    ("tags", "'{a}'", {"$prepend": ["b", "c"]}, "'{b,c,a}'"),
    ("tags", "NULL", {"$append": ["b"]}, "'{b}'"),
    ("tags", "'{a}'", {"$append": []}, "'{a}'"),
    ("tags", "'{a,b,a,NULL}'", {"$remove": ["a", None]}, "'{b}'"),
    ("tags", "'{a}'", {"$remove": []}, "'{a}'"),
    ("tags", "NULL", {"$remove": ["a"]}, "NULL"),
    ("short", "'{abc}'", {"$append": ["de"]}, "'{abc,de}'"),
    ("grid", "'{{1,2},{3,4}}'", {"$append": [[5, 6]]}, "'{{1,2},{3,4},{5,6}}'"),
    ("pairs", "ARRAY[ROW(1, 'a')::pair]", {"$append": [{"a": 2, "b": "x"}]},
     "ARRAY[ROW(1, 'a'), ROW(2, 'x')]::pair[]"),
    ("pairs", "ARRAY[ROW(1, 'a'), ROW(2, 'x')]::pair[]", {"$remove": [{"a": 1, "b": "a"}]},
     "ARRAY[ROW(2, 'x')]::pair[]"),
    ("flags", "'{t,f}'", {"$remove": [True]}, "'{f}'"),
    ("doc", """'{"a": 1, "b": {"c": 2}}'""", {"$merge": {"b": {"d": 3}, "e": None}},
     """'{"a": 1, "b": {"d": 3}, "e": null}'"""),
    ("doc", "NULL", {"$merge": {"a": 1}}, """'{"a": 1}'"""),
    ("doc", """'{"a": 1, "b": 2, "c": 3}'""", {"$remove": ["a", "c", "x"]}, """'{"b": 2}'"""),
    ("doc", """'["a", "b", 1]'""", {"$remove": ["a"]}, """'["b", 1]'"""),
    ("doc", "NULL", {"$remove": ["a"]}, "NULL"),
    ("doc", "'[1]'", {"$append": [[2], {"x": None}]}, """'[1, [2], {"x": null}]'"""),
    ("doc", "'[1]'", {"$prepend": [2, 3]}, "'[2, 3, 1]'"),
    ("doc", "NULL", {"$append": [1]}, "'[1]'"),
    ("doc", "'1.50'", {"$add": "0.25"}, "'1.75'"),
    ("doc", "'3'", {"$multiply": 2}, "'6'"),
    ("doc", "NULL", {"$add": 1}, "NULL"),
    ("raw", """'{"a":  1}'""", {"$merge": {"b": 2}}, """'{"a": 1, "b": 2}'"""),
    ("own", """'{"a": 1}'""", {"$merge": {"b": 2}}, """'{"a": 1, "b": 2}'"""),
    ("doc", "'1'", {"$value": {"$add": 1}}, """'{"$add": 1}'"""),
    ("doc", "'1'", {"$value": {"$value": {"$default": True}}}, """'{"$value": {"$default": true}}'"""),
    ("doc", "'1'", {"$value": None}, "NULL"),
    ("doc", "'1'", {"$schema": "s", "$id": "i"}, """'{"$schema": "s", "$id": "i"}'"""),
    ("doc", "'1'", {"$number": "0.12345678901234567890123"}, "'0.12345678901234567890123'"),
    ("doc", "'1'", {"$value": {"$number": "5"}}, """'{"$number": "5"}'"""),
    ("doc", "'[1]'", {"$append": [{"$number": "1e40"}]}, "'[1, 1e40]'"),
    ("i4", "1", {"$value": 3}, "3"),
    ("i4", "1", {"$default": True}, "NULL"),
]  # fmt: skip

OF_PATHS = [
    ("""'{"a": {"b": 1, "c": 2}}'""", {"doc->a->b": [5]}, """'{"a": {"b": [5], "c": 2}}'"""),
    ("NULL", {"doc->a->b": 5}, """'{"a": {"b": 5}}'"""),
    ("'{}'", {"doc->a->b->c": None}, """'{"a": {"b": {"c": null}}}'"""),
    ("""'{"a": null}'""", {"doc->a->b": 1}, """'{"a": {"b": 1}}'"""),
    ("'{}'", {"doc->a->0": 1}, """'{"a": [1]}'"""),
    ("""'{"0": {"y": 2}}'""", {"doc->0->x": 1}, """'{"0": {"y": 2, "x": 1}}'"""),
    ("""'{"a": [1, 2, 3]}'""", {"doc->a->1": "x"}, """'{"a": [1, "x", 3]}'"""),
    ("""'{"a": [1, 2, 3]}'""", {"doc->a->-1": "x"}, """'{"a": [1, 2, "x"]}'"""),
    ("""'{"a": [1]}'""", {"doc->a->9": 2}, """'{"a": [1, 2]}'"""),
    ("""'{"a": [{"n": 1}]}'""", {"doc->a->0->n": 2}, """'{"a": [{"n": 2}]}'"""),
    ("""'{"a": 1, "b": 2}'""", {"doc->a": 3, "doc->b": 4, "doc->c->d": 5},
     """'{"a": 3, "b": 4, "c": {"d": 5}}'"""),
    ("""'{"a": 1, "l": [1], "o": {"x": 1}}'""",
     {"doc->a": {"$add": 2}, "doc->l": {"$append": [2]}, "doc->o": {"$merge": {"y": 2}}},
     """'{"a": 3, "l": [1, 2], "o": {"x": 1, "y": 2}}'"""),
    ("'{}'", {"doc->n": {"$add": 2}, "doc->a->n": {"$add": 2}}, "'{}'"),
    ("NULL", {"doc->n": {"$add": 2}}, "NULL"),
    ("""'{"n": null}'""", {"doc->n": {"$add": 2}}, """'{"n": null}'"""),
    ("'null'", {"doc->n": {"$add": 2}, "doc->a->0": {"$remove": ["x"]}}, "'null'"),
    ("""'{"a": null}'""", {"doc->a->n": {"$multiply": 2}, "doc->a->0->m": {"$remove": ["x"]}},
     """'{"a": null}'"""),
    ("""'{"l": null}'""", {"doc->l": {"$append": [2]}, "doc->m": {"$prepend": [1]}},
     """'{"l": [2], "m": [1]}'"""),
    ("""'{"o": {"x": 1, "y": 2}}'""", {"doc->o": {"$remove": ["x"]}}, """'{"o": {"y": 2}}'"""),
    ("""'{"o": 1}'""", {"doc->o": {"$value": {"$add": 1}}}, """'{"o": {"$add": 1}}'"""),
    ("""'{"it''s": 1}'""", {"doc->it's": 2}, """'{"it''s": 2}'"""),
    ("""'{"a.b": {"c->d": 1}}'""", {'doc->"a.b"->"c->d"': 2}, """'{"a.b": {"c->d": 2}}'"""),
    ("""'{}'""", {"doc->%s->{v}->;--": 1}, """'{"%s": {"{v}": {";--": 1}}}'"""),
]  # fmt: skip


def stored(dsn: str, column: str, sql: str) -> tuple[str, bool]:
    """Return a column as text, and whether it equals an SQL expression."""
    ((declared,),) = execute(
        dsn,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = 'things'::regclass AND attname = '{column}'",
    )
    compared = "::jsonb" if declared in ("jsonb", "json", "settings") else ""
    wanted = f"CAST({sql} AS {declared}){compared}"
    same = f"{column}{compared} IS NOT DISTINCT FROM {wanted}"
    ((text, as_wanted),) = execute(dsn, f"SELECT {column}::text, {same} FROM things")
    return str(text), as_wanted is True


@pytest.mark.parametrize(("column", "before", "change", "after"), CASES)
@pytest_twisted.ensureDeferred
async def test_computed_value_is_what_postgresql_computes(
    db: DirectCaller, dsn: str, column: str, before: str, change: Any, after: str
) -> None:
    """The stored and the returned values, by key and by filter."""
    execute(dsn, f"UPDATE things SET {column} = {before}")
    row = await db.call("things.update", 1, {column: change})
    text, as_wanted = stored(dsn, column, after)
    assert as_wanted, text
    assert row == await db.call("things.get", 1)
    execute(dsn, f"UPDATE things SET {column} = {before}")
    answer = await db.call("things.update", where={"id": 1}, changes={column: change})
    assert answer == {"rows": [row], "affected": 1}


@pytest.mark.parametrize(("before", "changes", "after"), OF_PATHS)
@pytest.mark.parametrize("column", ["doc", "raw", "own"])
@pytest_twisted.ensureDeferred
async def test_path_changes_only_what_it_names(
    db: DirectCaller, dsn: str, before: str, changes: Any, after: str, column: str
) -> None:
    """Missing objects and lists on the path are created; json is set like jsonb."""
    execute(dsn, f"UPDATE things SET {column} = {before}")
    changes = {name.replace("doc", column, 1): value for name, value in changes.items()}
    await db.call("things.update", 1, changes)
    text, as_wanted = stored(dsn, column, after)
    assert as_wanted, text


STEPS = [f"s{at}" for at in range(MAX_STEPS - 1)]
OF_MANY_PATHS: list[tuple[Any, Any, Callable[[int], Any]]] = [
    (1, lambda at: at, lambda at: at),
    (7, lambda at: {"$add": at}, lambda at: 7 + at),
    (7, lambda at: {"$multiply": at}, lambda at: 7 * at),
    ([0], lambda at: {"$append": [at]}, lambda at: [0, at]),
    ([0], lambda at: {"$prepend": [at]}, lambda at: [at, 0]),
    ({"a": 1, "b": 2}, lambda _: {"$remove": ["a"]}, lambda _: {"b": 2}),
    ({"a": 1}, lambda at: {"$merge": {"b": at}}, lambda at: {"a": 1, "b": at}),
]


@pytest.mark.parametrize(("before", "change", "after"), OF_MANY_PATHS)
@pytest.mark.parametrize(
    ("way", "steps"), [("key", []), ("where", []), ("rows", []), ("key", STEPS)]
)
@pytest_twisted.ensureDeferred
async def test_maximum_number_and_length_of_paths_is_computed(
    db: DirectCaller,
    before: Any,
    change: Callable[[int], Any],
    after: Callable[[int], Any],
    way: str,
    steps: list[str],
) -> None:
    """If the cost grew exponentially with the paths, the statement would time out."""

    def document(leaf: Callable[[int], Any]) -> dict[str, Any]:
        return {f"k{at}": reduce(lambda inner, key: {key: inner}, steps, leaf(at)) for at in paths}

    paths = range(MAX_ALL_STEPS // MAX_STEPS if steps else MAX_PATHS)
    for column in ("doc", "raw"):
        await db.call("things.update", 1, {column: document(lambda _: before)})
        changes = {"->".join([column, f"k{at}", *reversed(steps)]): change(at) for at in paths}
        if way == "rows":
            await db.call("things.update", rows=[{"id": 1, **changes}])
        elif way == "where":
            await db.call("things.update", where={"id": 1}, changes=changes)
        else:
            await db.call("things.update", 1, changes)
        assert (await db.call("things.get", 1))[column] == document(after)


REFUSED = [
    ("", {"label": {"$add": 1}}, "changes.label.$add", r'"label" is text, which has no "\$add"'),
    ("", {"gone": {"$append": [1]}}, "changes.gone.$append", "is uuid"),
    ("", {"tags": {"$add": 1}}, "changes.tags.$add", "has no"),
    ("", {"docs": {"$remove": [1]}}, "changes.docs.$remove", "has no"),
    ("", {"at": {"$multiply": 2}}, "changes.at.$multiply", "has no"),
    ("", {"at": {"$add": 1}}, "changes.at.$add", "expected a string"),
    ("", {"at": {"$add": "soon"}}, "changes.at.$add", "invalid input syntax for type interval"),
    ("", {"i4": {"$add": 1.5}}, "changes.i4.$add", "expected an integer"),
    ("", {"i4": {"$add": None}}, "changes.i4.$add", "takes a number"),
    ("", {"i4": {"$add": True}}, "changes.i4.$add", "takes a number"),
    ("", {"tags": {"$append": "a"}}, "changes.tags.$append", "takes a list"),
    ("", {"pairs": {"$append": [{"c": 1}]}}, "changes.pairs.$append.0.c", "no field"),
    ("", {"tags": {"$remove": [["a"]]}}, "changes.tags.$remove.0", "expected a string"),
    ("", {"tags": {"$remove": ["a"] * 101}}, "changes.tags.$remove", "at most 100"),
    ("", {"doc": {"$merge": [1]}}, "changes.doc.$merge", "takes a dict"),
    ("", {"doc": {"$merge": {"$number": "1"}}}, "changes.doc.$merge", "takes a dict"),
    ("", {"i4": {"$ad": 1}}, "changes.i4.$ad", "no operator"),
    ("", {"doc": {"$oid": "x"}}, "changes.doc.$oid", "no operator"),
    ("", {"doc": {"$default": 1}}, "changes.doc.$default", "is true"),
    ("", {"i4": {"$add": 1, "$multiply": 2}}, "changes.i4", "stands alone"),
    ("", {"doc": {"$merge": {}, "other": 1}}, "changes.doc", "stands alone"),
    ("", {"i4->a": 1}, "changes.i4->a", "paths are set in json and jsonb"),
    ("", {"tags->0": "a"}, "changes.tags->0", "paths are set in json and jsonb"),
    ("", {"nothing->a": 1}, "changes.nothing->a", "no column"),
    ("", {"doc": 1, "doc->a": 2}, "changes.doc->a", "lies in what is set beside it"),
    ("", {"doc->a": 1, "doc->a->b": 2}, "changes.doc->a->b", "lies in"),
    ("", {"doc->a->b": 2, "doc->a": 1}, "changes.doc->a->b", "lies in"),
    ("", {"doc->a": 1, 'doc->"a"': 2}, 'changes.doc->"a"', "lies in"),
    ("", {"doc->>a": 1}, "changes.doc->>a", "not a path to set"),
    ("", {"doc->a::int": 1}, "changes.doc->a::int", "not a path to set"),
    ("", {"x.doc->a": 1}, "changes.x.doc->a", "not a path to set"),
    ("", {"doc->": 1}, "changes.doc->", "not a column"),
    ("", {"doc->a": {"$default": True}}, "changes.doc->a", "a path in it has none"),
    ("", {"doc" + "->a" * 17: 1}, "changes.doc" + "->a" * 17, "at most 16 steps"),
    ("", {f"doc->{at}x": 1 for at in range(65)}, "changes.doc->64x", "at most 64 paths"),
    ("", {f"doc->{at}" + "->a" * 15: 1 for at in range(9)}, "changes", "at most 128 steps"),
    ("", {f"{column}->{at}->a->b": 1 for column in ("doc", "raw") for at in range(22)}, "changes",
     "at most 128 steps"),
    ("", {"twice": {"$add": 1}}, "changes.twice", "made by the database"),
    ("i2 = 32767", {"i2": {"$add": 1}}, "changes.i2", "smallint out of range"),
    ("n = 99999999", {"n": {"$multiply": 10}}, "changes.n", "numeric field overflow"),
    ("at = '294276-12-31'", {"at": {"$add": "P1D"}}, "changes.at", "out of range"),
    ("grid = '{{1},{2}}'", {"grid": {"$remove": [1]}}, None, "multidimensional"),
    ("grid = '{{1},{2}}'", {"grid": {"$append": [[1, 2]]}}, "changes.grid", "incompatible arrays"),
    ("doc = '5'", {"doc->a": 1}, "changes.doc->a", "cannot set path in scalar"),
    ("doc = '[]'", {"doc->a": 1}, "changes.doc->a", "is not an integer"),
    ("doc = '{\"a\": 1}'", {"doc->a->b": 1}, "changes.doc->a->b", "cannot set path in scalar"),
    ("doc = '[]'", {"doc": {"$merge": {"a": 1}}}, "changes.doc", "is no object"),
    ("doc = '1'", {"doc": {"$merge": {"a": 1}}}, "changes.doc", "is no object"),
    ("doc = '{}'", {"doc": {"$append": [1]}}, "changes.doc", "is no list"),
    ("doc = '1'", {"doc": {"$append": [1]}}, "changes.doc", "is no list"),
    ("doc = '1'", {"doc": {"$remove": ["a"]}}, "changes.doc", "cannot delete from scalar"),
    ("doc = '\"1\"'", {"doc": {"$add": 1}}, "changes.doc", "cannot cast jsonb string"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "changes", "path", "message"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_value_that_cannot_be_computed_is_refused_and_nothing_written(
    db: DirectCaller, dsn: str, before: str, changes: Any, path: str | None, message: str
) -> None:
    """The error has the path, and the row is unchanged."""
    if before:
        execute(dsn, f"UPDATE things SET {before}")
    row = await db.call("things.get", 1)
    for target in ({"key": 1}, {"where": {"id": 1}}):
        with pytest.raises(ServiceError, match=message) as refused:
            await db.call("things.update", **target, changes={"label": "x", **changes})
        assert refused.value.details.get("path") == path
    assert await db.call("things.get", 1) == row


@pytest_twisted.ensureDeferred
async def test_rows_with_equal_paths_share_their_steps(db: DirectCaller, dsn: str) -> None:
    """Each distinct path is a part of the statement, whatever the number of rows that use it."""
    execute(dsn, "INSERT INTO things (id, doc) SELECT n, '{}' FROM generate_series(2, 200) AS n")
    alike = [{"id": at, "doc->a->b": at} for at in range(2, 201)]
    await db.call("things.update", rows=alike, returning=False)
    same = "SELECT count(*) FROM things WHERE doc = jsonb_build_object('a', jsonb_build_object('b', id))"
    assert execute(dsn, same) == [(199,)]
    unlike = [{"id": at, f"doc->k{at}": at} for at in range(2, 131)]
    with pytest.raises(InvalidArgument, match="at most 128 steps") as refused:
        await db.call("things.update", rows=unlike, returning=False)
    assert refused.value.details["path"] == "rows"
    assert execute(dsn, same) == [(199,)]
    await db.call("things.update", rows=unlike[:128], returning=False)
    assert execute(dsn, "SELECT count(*) FROM things WHERE doc -> ('k' || id) = to_jsonb(id)") == [
        (128,)
    ]


@pytest_twisted.ensureDeferred
async def test_unknown_operator_is_refused_with_the_nearest(db: DirectCaller) -> None:
    """The hint also says how to write a value that looks like an operator."""
    with pytest.raises(InvalidArgument) as refused:
        await db.call("things.update", 1, {"doc": {"$appendd": [1]}})
    assert refused.value.details["hint"] == (
        'did you mean "$append"? a value is taken as it is in {"$value": …}'
    )


@pytest_twisted.ensureDeferred
async def test_computed_value_that_breaks_a_check_is_refused(db: DirectCaller, dsn: str) -> None:
    """The check of a domain refuses it like any value."""
    execute(dsn, "UPDATE things SET level = 99")
    with pytest.raises(CheckViolation):
        await db.call("things.update", 1, {"level": {"$add": 1}})


@pytest.mark.parametrize("verb", ["create", "upsert"])
@pytest_twisted.ensureDeferred
async def test_operator_in_a_new_row_is_refused_or_literal(db: DirectCaller, verb: str) -> None:
    """A new row has no stored value to compute from."""
    for value in ({"$add": 1}, {"$merge": {}}, {"$nothing": 1}):
        with pytest.raises(InvalidArgument) as refused:
            await db.call(f"things.{verb}", {"id": 2, "doc": value})
        assert refused.value.details["path"] == f"values.doc.{next(iter(value))}"
        assert '{"$value": …}' in refused.value.details["hint"]
        row = await db.call(f"things.{verb}", {"id": 3, "doc": {"$value": value}})
        assert row["doc"] == value
        await db.call("things.delete", 3)
    with pytest.raises(InvalidArgument, match="no column"):
        await db.call(f"things.{verb}", {"id": 2, "doc->a": 1})


@pytest_twisted.ensureDeferred
async def test_expected_value_inside_of_value_is_literal(db: DirectCaller, dsn: str) -> None:
    """Values in `expect` are not computed."""
    execute(dsn, """UPDATE things SET doc = '{"$add": 1}', i4 = 1""")
    row = await db.call(
        "things.update", 1, {"i4": {"$add": 1}}, expect={"doc": {"$value": {"$add": 1}}, "i4": 1}
    )
    assert row["i4"] == 2
    with pytest.raises(InvalidArgument, match="computes out of the row"):
        await db.call("things.update", 1, {"i4": 1}, expect={"i4": {"$add": 1}})


@pytest_twisted.ensureDeferred
async def test_concurrent_computed_changes_are_all_kept(db: DirectCaller, dsn: str) -> None:
    """Each is computed from the value written by the previous one."""
    execute(dsn, "UPDATE things SET i4 = 0, doc = '{}'")
    calls = [
        db.call("things.update", 1, {"i4": {"$add": 1}, f"doc->k{at}": at}) for at in range(40)
    ]
    await gatherResults(list(map(ensureDeferred, calls)))
    row = await db.call("things.get", 1)
    assert row["i4"] == 40
    assert row["doc"] == {f"k{at}": at for at in range(40)}


HOSTILE = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "'; DROP TABLE things; --",
            "a'||(SELECT 1)||'",
            "{a,b}",
            '"}',
            "%s",
            "%(x)s",
            "\\",
            "\0",
            "\ud800",
            "$1",
            "->",
            "->>",
            "::",
            "0",
            "-1",
        ]
    ),
)


@settings(
    max_examples=amount(15, 150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(keys=st.lists(HOSTILE, min_size=1, max_size=4), value=HOSTILE)
@pytest_twisted.ensureDeferred
async def test_hostile_path_sets_its_key_or_is_refused(
    db: DirectCaller, dsn: str, keys: list[str], value: str
) -> None:
    """Any string is a valid JSON key, and nothing else changes."""
    execute(dsn, f"{BEFORE_EACH}, (2)")
    path = "->".join(["doc", *map(quoted_item, keys)])
    try:
        row = await db.call("things.update", 1, {path: value})
    except InvalidArgument:
        told = {*"".join([*keys, value])} & {"\0", "\ud800"}
        assert told or not all(keys), (keys, value)
        assert execute(dsn, "SELECT count(doc) FROM things") == [(0,)]
        return
    expected: Any = value
    for key in reversed(keys):
        expected = {key: expected}
    assert row["doc"] == expected
    assert execute(dsn, "SELECT count(*), count(doc) FROM things") == [(2, 1)]


@settings(
    max_examples=amount(10, 60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=HOSTILE,
    value=HOSTILE | st.lists(HOSTILE, max_size=2),
    column=st.sampled_from(["doc", "i4", "tags"]),
)
@pytest_twisted.ensureDeferred
async def test_hostile_operator_is_refused(
    db: DirectCaller, dsn: str, name: str, value: Any, column: str
) -> None:
    execute(dsn, BEFORE_EACH)
    if f"${name}" in COMPUTING:
        return
    with pytest.raises(InvalidArgument):
        await db.call("things.update", 1, {column: {f"${name}": value}})
    assert execute(dsn, "SELECT count(doc), count(i4), count(tags) FROM things") == [(0, 0, 0)]
