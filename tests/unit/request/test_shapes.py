"""Shapes of rows: equal for rows that differ only in their values."""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.request.row_values import NoShape, RowsShape, fill_placeholders, with_placeholders

ROWS: list[Any] = [
    {"a": 1, "b": "x"},
    {"a": None, "b": [1, 2.5], "c": {}},
    [{"a": True, "lines": [{"b": 1}, {"b": {"$link": 3}}, {"b": {"$link": {"k": "x"}}}]}, {}],
    {"a": {"$default": True}, "b": {"$value": {"x": [None, "y"]}}, "c": b"\0"},
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_values_of_a_shape_have_the_positions_of_their_marks(rows: Any) -> None:
    shaped = RowsShape(rows, (), 100)
    assert fill_placeholders(with_placeholders(shaped.shape, count()), shaped.values) == rows


def test_shape_is_that_of_other_values() -> None:
    one = [{"a": 1, "lines": [{"b": "x"}, {"$link": 2}]}]
    other = [{"a": "2", "lines": [{"b": 1.5}, {"$link": "k"}]}]
    assert RowsShape(one, (), 9).shape == RowsShape(other, (), 9).shape
    assert hash(RowsShape(one, (), 9).shape) == hash(RowsShape(other, (), 9).shape)


@pytest.mark.parametrize(
    "other",
    [
        {"a": 1},
        {"b": 1, "a": 2},
        {"a": None, "b": 1},
        {"a": [], "b": 1},
        {"a": [0], "b": 1},
        {"a": {}, "b": 1},
        {"a": {"$default": True}, "b": 1},
        {"a": {"$link": 1}, "b": 1},
        [{"a": 1, "b": 2}],
    ],
    ids=str,
)
def test_rows_with_other_keys_lists_or_nulls_have_another_shape(other: Any) -> None:
    assert RowsShape(other, (), 9).shape != RowsShape({"a": 1, "b": 2}, (), 9).shape


@pytest.mark.parametrize(
    "rows",
    [
        {"a": {"$number": "1"}},
        {"a": {"$default": 1}},
        {"a": {"$add": 1}},
        {1: 2},
        {"a": OrderedDict(b=1)},
        [{}, {}, {}, {}],
        {"a": [0, 0, 0]},
        {"a": [None, [None], {}]},
        {"a": {"$value": [0, 0]}},
        {"a": {"$value": {"$number": "1"}}},
        {"doc": {"$value": {"$number": "1"}}},
        {"doc": {"$value": {"$value": {"$number": "1"}}}},
        {"doc": {"$value": OrderedDict(), "a": OrderedDict()}},
    ],
    ids=str,
)
def test_rows_whose_values_change_the_statement_have_no_shape(rows: Any) -> None:
    with pytest.raises(NoShape):
        RowsShape(rows, {"doc"}, 3)


def test_operator_value_around_a_document_is_one_value() -> None:
    """Whatever the size of the document."""
    inside = (
        [0] * 100_000,
        {"$add": 1},
        {"a": {"$number": "1"}},
        {"$link": {"b": [None]}},
        "x",
        True,
    )
    for each in inside:
        shaped = RowsShape({"doc": {"$value": each}, "lines": [{}]}, {"doc"}, 3)
        assert shaped.shape == RowsShape({"doc": {"$value": 1}, "lines": [{}]}, {"doc"}, 3).shape
        assert shaped.values == [each]
    null = RowsShape({"doc": {"$value": None}}, {"doc"}, 2)
    assert null.shape != RowsShape({"doc": {"$value": 1}}, {"doc"}, 2).shape
    assert fill_placeholders(with_placeholders(null.shape, count()), null.values) == {
        "doc": {"$value": None}
    }


def test_lists_far_too_deep_have_no_shape() -> None:
    rows: Any = []
    for _ in range(20_000):
        rows = [rows]
    with pytest.raises(NoShape):
        RowsShape({"a": rows}, (), 100)


NESTED = st.recursive(
    st.sampled_from([None, 0, 1, "x", "", True, 2.5, b"", (), {"$default": True}]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b", "doc", "list", "", "$link", "$value"]), inner, max_size=3
        )
    ),
    max_leaves=9,
)


@given(NESTED)
def test_rows_are_their_shape_and_their_values(rows: Any) -> None:
    """Rows with the same shape and values are equal."""
    shaped = RowsShape(rows, {"doc", "list"}, 1000)
    found = fill_placeholders(with_placeholders(shaped.shape, count()), shaped.values)
    assert json.dumps(found, default=str) == json.dumps(rows, default=str)


def test_documents_are_values_whatever_is_inside() -> None:
    rows = [{"doc": {"a": [1]}, "b": 1}, {"doc": [2], "b": [{"doc": "x"}]}]
    other = [{"doc": 1, "b": 1}, {"doc": {}, "b": [{"doc": {"b": None}}]}]
    shaped = RowsShape(rows, {"doc"}, 9)
    assert shaped.shape == RowsShape(other, {"doc"}, 9).shape
    assert fill_placeholders(with_placeholders(shaped.shape, count()), shaped.values) == rows
    assert RowsShape({"doc": None}, {"doc"}, 9).shape != RowsShape({"doc": 1}, {"doc"}, 9).shape
    with pytest.raises(NoShape):
        RowsShape({"doc": {"$add": 1, "a": 2}}, {"doc"}, 9)
