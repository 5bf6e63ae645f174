"""SQL texts of models."""

from __future__ import annotations

import pytest

from service.models.meta import conjunction, limit_of, order_clause, placeholders, table, where_of


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("a = ?", "a = %s"),
        ("a = '?' AND b = ?", "a = '?' AND b = %s"),
        ("a = 'it''s ?' AND b = ?", "a = 'it''s ?' AND b = %s"),
        ('"a?" = ?', '"a?" = %s'),
        ("doc ?? 'a' AND doc ??| ? AND doc ??& ?", "doc ? 'a' AND doc ?| %s AND doc ?& %s"),
        ("a LIKE '5%' AND b % 2 = ?", "a LIKE '5%%' AND b %% 2 = %s"),
        (
            "a = $$what?$$ AND b = $x$?$$?$x$ AND c = ?",
            "a = $$what?$$ AND b = $x$?$$?$x$ AND c = %s",
        ),
        ("a = ? -- why?\nAND b = ? /* ? */", "a = %s -- why?\nAND b = %s /* ? */"),
    ],
)
def test_placeholder_in_a_condition_becomes_that_of_psycopg2(condition: str, text: str) -> None:
    """The rest of the text is unchanged."""
    assert placeholders(condition) == text


@pytest.mark.parametrize(
    ("orderby", "text"),
    [
        ("name", ' ORDER BY "name"'),
        ("name desc, id", ' ORDER BY "name" DESC, "id"'),
        (["name ASC NULLS first"], ' ORDER BY "name" ASC NULLS FIRST'),
        ('"odd ""name" DESC', ' ORDER BY "odd ""name" DESC'),
    ],
)
def test_order_of_columns_is_written_with_quoted_names(orderby: str | list[str], text: str) -> None:
    assert order_clause(orderby, ["name", "id", 'odd "name']) == text


def test_conditions_joined_stay_in_their_parentheses() -> None:
    """Neither an OR nor a comment affects the other condition."""
    where = conjunction(["a = ? OR b = 1 -- or what", 1], ["c = ?", 2])
    assert where == ["(a = ? OR b = 1 -- or what\n) AND (c = ?\n)", 1, 2]
    assert conjunction(["a = ?", 1], None) == ["a = ?", 1]
    assert where_of(None) == ("", [])
    assert where_of(["a = ?", 1]) == (" WHERE (a = ?\n)", [1])


def test_table_with_a_dot_is_quoted_apart_and_limit_is_bound() -> None:
    """A name with a dot is a schema and a table."""
    assert table("app.things") == '"app"."things"'
    assert table('"a.b"') == '"a.b"'
    assert limit_of((10, 20)) == (" LIMIT ? OFFSET ?", [10, 20])
    assert limit_of("7") == (" LIMIT ?", [7])  # type: ignore[arg-type]
    assert limit_of(None) == ("", [])
