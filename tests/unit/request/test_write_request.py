"""Requests of the verbs that write."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.request.read_request import Limits
from service.request.requests import EVERYTHING
from service.request.write_request import parse_create, parse_delete, parse_update, parse_upsert

LIMITS = Limits()


@pytest.mark.parametrize("key", [[], ()])
def test_upsert_by_no_columns_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match="a key has columns") as refused:
        parse_upsert([{"id": 1}], {"on_conflict": key}, LIMITS)
    assert refused.value.details["path"] == "on_conflict"


def test_default_is_distinguished_from_values() -> None:
    """A document is stored as it is, unless its only key would be an operator."""
    document = {"$schema": "s", "$id": "i"}
    for value, operand in (
        ({"$default": True}, None),
        ({"$value": {"$default": True}}, {"$default": True}),
        (document, document),
        ({}, {}),
        ({1: 2}, {1: 2}),
    ):
        parsed = parse_create([{"doc": value}], {}, LIMITS)
        ((assignment,),) = parsed.request.rows
        if operand is None:
            assert assignment.operand is None
        else:
            assert assignment.operand is not None
            assert parsed.values[assignment.operand.slot] == operand


@pytest.mark.parametrize(
    "value",
    [
        {"$default": 1},
        {"$default": "yes"},
        {"$default": False},
        {"$default": True, "other": 1},
        {"$value": 1, "other": 1},
        {"$values": 1},
        {"$": 1},
        {"$add": 1},
    ],
)
@pytest.mark.parametrize(("parse", "name"), [(parse_create, "values"), (parse_upsert, "values")])
def test_unknown_operator_like_key_is_refused(parse: Any, name: str, value: Any) -> None:
    """A misspelled operator would otherwise be stored silently as a document."""
    with pytest.raises(InvalidArgument) as refused:
        parse([], {name: {"doc": value}}, LIMITS)
    assert refused.value.details["path"].startswith(f"{name}.doc")
    assert '{"$value": …}' in refused.value.details["hint"]


def test_create_of_one_row_or_a_list_holds_assignments():
    """A default is distinguished from a value."""
    one = parse_create([{"a": 1, "b": {"$default": True}}], {}, LIMITS)
    assert not one.request.many
    (row,) = one.request.rows
    assert [each.operand is None for each in row] == [False, True]
    many = parse_create([], {"values": [{"a": 1}, {}]}, LIMITS)
    assert many.request.many
    assert [len(row) for row in many.request.rows] == [1, 0]


@pytest.mark.parametrize("values", [None, 5, "a", [5], [None], {5: 1}, [[1]]])
def test_create_of_no_row_is_refused(values):
    with pytest.raises(InvalidArgument):
        parse_create([values], {}, LIMITS)


def test_write_for_every_row_needs_all():
    """A write needs a key or a filter, or `all`."""
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
def test_update_with_unclear_target_is_refused(kwargs):
    """Also with unclear changes."""
    with pytest.raises(InvalidArgument):
        parse_update([], kwargs, LIMITS)


@pytest.mark.parametrize(
    ("parse", "kwargs", "path"),
    [
        (parse_delete, {"where": {"id": 1}, "all": 1}, "all"),
        (parse_update, {"where": {"id": 1}, "changes": {"a": 1}, "all": "yes"}, "all"),
        (parse_upsert, {"values": {"id": 1}, "on_conflict": ""}, "on_conflict"),
        (parse_upsert, {"values": {"id": 1}, "on_conflict": "\0"}, "on_conflict"),
    ],
)
def test_write_with_a_malformed_target_is_refused_with_its_path(parse, kwargs, path):
    """Also if the target would not be used."""
    with pytest.raises(InvalidArgument) as caught:
        parse((), kwargs, Limits())
    assert caught.value.details["path"] == path


def test_rows_of_one_shape_are_parsed_once() -> None:
    """Only rows without related rows; the cached assignments refer to the values of each call."""
    first = parse_create([{"a": 1, "b": "x"}], {}, LIMITS)
    again = parse_create([], {"values": {"a": None, "b": b"y"}}, LIMITS)
    assert first.request.rows[0] is again.request.rows[0]
    assert (first.values, again.values) == ((1, "x"), (None, b"y"))
    marked = parse_create([{"a": {"$value": 1}, "b": "x"}], {}, LIMITS)
    assert [each.column for each in marked.request.rows[0]] == ["a", "b"]
    turned = parse_create([{"b": "x", "a": 1}], {}, LIMITS)
    assert [each.column for each in turned.request.rows[0]] == ["b", "a"]
    listed = parse_create([[{"a": 1}, {"a": 2}]], {}, LIMITS)
    assert [row[0].path for row in listed.request.rows] == ["values.0.a", "values.1.a"]


def test_changes_of_one_shape_are_parsed_once_but_for_paths() -> None:
    """The numbers of their values depend on the key before them."""
    first = parse_update([7, {"a": 1}], {}, LIMITS)
    again = parse_update([], {"key": "8", "changes": {"a": 2}}, LIMITS)
    assert first.request.changes is again.request.changes
    assert again.values == ("8", 2)
    behind = parse_update([[7, 8], {"a": 3}], {}, LIMITS)
    (change,) = behind.request.changes
    assert change.operand is not None
    assert behind.values[change.operand.slot] == 3
    (path,) = parse_update([7, {"a->b": 1}], {}, LIMITS).request.changes
    assert path.column == "a"
    assert path.steps
    for changes in ({"a": 1, '"a"': 2}, {"a": 1, "a->b": 2}):
        with pytest.raises(InvalidArgument, match="lies in what is set beside it"):
            parse_update([7, changes], {}, LIMITS)


def test_long_names_are_not_kept() -> None:
    """Callers choose names, and a thousand rows are cached."""
    long = {"a" * 5000: 1}
    first, again = (parse_create([long], {}, LIMITS) for _ in range(2))
    assert first.request == again.request
    assert first.request.rows[0] is not again.request.rows[0]
