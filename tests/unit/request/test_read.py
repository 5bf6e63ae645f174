"""Arguments of the verbs to requests."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.request.read import Limits, parse_count, parse_find, parse_get
from service.request.types import EVERYTHING, KeyMatch
from service.request.write import parse_create, parse_delete, parse_update

LIMITS = Limits(max_rows=10)


def find(**kwargs):
    """Parse a find."""
    return parse_find([], kwargs, LIMITS, "public.actions")


def test_get_by_position_and_name():
    """The key may stand either way."""
    assert parse_get([5], {}, LIMITS).request == parse_get([], {"key": 5}, LIMITS).request
    assert parse_get([5], {}, LIMITS).values == (5,)


@pytest.mark.parametrize(
    ("key", "columns", "values"),
    [(5, (), (5,)), ([1, "a"], (), (1, "a")), ({"b": 2, "a": 1}, ("a", "b"), (1, 2))],
)
def test_keys(key, columns, values):
    """A key is bare, a list or a dict; a dict's order says nothing."""
    call = parse_get([key], {}, LIMITS)
    assert isinstance(call.request.key, KeyMatch)
    assert (call.request.key.columns, call.values) == (columns, values)


def test_a_page_reads_one_row_more():
    """The row beyond the page tells whether there is a next one; the ceiling holds."""
    assert find(limit=3).values == (4,)
    assert find().values == (11,)
    assert find(limit=999).values == (11,)
    assert find(limit=0).values == (1,)


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "1"}, "limit"),
        ({"limit": 2**63}, "limit"),
        ({"offset": -1}, "offset"),
        ({"count": "all"}, "count"),
        ({"form": 5}, "form"),
        ({"distinct": 5}, "distinct"),
        ({"distinct": []}, "distinct"),
        ({"distinct": [5]}, "distinct"),
        ({"order": 5}, "order"),
        ({"order": ["a"] * 65}, "order"),
        ({"distinct": ["a"] * 65}, "distinct"),
        ({"select": ["a"] * 1001}, "select"),
        ({"x" * 5000: 1}, "x" * 299 + "…"),
        ({"order": [5]}, "order.0"),
        ({"order": {"desc": True}}, "order.0.by"),
        ({"order": [{"by": "a", "desc": 1}]}, "order.0.desc"),
        ({"order": [{"by": "a", "nulls": "x"}]}, "order.0.nulls"),
        ({"order": [{"by": "a", "x": 1}]}, "order.0.x"),
        ({"select": 5}, "select"),
        ({"select": [5]}, "select.0"),
        ({"select": [{"as": "x"}]}, "select.0.column"),
        ({"select": [{"column": "a", "as": 5}]}, "select.0.as"),
        ({"select": [{"column": "a", "as": "\0"}]}, "select.0.as"),
        ({"select": [{"column": "\ud800"}]}, "select.0.column"),
        ({"select": [{"column": "a", "cast": ""}]}, "select.0.cast"),
        ({"after": 5}, "after"),
        ({"after": "zzz"}, "after"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"wehre": {}}, "wehre"),
    ],
)
def test_refused(kwargs, path):
    """A malformed argument is refused with its place."""
    with pytest.raises(InvalidArgument) as refused:
        find(**kwargs)
    assert refused.value.details["path"] == path


@pytest.mark.parametrize("key", [None, [], {}, [1, None], {"a": None}, {5: 1}])
def test_no_key(key):
    """A key without a value for each column is none."""
    with pytest.raises(InvalidArgument):
        parse_get([key], {}, LIMITS)


def test_arguments():
    """Missing, doubled and surplus arguments are refused."""
    for args, kwargs in (([], {}), ([1], {"key": 1}), ([1, 2], {}), ([1], {"nope": 1})):
        with pytest.raises(InvalidArgument):
            parse_get(args, kwargs, LIMITS)
    with pytest.raises(InvalidArgument):
        parse_count([{}], {}, LIMITS)


def test_create():
    """One row or a list; a default is told from a value."""
    one = parse_create([{"a": 1, "b": {"$default": True}}], {}, LIMITS)
    assert not one.request.many
    (row,) = one.request.rows
    assert [each.operand is None for each in row] == [False, True]
    many = parse_create([], {"values": [{"a": 1}, {}]}, LIMITS)
    assert many.request.many
    assert [len(row) for row in many.request.rows] == [1, 0]


@pytest.mark.parametrize("values", [None, 5, "a", [5], [None], {5: 1}, [[1]]])
def test_no_rows(values):
    """What is no row is refused."""
    with pytest.raises(InvalidArgument):
        parse_create([values], {}, LIMITS)


def test_targets():
    """A write is for a key or a filter, and for every row only when it says so."""
    by_key = parse_update([1, {"a": 2}], {}, LIMITS).request.target
    assert by_key.key is not None
    by_filter = parse_update([], {"where": {"x": 1}, "changes": {"a": 2}}, LIMITS).request.target
    assert by_filter.key is None
    assert parse_delete([], {"all": True}, LIMITS).request.target.where == EVERYTHING


@pytest.mark.parametrize(
    "kwargs",
    [
        {"changes": {}},
        {"where": {}, "changes": {}},
        {"where": {"and": [{}]}, "changes": {}},
        {"where": {"or": [{"a": 1}, {}]}, "changes": {}},
        {"where": {"not": {"or": []}}, "changes": {}},
        {"where": {"not": {"not": {}}}, "changes": {}},
        {"where": {"not": {"and": [{"or": []}, {"a": 1}]}}, "changes": {}},
        {"key": 1, "where": {"a": 1}, "changes": {}},
        {"key": 1, "all": True, "changes": {}},
        {"where": {"a": 1}, "expect": {"a": 1}, "changes": {}},
        {"key": 1},
        {"key": 1, "changes": [{}, {}]},
        {"key": 1, "changes": {}, "expect": [1]},
        {"key": 1, "changes": {}, "expect": {"a": {"$default": True}}},
        {"key": 1, "changes": {}, "returning": "no"},
        {"key": 1, "changes": {}, "max_affected": -1},
    ],
)
def test_bad_update(kwargs):
    """A write with an unclear target, or unclear changes, is refused."""
    with pytest.raises(InvalidArgument):
        parse_update([], kwargs, LIMITS)


@pytest.mark.parametrize(
    ("count", "hint"),
    [("many", "one of exact, planned, estimated"), ("exakt", 'did you mean "exact"?')],
)
def test_words(count, hint):
    """Of a word that is like none, all are named."""
    with pytest.raises(InvalidArgument) as refused:
        find(count=count)
    assert refused.value.details["hint"] == hint
