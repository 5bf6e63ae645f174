"""The filter grammar."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.filters import FilterParser
from service.request.requests import EVERYTHING, Comparison, Connective, Negation, Operand


def parsed(where):
    """Parse a filter; gives it with the values."""
    values = Values()
    return FilterParser(values, 4).parse(where), values.freeze()


def test_filter_without_conditions_holds_for_every_row():
    """No filter, and an empty one, hold for every row."""
    assert parsed(None) == (EVERYTHING, ())
    assert parsed({}) == (EVERYTHING, ())


def test_filters_of_other_values_are_equal():
    """Filters that differ in their values alone are equal requests."""
    assert parsed({"id": 1, "a": [1]})[0] == parsed({"id": "x", "a": [2, 3]})[0]
    assert parsed({"id": 1})[1] == (1,)


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
    """A condition is a scalar, a list, or an operator with its operand."""
    found, values = parsed({"x": condition})
    assert isinstance(found, Comparison)
    assert (found.operator, found.word) == (operator, word)
    assert (values[found.operand.slot] if found.operand else None) == value


def test_and_or_not_are_nested():
    """And, or and not nest; several terms of one dict all hold."""
    found, _ = parsed({"or": [{"a": 1}, {"not": {"b": 2}}], "c": {"gt": 1, "lt": 9}})
    either, both = found.terms
    assert either.any
    assert isinstance(either.terms[1], Negation)
    assert [term.operator for term in both.terms] == ["gt", "lt"]
    assert parsed({"or": []})[0] == Connective(True, ())


def test_between_is_two_comparisons():
    """The bounds are inclusive, and a refusal names the one at fault."""
    found, values = parsed({"x": {"between": [1, 9]}})
    assert [(term.operator, term.operand) for term in found.terms] == [
        ("gte", Operand(0, "where.x.between.0")),
        ("lte", Operand(1, "where.x.between.1")),
    ]
    assert values == (1, 9)


def test_comparison_with_any_or_all_takes_candidates():
    """A comparison takes a list of candidates."""
    found, values = parsed({"x": {"like": {"any": ["a%", "b%"]}}})
    assert (found.operator, found.quantifier, values) == ("like", "any", (["a%", "b%"],))


def test_search_takes_a_string_and_a_configuration():
    """A search takes a string, or one with its configuration."""
    found, values = parsed({"x": {"wfts": {"query": "cat", "config": "english"}}})
    assert values[found.config.slot] == "english"
    assert found.operand.path == "where.x.wfts.query"


@pytest.mark.parametrize(
    ("operand", "element"),
    [("[1,5)", False), ("empty", False), (3, True), ("2026-01-01", True), ("{[1,2)}", False)],
)
def test_range_contains_ranges_and_elements(operand, element):
    """The operand says which of both is meant."""
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
    """What does not follow the grammar is refused, with the place at fault."""
    with pytest.raises(InvalidArgument) as refused:
        parsed(where)
    assert refused.value.details["path"] == path


def test_filter_nested_too_deep_is_refused():
    """A filter nested deeper than allowed is refused, however it is nested."""
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
    """A misspelled operator gets the nearest one."""
    with pytest.raises(InvalidArgument) as refused:
        parsed({"x->y": {"ilik": "a"}})
    assert refused.value.details["hint"] == 'did you mean "ilike"?'


def test_filter_of_too_many_conditions_is_refused():
    """A thousand conditions are enough for anybody."""
    with pytest.raises(InvalidArgument):
        parsed({f"c{at}": at for at in range(1001)})
