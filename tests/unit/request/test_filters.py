"""The filter grammar."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import InvalidArgument, ServiceError
from service.request import filters
from service.request.arguments import Referenced, Values
from service.request.filters import OPERATORS, FilterParser
from service.request.requests import EVERYTHING, Comparison, Connective, Negation, Operand
from tests.amounts import amount


def parsed(where):
    """Parse a filter; return it with its values."""
    values = Values()
    return FilterParser(values, 4).parse(where), values.freeze()


def test_filter_without_conditions_holds_for_every_row():
    """No filter, and an empty one."""
    assert parsed(None) == (EVERYTHING, ())
    assert parsed({}) == (EVERYTHING, ())


def test_filters_of_other_values_are_equal():
    """Filters that differ only in their values are equal requests."""
    assert parsed({"id": 1, "a": [1]})[0] == parsed({"id": "x", "a": [2, 3]})[0]
    assert parsed({"id": 1})[1] == (1,)


SHAPES = [
    ({"a": 1}, {"a": "x"}),
    ({"a": {"gt": 1, "lte": 2}, "b": True}, {"a": {"gt": 3, "lte": "4"}, "b": 0.5}),
    ({"and": [{"a": 1}, {"or": [{"b": 2}, {"not": {"c": 3}}]}]},) * 2,
    ({"a": {"not": {"length": {"gt": 1}}}}, {"a": {"not": {"length": {"gt": 2}}}}),
    ({"driver": {"name": "a", "and": [{"b": 1}]}},) * 2,
    ({"driver.name": {"like": "a"}}, {"driver.name": {"like": "%"}}),
    ({"doc->a": 1, "b": 2}, {"doc->a": 3, "b": 4}),
    ({"a": {"is": "null"}}, {"a": {"is": "true"}}),
    ({"a": {"starts": "a"}}, {"a": {"starts": "%"}}),
    ({"a": {"cs": "[1,2]"}}, {"a": {"cs": "1"}}),
    ({"a": {"eq": {"$column": "b"}}}, {"a": {"eq": {"$column": "c"}}}),
    ({"a": {"eq": {"any": [1]}}}, {"a": {"eq": {"any": [None]}}}),
    ({"a": 1}, {"a": None}),
    ({"a": [1]}, {"a": [None]}),
    ({"a": {"fts": {"query": "x"}}}, {"a": {"fts": {"query": "y"}}}),
    ({"a": {"$args": {"b": 1}, "gt": 1}}, {"a": {"$args": {"b": 2}, "gt": 3}}),
    ({"doc": {"eq": {"x": 5}}},) * 2,
    ({"doc": {"eq": {"x": 5}}}, {"doc": {"eq": {"x": 6}}}),
    ({"a": {"isdistinct": {"x": 5}}},) * 2,
    ({"a": {"not": {"lte": {"x": {"y": 5}}}}},) * 2,
    ({"doc": {"eq": {"$number": "5"}}}, {"doc": {"eq": {"$number": "6"}}}),
    ({"doc->k": {"eq": {"a": 1, "b": 2}}},) * 2,
    ({"doc->5": {"eq": {"a": 5, "b": 5}}}, {"doc->5": {"eq": {"a": 6, "b": 7}}}),
    ({"a": {"like": {"x": "y"}}},) * 2,
    ({"rel": {"doc": {"neq": {"x": 5}}, "b": 1}}, {"rel": {"doc": {"neq": {"x": 6}}, "b": 2}}),
    ({"a": {"between": Referenced([1, 2])}}, {"a": {"between": Referenced([3, 4])}}),
]
"""Filters, each with another one that may be of its shape."""


@pytest.mark.parametrize(("first", "second"), SHAPES)
def test_filter_after_one_of_its_shape_is_parsed_as_if_it_were_the_first(first, second):
    """The cache by shape changes neither later filters nor their values."""
    parsed(first)
    values = Values()
    alone = FilterParser(values, 100 + SHAPES.index((first, second))).parse(second)
    assert parsed(second) == (alone, values.freeze())


LEAVES = [
    1, 2, 5, True, False, 0.5, "x", "y", "1", None, b"x", [], [1], [None, 1], [{"x": 5}], {}, {"x": 5},
    {"x": 5, "y": "x"}, {"x": {"y": 1}}, {"$number": "5"}, {"$column": "c"}, {"$ref": "0"},
    {"any": [1, 2]}, {"all": 5}, {"query": "x"}, Referenced([1, 2]), Referenced({"x": 5}), Referenced({"x": 5, "y": 6}),
]  # fmt: skip
NAMES = ["a", "doc->k", "doc->5", "doc->>k::int", "rel", "rel.a", "eq", "$args", "$column", 5]
FILTERS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.dictionaries(
        st.sampled_from([*NAMES, *sorted(OPERATORS), "and", "or", "not", "not", "eq", "a"]),
        inner | st.lists(inner, max_size=2),
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)
"""Filters, most of which are none that the grammar has."""


def varied(where, leaf):
    """Return a filter with other values."""
    if type(where) is dict and where:
        return {key: varied(each, leaf) for key, each in where.items()}
    if type(where) is list and where:
        return [varied(each, leaf) for each in where]
    return leaf(where)


def outcome(where):
    """Parse a filter; return the filter and its values, or the error, as one value."""
    try:
        found, values = parsed(where)
    except ServiceError as error:
        return type(error), str(error), error.details
    return found, repr(values)


@settings(max_examples=amount(150, 1500), deadline=None, suppress_health_check=list(HealthCheck))
@given(FILTERS, st.randoms(use_true_random=False), st.booleans())
def test_filter_is_parsed_the_same_with_and_without_cached_shape(where, chance, scalars):
    """The cached shape may be its own, or that of another filter."""
    first = {"a": where, "b": 1}
    plain = LEAVES[:9] if scalars else LEAVES
    second = varied(first, lambda leaf: chance.choice([leaf, *plain, *plain]))
    for before, then in ((first, first), (first, second)):
        filters._shapes.clear()
        anew = outcome(then)
        filters._shapes.clear()
        outcome(before)
        assert outcome(then) == anew, (before, then)


def test_values_that_a_kept_filter_takes_are_those_that_were_added(monkeypatch):
    """A malformed filter is not cached, even if it has as many values."""
    monkeypatch.setattr(filters, "AROUND_VALUES", frozenset())
    parsed({"doc": {"eq": {"x": 7}}})
    assert parsed({"doc": {"eq": {"x": 8}}})[1] == ({"x": 8},)


def test_filter_nested_far_too_deep_is_refused():
    """It is refused without a walk to its end."""
    where = {"a": 1}
    for _ in range(20_000):
        where = {"not": where}
    with pytest.raises(InvalidArgument, match="nested"):
        parsed(where)


@pytest.mark.parametrize(
    ("kept", "refused", "path"),
    [
        ({"a": {}}, {("a", ()): 1}, "where.('a', ())"),
        ({"and": [{"a": 1, "b": {"c": 2, "d": {"e": 3}}}]}, {"and": {"a": 1}}, "where.and"),
        ({"a": {"gt": 1}}, {"a": {"gt": None}}, "where.a.gt"),
        ({"a": {"starts": "x"}}, {"a": {"starts": 1}}, "where.a.starts"),
        ({"1": 1}, {1: 1}, "where.1"),
    ],
)
def test_filter_that_looks_like_one_before_is_refused(kept, refused, path):
    """A malformed filter is not mistaken for a cached one."""
    parsed(kept)
    with pytest.raises(InvalidArgument) as caught:
        parsed(refused)
    assert caught.value.details["path"] == path


def test_conditions_of_kept_filters_count_towards_the_most():
    """One parser counts the conditions of all its filters, cached or not."""
    where = {"and": [{"a": {"gt": at}} for at in range(60)]}
    parsed(where)
    parser = FilterParser(Values(), 4)
    for _ in range(8):  # of 121 conditions each, including the "and"
        parser.parse(where)
    with pytest.raises(InvalidArgument, match="at most 1000 conditions"):
        parser.parse(where)


@pytest.mark.parametrize(
    ("condition", "operator", "word", "value"),
    [
        (5, "eq", "", 5),
        (None, "is", "null", None),
        ([1, 2], "in", "", [1, 2]),
        ([], "in", "", []),
        ({"gt": 5}, "gt", "", 5),
        ({"eq": None}, "is", "null", None),
        ({"neq": None}, "is", "not null", None),
        ({"is": None}, "is", "null", None),
        ({"is": "unknown"}, "is", "unknown", None),
        ({"is": "NOT NULL"}, "is", "not null", None),
        ({"is": "not_null"}, "is", "not null", None),
        ({"is": "True"}, "is", "true", None),
        ({"is": True}, "is", "true", None),
        ({"isdistinct": None}, "isdistinct", "", None),
        ({"cs": ["a"]}, "cs", "", ["a"]),
    ],
)
def test_condition_of_any_form_is_a_comparison(condition, operator, word, value):
    """A scalar, a list, or an operator with its operand."""
    found, values = parsed({"x": condition})
    assert isinstance(found, Comparison)
    assert (found.operator, found.word) == (operator, word)
    assert (values[found.operand.slot] if found.operand else None) == value


def test_and_or_not_are_nested():
    """Several terms of one dict must all hold."""
    found, _ = parsed({"or": [{"a": 1}, {"not": {"b": 2}}], "c": {"gt": 1, "lt": 9}})
    either, both = found.terms
    assert either.any
    assert isinstance(either.terms[1], Negation)
    assert [term.operator for term in both.terms] == ["gt", "lt"]
    assert parsed({"or": []})[0] == Connective(True, ())


def test_between_is_two_comparisons():
    """Bounds are inclusive; an error names the wrong one."""
    found, values = parsed({"x": {"between": [1, 9]}})
    assert [(term.operator, term.operand) for term in found.terms] == [
        ("gte", Operand(0, "where.x.between.0")),
        ("lte", Operand(1, "where.x.between.1")),
    ]
    assert values == (1, 9)


def test_comparison_with_any_or_all_takes_candidates():
    """The operand is a list."""
    found, values = parsed({"x": {"like": {"any": ["a%", "b%"]}}})
    assert (found.operator, found.quantifier, values) == ("like", "any", (["a%", "b%"],))


def test_search_takes_a_string_and_a_configuration():
    """The configuration is optional."""
    found, values = parsed({"x": {"wfts": {"query": "cat", "config": "english"}}})
    assert values[found.config.slot] == "english"
    assert found.operand.path == "where.x.wfts.query"


@pytest.mark.parametrize(
    ("operand", "element"),
    [("[1,5)", False), ("empty", False), (3, True), ("2026-01-01", True), ("{[1,2)}", False)],
)
def test_range_contains_ranges_and_elements(operand, element):
    """The type of the operand decides which."""
    assert parsed({"x": {"cs": operand}})[0].element is element


@pytest.mark.parametrize(
    ("where", "path"),
    [
        (5, "where"),
        ([], "where"),
        ({1: 2}, "where.1"),
        ({"x->y": {}}, "where.x->y"),
        ({"x->y": {"nope": 1}}, "where.x->y.nope"),
        ({"x": {5: 1}}, "where.x.5"),
        ({"x": {"gt": {"any": [1, None]}}}, "where.x.gt.any.1"),
        ({"x": {"has_any": ["a", None]}}, "where.x.has_any.1"),
        ({"x": {"is": "maybe"}}, "where.x.is"),
        ({"x": {"is": []}}, "where.x.is"),
        ({"x": {"is": 1}}, "where.x.is"),
        ({"x": {"is": 0.0}}, "where.x.is"),
        ({"x": {"in": 5}}, "where.x.in"),
        ({"x": {"gt": None}}, "where.x.gt"),
        ({"x": {"between": [1]}}, "where.x.between"),
        ({"x": {"between": [1, None]}}, "where.x.between"),
        ({"x": {"between": Referenced({"a": 1, "b": 2})}}, "where.x.between"),
        ({"x": {"in": Referenced({"a": 1})}}, "where.x.in"),
        ({"x": {"eq": {"any": Referenced({"a": 1})}}}, "where.x.eq.any"),
        ({"x": {"fts": 5}}, "where.x.fts"),
        ({"x": {"fts": {"config": "english"}}}, "where.x.fts.query"),
        ({"x": {"fts": {"q": "a"}}}, "where.x.fts"),
        ({"x": {"eq": {"any": 5}}}, "where.x.eq.any"),
        ({"x": {"has_any": "a"}}, "where.x.has_any"),
        ({"and": {}}, "where.and"),
        ({"or": [5]}, "where.or.0"),
        ({"not": 5}, "where.not"),
        ({"": 5}, "where."),
    ],
)
def test_malformed_filter_is_refused_with_its_path(where, path):
    with pytest.raises(InvalidArgument) as refused:
        parsed(where)
    assert refused.value.details["path"] == path


def test_filter_nested_too_deep_is_refused():
    """Whatever it is nested in."""
    for inner in ({"a": 1}, {}, {"a": {"not": {"gt": 1}}}):
        where = inner
        for _ in range(6):
            where = {"or": [where]}
        with pytest.raises(InvalidArgument, match="nested"):
            parsed(where)
    condition = 1
    for _ in range(6):
        condition = {"not": condition}
    with pytest.raises(InvalidArgument, match="nested"):
        parsed({"a": condition})


def test_misspelled_operator_is_refused_with_the_nearest():
    with pytest.raises(InvalidArgument) as refused:
        parsed({"x->y": {"ilik": "a"}})
    assert refused.value.details["hint"] == 'did you mean "ilike"?'


def test_filter_of_too_many_conditions_is_refused():
    """A filter has at most a thousand conditions."""
    with pytest.raises(InvalidArgument):
        parsed({f"c{at}": at for at in range(1001)})
