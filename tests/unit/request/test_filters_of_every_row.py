"""Which filters hold for every row by their form alone, whatever the table contains."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.filters import MAX_VARIABLES, FilterParser, holds_always
from service.request.read_request import Limits
from service.request.write_request import parse_delete, parse_update
from tests.amounts import amount


def judged(where):
    """Parse a filter, and return whether it always holds."""
    values = Values()
    return holds_always(FilterParser(values, 60).parse(where), values.freeze())


EVERY = [
    {},
    {"and": []},
    {"and": [{}, {"and": []}]},
    {"or": [{}, {"x": 1}]},
    {"and": [{"or": [{"x": 1}, {}]}]},
    {"not": {"or": []}},
    {"not": {"not": {}}},
    {"id": {"not": {"in": []}}},
    {"id": {"not": []}},
    {"id": {"not": {"eq": {"any": []}}}},
    {"id": {"eq": {"all": []}}},
    {"id": {"neq": {"all": []}}},
    {"name": {"like": {"all": []}}},
    {"not": {"b.x": []}},
    {"not": {"b": {"x": [], "y": 1}}},
    {"not": {"b": {"c": {"not": {}}}}},
    {"b": {"not": {"in": []}}},
    {"or": [{"x": None}, {"x": {"is": "not null"}}]},
    {"or": [{"x": None}, {"not": {"x": None}}]},
    {"or": [{"x": 1}, {"x": {"neq": 1}}, {"x": None}]},
    {"or": [{"x": {"gt": 1}}, {"x": {"lte": 1}}, {"x": None}]},
    {"or": [{"x": [1, 2, None]}, {"x": {"not": {"in": [1, 2]}}}]},
    {"or": [{"x": {"isdistinct": 1}}, {"x": 1}]},
    {"or": [{"x": {"is": True}}, {"x": {"is": False}}, {"x": {"is": "unknown"}}]},
    {"or": [{"x": {"neq": {"all": [1, 2]}}}, {"x": [1, 2]}, {"x": None}]},
    {"or": [{"b": {"x": 1}}, {"not": {"b.x": 1}}]},
    {"or": [{"b": None}, {"b": {"is": "not null"}}]},
    {"or": [{"x": {"eq": {"$column": "x"}}}, {"x": None}]},
    {"or": [{"x": {"gte": {"$column": "x"}}}, {"x": None}]},
    {"or": [{"x->a": {"lte": {"$column": "x->a"}}}, {"x->a": None}]},
    {"not": {"x": {"isdistinct": {"$column": "x"}}}},
    {
        "or": [
            {"x": {"gt": {"$column": "y"}}},
            {"x": {"lte": {"$column": "y"}}},
            {"x": None},
            {"y": None},
        ]
    },
    {"or": [{"x::int": 1}, {"x::int": {"neq": 1}}, {"x::int": None}]},
]
SOME = [
    {"or": [{"x": {"eq": {"$column": "y"}}}, {"x": None}]},
    {"or": [{"x": {"gt": {"$column": "x"}}}, {"x": None}]},
    {"or": [{"x": {"neq": {"$column": "x"}}}, {"x": None}]},
    {"or": [{"x->a": {"eq": {"$column": "x->b"}}}, {"x->a": None}]},
    {"or": [{"x::int": {"eq": {"$column": "x"}}}, {"x": None}]},
    {"or": [{"x::int": 1}, {"x": {"neq": 1}}, {"x": None}]},
    {"x": {"isdistinct": {"$column": "x"}}},
    {"not": {"x": {"isdistinct": {"$column": "y"}}}},
    {"x": 1},
    {"x": None},
    {"x": []},
    {"x": {"not": [None]}},
    {"or": []},
    {"b": {}},
    {"b": {"not": {"x": []}}},
    {"or": [{"x": 1}, {"x": {"neq": 1}}]},
    {"or": [{"x": 1}, {"not": {"x": 1}}]},
    {"or": [{"x": 1}, {"x": {"neq": True}}, {"x": None}]},
    {"or": [{"x": None}, {"y": {"is": "not null"}}]},
    {"or": [{"x->a": None}, {"x->b": {"is": "not null"}}]},
    {"or": [{"b": {"x": 1}}, {"b": {"not": {"x": 1}}}]},
    {"or": [{"x": {"is": True}}, {"x": {"is": False}}]},
    {"or": [{"x": [1, {"a": [True]}]}, {"x": {"not": [1, {"a": [1]}]}}, {"x": None}]},
    {"or": [{"x": {"gt": {"all": [1]}}}, {"x": {"lte": {"all": [1, 2]}}}, {"x": None}]},
    {"name": {"like": "%"}},
    # more columns than are examined
    {"or": [{f"c{at}": at} for at in range(MAX_VARIABLES)] + [{"z": None}, {"not": {"z": None}}]},
]


@pytest.mark.parametrize("where", EVERY)
def test_filter_true_of_every_row_is_recognized(where):
    """Such a filter of a write needs `all`, like no filter."""
    assert judged(where)
    for parse, changes in ((parse_update, {"changes": {}}), (parse_delete, {})):
        with pytest.raises(InvalidArgument) as refused:
            parse([], {"where": where, **changes}, Limits())
        assert refused.value.details["path"] == "where"
        assert parse([], {"where": where, "all": True, **changes}, Limits())


@pytest.mark.parametrize("where", SOME)
def test_filter_that_some_row_may_not_match_is_accepted(where):
    """For example one that holds for all values but null."""
    assert not judged(where)
    assert parse_delete([], {"where": where}, Limits())


CONDITIONS = {
    "null": (None, lambda x: x is None),
    "not null": ({"is": "not null"}, lambda x: x is not None),
    "eq": (1, lambda x: None if x is None else x == 1),
    "neq": ({"neq": 1}, lambda x: None if x is None else x != 1),
    "isdistinct": ({"isdistinct": 1}, lambda x: x != 1),
    "in": ([1, None], lambda x: x in {1, None}),
    "not in": ({"not": {"in": [1]}}, lambda x: None if x is None else x != 1),
    "empty": ([], lambda _: False),
    "all": ({"gt": {"all": []}}, lambda _: True),
}
TREES = st.recursive(
    st.sampled_from([(c, name) for c in "xyz" for name in CONDITIONS]),
    lambda inner: st.tuples(st.sampled_from(["and", "or", "not"]), st.lists(inner, max_size=3)),
    max_leaves=8,
)


def written(tree):
    """Return a tree as a filter."""
    if isinstance(tree[1], str):
        return {tree[0]: CONDITIONS[tree[1]][0]}
    word, terms = tree
    return (
        {"not": {"or": [*map(written, terms)]}} if word == "not" else {word: [*map(written, terms)]}
    )


def truth(tree, row):
    """Evaluate a tree for one row, as SQL does."""
    if isinstance(tree[1], str):
        return CONDITIONS[tree[1]][1](row[tree[0]])
    word, terms = tree
    said = [truth(term, row) for term in terms]
    decisive = word != "and"
    found = decisive if decisive in said else None if None in said else not decisive
    return found if word != "not" or found is None else not found


@settings(max_examples=amount(60, 600), deadline=None)
@given(tree=TREES)
def test_filter_always_holds_if_it_holds_for_each_possible_row(tree):
    """These conditions distinguish only three values of a column."""
    rows = [
        {"x": x, "y": y, "z": z} for x in (None, 1, 2) for y in (None, 1, 2) for z in (None, 1, 2)
    ]
    assert judged(written(tree)) is all(truth(tree, row) is True for row in rows)
