"""Hints for words of other tools."""

from __future__ import annotations

import pytest

from service.request.synonyms import (
    SYNONYMS,
    Synonym,
    adapt_hint,
    column_hint,
    letters,
    synonym_hint,
)


@pytest.mark.parametrize("synonym", SYNONYMS, ids=lambda each: f"{each.kind}-{each.ours}")
def test_name_of_another_system_gets_a_hint_at_the_right_one(synonym: Synonym) -> None:
    """In any spelling; a word that is valid here gets no hint."""
    for word in synonym.words:
        for written in (word, word.upper(), f"${word}"):
            hint = synonym_hint(synonym.kind, written, [synonym.ours])
            assert hint is not None, written
            assert f'"{synonym.ours}"' in hint


def test_names_are_compared_by_their_letters() -> None:
    """Names without letters are unchanged: they are operators."""
    assert letters("order_By") == letters("$orderBy") == "orderby"
    assert letters("$") == "$"
    assert synonym_hint("argument", "order_by", ["limit"]) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("name desc", 'did you mean "-name"?'),
        ("name ASC nulls last", 'did you mean "name"?'),
        ("name, id", 'did you mean a list, as in ["name", "id"]?'),
        ("seats__gte", 'did you mean {"seats": {"gte": …}}?'),
        ("seats >=", 'did you mean {"seats": {"gte": …}}?'),
        ("desc", 'descending is a sign before the name, as in ["-created_at"]'),
        ("$or", 'did you mean "or"?'),
        ("nothing", None),
    ],
)
def test_name_of_no_column_is_hinted_as_a_spelling_of_others(name: str, hint: str | None) -> None:
    """Sort orders and lists in one string, operators of Django and of MongoDB."""
    assert column_hint(name, ["name", "id", "seats"], ["gt", "gte"]) == hint


def test_example_is_written_for_the_relation_at_hand() -> None:
    """With columns of the relation, and placeholders for values."""
    hint = 'did you mean "where", as in actions.find(where={"status": False})?'
    columns, key = ["number", "street"], ["number"]
    assert adapt_hint(hint, "houses", columns, key) == (
        'did you mean "where", as in houses.find(where={"street": …})?'
    )
    assert adapt_hint(hint, "", columns, key) == 'did you mean "where"?'
