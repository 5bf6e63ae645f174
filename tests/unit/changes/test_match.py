"""The index of terms: which queries it finds for a changed row, and that removed queries are gone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from service.changes.match import FORMS, Between, Index, OneOf, Term, ValueForm
from tests.amounts import amount

INT, TEXT, TIME = FORMS["int4"], FORMS["text"], FORMS["timestamptz"]


def one_of(column: str, *values: Any, form: ValueForm = INT) -> OneOf:
    return OneOf(column, form, frozenset(values))


def found(index: Index[str], **image: Any) -> set[str]:
    return index.matching(1, None, image)


def test_query_is_found_by_the_row_before_and_by_the_row_after() -> None:
    index: Index[str] = Index()
    index.add("one", 1, [one_of("a", 1)])
    index.add("two", 1, [one_of("a", 2)])
    index.add("any", 1, [])
    index.add("other", 2, [one_of("a", 1)])
    assert index.matching(1, {"a": 1}, {"a": 2}) == {"one", "two", "any"}
    assert index.matching(1, None, {"a": 3}) == {"any"}
    assert index.matching(2, {"a": 1}, None) == {"other"}
    assert index.matching(3, {"a": 1}, {"a": 1}) == set()


def test_null_matches_only_conditions_on_null() -> None:
    index: Index[str] = Index()
    index.add("null", 1, [one_of("a", None)])
    index.add("null or 1", 1, [one_of("a", None, 1)])
    index.add("none", 1, [one_of("a")])
    index.add("range", 1, [Between("a", INT, low=0)])
    assert found(index, a=None) == {"null", "null or 1"}
    assert found(index, a=1) == {"null or 1", "range"}


def test_query_without_values_is_added_and_removed() -> None:
    index: Index[str] = Index()
    for name in ("one", "two"):
        index.add(name, 1, [one_of("a")])
    assert found(index, a=1) == set()
    for name in ("one", "two"):
        index.remove(name, 1, [one_of("a")])
    assert vars(index) == {"_relations": {}}


@pytest.mark.parametrize(
    ("low", "high", "low_in", "high_in", "values"),
    [
        (1, 3, True, True, {1, 2, 3}),
        (1, 3, False, False, {2}),
        (1, None, False, True, {2, 3, 4}),
        (None, 1, True, False, {0}),
        (3, 1, True, True, set()),
        (2, 2, True, True, {2}),
        (2, 2, True, False, set()),
    ],
)
def test_range_contains_exactly_its_values(
    low: int | None, high: int | None, low_in: bool, high_in: bool, values: set[int]
) -> None:
    index: Index[str] = Index()
    index.add("x", 1, [Between("a", INT, low, high, low_in, high_in)])
    assert {value for value in range(5) if found(index, a=value)} == values


def test_value_that_cannot_be_read_concerns_every_query() -> None:
    index: Index[str] = Index()
    index.add("day", 1, [one_of("d", 1, form=FORMS["date"])])
    index.add("range", 1, [Between("d", FORMS["date"], 1, 5)])
    index.add("both", 1, [one_of("a", 1), one_of("d", 1, form=FORMS["date"])])
    assert found(index, d="0044-03-15 BC", a=1) == {"day", "range", "both"}
    assert found(index, d="infinity", a=2) == {"day", "range"}
    # a column that was added after the row was logged
    assert found(index, a=2) == {"day", "range"}


def test_numbers_are_equal_however_they_are_written() -> None:
    numeric = FORMS["numeric"]
    assert numeric.read("1.50") == numeric.of(numeric.read("1.5"))
    assert numeric.read("2.0") == numeric.of(2)
    assert hash(numeric.read("2.0")) == hash(numeric.of(2))
    assert TIME.read("2026-01-01T01:00:00+01:00") == TIME.read("2026-01-01T00:00:00.000Z")
    assert TIME.read("2026-01-01T00:00:00.5Z") == TIME.read("2026-01-01 00:00:00.500000+00:00")
    uuid = FORMS["uuid"].read
    assert uuid("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11") < uuid("{a0eebc999c0b4ef8bb6d6bb9bd380a12}")


def test_index_finds_the_queries_whose_terms_hold() -> None:
    """Random queries are added and removed; those found are those whose terms hold."""
    dice = random.Random(4)
    index: Index[int] = Index()
    asked: dict[int, list[Term]] = {}
    matched = 0
    for number in range(amount(300, 3000)):
        if asked and dice.random() < 0.45:
            gone = dice.choice(list(asked))
            index.remove(gone, 1, asked.pop(gone))
        terms: list[Term] = []
        for column in "abcd":
            kind = dice.randrange(5)
            if kind == 1:
                terms.append(one_of(column, *dice.sample([*range(12), None], dice.randint(1, 3))))
            elif kind == 2:
                low, high = (dice.choice([None, *range(-3, 15)]) for _ in "lh")
                if low is not None or high is not None:
                    terms.append(
                        Between(column, INT, low, high, dice.random() < 0.5, dice.random() < 0.5)
                    )
        index.add(number, 1, terms)
        asked[number] = terms
        image = {column: dice.choice([None, *range(12)]) for column in "abcd"}
        right = {
            each
            for each, terms in asked.items()
            if all(term.holds(image[term.column]) for term in terms)
        }
        assert index.matching(1, None, image) == right
        matched += len(right)
    assert matched > amount(100, 1000)
    assert len(index) == len(asked)
    for each, terms in asked.items():
        index.remove(each, 1, terms)
    assert len(index) == 0
    assert vars(index) == {"_relations": {}}


def test_query_has_few_index_entries_however_many_values_it_filters_by() -> None:
    index: Index[str] = Index()
    index.add("many", 1, [one_of(column, *range(1000)) for column in "abc"])
    index.add("some", 1, [one_of(column, *range(20)) for column in "abc"])
    assert found(index, a=1, b=2, c=3) == {"many", "some"}
    assert found(index, a=1, b=2, c=30) == {"many"}
    assert found(index, a=1, b=2, c=-3) == set()
    groups = index._relations[1].groups.values()
    assert [len(each.buckets) for each in groups] == [1, 20]
