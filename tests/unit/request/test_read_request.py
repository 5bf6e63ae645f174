"""Requests of the verbs that read."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.request import read_request
from service.request.arguments import mark_container, mark_referenced
from service.request.filters import MAX_SHAPES
from service.request.read_request import Limits, parse_count, parse_find, parse_get
from service.request.requests import KeyMatch

LIMITS = Limits(max_rows=10)


def find(**kwargs):
    """Parse a find."""
    return parse_find([], kwargs, LIMITS, "public.actions")


def test_key_by_position_or_name_is_the_same_request():
    assert parse_get([5], {}, LIMITS).request == parse_get([], {"key": 5}, LIMITS).request
    assert parse_get([5], {}, LIMITS).values == (5,)


@pytest.mark.parametrize(
    ("key", "columns", "values"),
    [(5, (), (5,)), ([1, "a"], (), (1, "a")), ({"b": 2, "a": 1}, ("a", "b"), (1, 2))],
)
def test_key_of_any_form_is_columns_and_values(key, columns, values):
    """A scalar, a list or a dict; the order of a dict does not matter."""
    call = parse_get([key], {}, LIMITS)
    assert isinstance(call.request.key, KeyMatch)
    assert (call.request.key.columns, call.values) == (columns, values)


def test_page_of_any_limit_reads_one_row_more():
    """The further row shows whether there is a next page; the maximum limit holds."""
    assert find(limit=3).values == (4,)
    assert find().values == (11,)
    assert find(limit=999).values == (11,)
    assert find(limit=0).values == (1,)


ALIKE = [
    ({}, {"limit": 5}),
    ({"where": {"a": 1, "b": {"gt": "x"}}}, {"where": {"a": True, "b": {"gt": 2.5}}, "limit": 3}),
    ({"order": ["-id"], "select": ["id", "a"]}, {"select": ["id", "a"], "order": ["-id"]}),
    (
        {"embed": {"driver": True}, "where": {"a": 1}},
        {"embed": {"driver": True}, "where": {"a": 2}},
    ),
    ({"distinct": ["a"], "timeout": 1}, {"distinct": ["a"], "timeout": 2.5, "limit": None}),
]
"""Pairs of finds that differ only in values, and in the place and the size of their page."""
UNLIKE = [
    ({"where": {"a": 1}}, {"where": {"b": 1}}),
    ({"distinct": True}, {"distinct": [True]}),
    ({"order": "a"}, {"order": ["a"]}),
    ({"select": ["a"]}, {"select": ["b"]}),
    ({"where": {"a": 1}}, {"where": {"a": [1]}}),
    ({"where": {"a->b": 1}}, {"where": {"a->b": 2}}),
    ({"order": [{"by": "a", "near": 1}]}, {"order": [{"by": "a", "near": 2}]}),
    ({"select": ["a->b"], "where": {"a": 1}}, {"select": ["a->b"], "where": {"a": "b"}}),
    ({"embed": {"d": {"where": {"x": 1}}}}, {"embed": {"d": {"where": {"x": 2}}}}),
    ({"form": "json"}, {"form": None}),
    ({"count": "exact"}, {"count": "planned"}),
    ({"measures": {"n": {"count": "*"}}}, {"measures": {"n": {"sum": "a"}}}),
]


def outcome(kwargs):
    """Return everything that a find is parsed to, or its refusal."""
    try:
        call = find(**kwargs)
    except InvalidArgument as refusal:
        return str(refusal), refusal.details
    return call.request, repr(call.values), call.timeout, repr(call.query), call.offset


@pytest.mark.parametrize(("one", "other"), ALIKE + UNLIKE)
def test_find_is_parsed_the_same_whatever_was_parsed_before(one, other, monkeypatch):
    for kwargs in (one, other):
        monkeypatch.setattr(read_request, "_rows", {})
        anew = outcome(kwargs)
        monkeypatch.setattr(read_request, "_rows", {})
        outcome(one)
        outcome(other)
        assert outcome(kwargs) == anew


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_finds_that_differ_in_values_are_parsed_once(one, other):
    assert find(**one).request is find(**other).request


@pytest.mark.parametrize(
    "kwargs",
    [
        {"embed": {"d": {"where": {"x": 1}}}},
        {"select": ["a->b"]},
        {"order": [{"by": "a", "near": 1}]},
        {"where": {"a": [1]}},
        {"select": mark_container([mark_referenced(["a"])])},
        {"select": ["a b"] * 300},
        {"where": {"not": {f"c{at}": at for at in range(200)}}},
        {"order": "unknown:"},
    ],
)
def test_find_with_values_outside_of_its_filter_or_of_great_size_is_not_kept(kwargs, monkeypatch):
    """Else the cache would keep values of callers, or grow without bound."""
    monkeypatch.setattr(read_request, "_rows", {})
    outcome(kwargs)
    assert not read_request._rows


def test_parsed_finds_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(read_request, "_rows", {})
    for at in range(MAX_SHAPES + 5):
        find(select=[f"c{at}"])
    assert 0 < len(read_request._rows) <= MAX_SHAPES


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
        ({"order": {"desc": True}}, "order.by"),
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
def test_malformed_argument_is_refused_with_its_path(kwargs, path):
    with pytest.raises(InvalidArgument) as refused:
        find(**kwargs)
    assert refused.value.details["path"] == path


@pytest.mark.parametrize("key", [None, [], {}, [1, None], {"a": None}, {5: 1}])
def test_key_without_all_values_is_refused(key):
    with pytest.raises(InvalidArgument):
        parse_get([key], {}, LIMITS)


def test_arguments_missing_doubled_or_surplus_are_refused():
    for args, kwargs in (([], {}), ([1], {"key": 1}), ([1, 2], {}), ([1], {"nope": 1})):
        with pytest.raises(InvalidArgument):
            parse_get(args, kwargs, LIMITS)
    with pytest.raises(InvalidArgument):
        parse_count([{}], {}, LIMITS)


@pytest.mark.parametrize(
    ("count", "hint"),
    [("many", "one of exact, planned, estimated"), ("exakt", 'did you mean "exact"?')],
)
def test_unknown_count_mode_is_refused_with_the_valid_ones(count, hint):
    """If no mode is similar, all are listed."""
    with pytest.raises(InvalidArgument) as refused:
        find(count=count)
    assert refused.value.details["hint"] == hint
