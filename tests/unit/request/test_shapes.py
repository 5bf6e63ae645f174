"""
Shapes of rows: equal where rows differ in their values alone.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Any

import pytest

from service.request.shapes import Shaped, Unshaped, filled, marked

ROWS: list[Any] = [
    {"a": 1, "b": "x"},
    {"a": None, "b": [1, 2.5], "c": {}},
    [{"a": True, "lines": [{"b": 1}, {"b": {"$link": 3}}, {"b": {"$link": {"k": "x"}}}]}, {}],
    {"a": {"$default": True}, "b": {"$value": {"x": [None, "y"]}}, "c": b"\0"},
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_values_stand_where_their_numbers_are_marked(rows: Any) -> None:
    assert filled(marked(rows, (), count()), Shaped(rows, (), 100).values) == rows


def test_shape_is_that_of_other_values() -> None:
    one = [{"a": 1, "lines": [{"b": "x"}, {"$link": 2}]}]
    other = [{"a": "2", "lines": [{"b": 1.5}, {"$link": "k"}]}]
    assert Shaped(one, (), 9).shape == Shaped(other, (), 9).shape
    assert hash(Shaped(one, (), 9).shape) == hash(Shaped(other, (), 9).shape)


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
    assert Shaped(other, (), 9).shape != Shaped({"a": 1, "b": 2}, (), 9).shape


@pytest.mark.parametrize(
    "rows",
    [
        {"a": {"$number": "1"}},
        {"a": {"$default": 1}},
        {"a": {"$add": 1}},
        {1: 2},
        {"a": OrderedDict(b=1)},
        [{}, {}, {}, {}],
    ],
    ids=str,
)
def test_rows_that_mean_more_than_their_shape_have_none(rows: Any) -> None:
    with pytest.raises(Unshaped):
        Shaped(rows, (), 3)


def test_documents_are_values_whatever_is_inside() -> None:
    rows = [{"doc": {"a": [1]}, "b": 1}, {"doc": [2], "b": [{"doc": "x"}]}]
    other = [{"doc": 1, "b": 1}, {"doc": {}, "b": [{"doc": {"b": None}}]}]
    shaped = Shaped(rows, {"doc"}, 9)
    assert shaped.shape == Shaped(other, {"doc"}, 9).shape
    assert filled(marked(rows, {"doc"}, count()), shaped.values) == rows
    assert Shaped({"doc": None}, {"doc"}, 9).shape != Shaped({"doc": 1}, {"doc"}, 9).shape
    with pytest.raises(Unshaped):
        Shaped({"doc": {"$add": 1, "a": 2}}, {"doc"}, 9)
