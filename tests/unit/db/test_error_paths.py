"""The parameter of a statement that PostgreSQL's error position points at."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.sql import SQL

from service.db.error_paths import _pieces, _spans, annotate_position, mark_of
from service.plan.plans import Bound
from service.sql.statement import Mark, Parameter, Statement, render
from tests.unit.samples import types

TEXT = types()[25]

values = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=5)


def literal(value: str | None) -> str:
    """Write a parameter as psycopg2 does."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


@given(values)
def test_parameters_of_any_values_are_found_at_their_offsets(
    given_values: list[str | None],
) -> None:
    text = "SELECT '%%s' " + "".join(", CAST(%s AS text)" for _ in given_values)
    literals = [literal(value) for value in given_values]
    sent = "BEGIN;SELECT '%s' " + "".join(f", CAST({each} AS text)" for each in literals)
    assert [sent[start:end] for start, end in _spans(sent, _pieces(text))] == literals


def test_parameters_in_another_statement_are_not_found() -> None:
    assert _spans("SELECT 'a'", _pieces("DELETE %s")) == []
    assert _spans("SELECT 'a' AND", _pieces("SELECT %s OR")) == []
    assert _spans("SELECT a", _pieces("SELECT %s")) == []


@given(values, st.sampled_from(["", "BEGIN;", "SELECT set_config('role', 'é%%', true);"]))
def test_mark_after_any_text_is_found_at_its_offset(
    given_values: list[str | None], words: str
) -> None:
    """Whatever parameters and texts are before it."""
    bounds = [Bound(at, TEXT, "") for at, _ in enumerate(given_values)]
    first, last = Mark("first", "a"), Mark("last", "b")
    parameters = map(Parameter, bounds)
    before = [SQL("SELECT "), first, SQL("sum(x), '100%%'")]
    text, found, marks = render([*before, *parameters, SQL(", "), last, SQL("avg(x)")])
    statement = Statement(text, found, "test", marks=marks)
    sent = words + "SELECT sum(x), '100%'"
    sent += "".join(f"CAST({literal(each)} AS text)" for each in given_values) + ", avg(x)"
    for mark, place in ((first, "sum("), (last, ", avg("), (None, "x)")):
        at = sent.rindex(place) + place.startswith(",") * 2 + 1
        error = SimpleNamespace(
            cursor=SimpleNamespace(query=sent.encode()),
            diag=SimpleNamespace(statement_position=str(at), message_primary=None),
            pgcode="42883",
        )
        annotate_position(error, statement)  # type: ignore[arg-type]
        known = mark_of(error)  # type: ignore[arg-type]
        assert (known and known.path) == (mark and mark.path)


@pytest.mark.parametrize("begin", ["'", " E'"])
def test_parameter_of_megabytes_is_skipped_at_once(begin: str) -> None:
    """The search would otherwise hold the interpreter lock."""
    sent = f"SELECT {begin}{'y' * 8_000_000}', 'a'"
    began = time.thread_time()
    assert len(_spans(sent, ["SELECT ", ", ", ""])) == 2
    assert time.thread_time() - began < 0.5
