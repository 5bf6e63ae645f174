"""
A statement's parameters are found again in what was sent.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.db.position import _pieces, _spans

values = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=5)


def literal(value: str | None) -> str:
    """Write a parameter as psycopg2 does."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


@given(values)
def test_parameters_are_found(given_values: list[str | None]) -> None:
    """Whatever the parameters hold, each is found where it stands."""
    text = "SELECT '%%s' " + "".join(", CAST(%s AS text)" for _ in given_values)
    literals = [literal(value) for value in given_values]
    sent = "BEGIN;SELECT '%s' " + "".join(f", CAST({each} AS text)" for each in literals)
    assert [sent[start:end] for start, end in _spans(sent, _pieces(text))] == literals


def test_another_statement() -> None:
    """In the text of another statement nothing is found."""
    assert _spans("SELECT 'a'", _pieces("DELETE %s")) == []
    assert _spans("SELECT 'a' AND", _pieces("SELECT %s OR")) == []
    assert _spans("SELECT a", _pieces("SELECT %s")) == []
