"""
Statements in the log: their shape, and no value.
"""

from __future__ import annotations

import pytest

from service.db.worker import MAX_LENGTH, shape_of


@pytest.mark.parametrize(
    ("sql", "shape"),
    [
        ("SELECT a1, t.b FROM t WHERE a1 = %s", "SELECT a1, t.b FROM t WHERE a1 = %s"),
        ("SELECT 'secret', 'it''s 1'", "SELECT ?, ?"),
        ("SELECT 1, 2.5, .5, 1e-3, 7.", "SELECT ?, ?, ?, ?, ?"),
        ("SELECT E'a\\'secret', U&'\\0041', x'ff', N'n'", "SELECT ?, ?, ?, ?"),
        ('SELECT "it\'s", "a""1", é2, $1', 'SELECT "it\'s", "a""1", é2, $1'),
        ("SELECT $$secret 'a$$, $x$b $$ c$x$ || d", "SELECT ?, ? || d"),
        ("SELECT a -- 'secret\n  FROM t /* 'secret\n */ WHERE b", "SELECT a FROM t WHERE b"),
        ("SET LOCAL rowcast.authid='ada';\nSELECT 1", "SET LOCAL rowcast.authid=?; SELECT ?"),
        ("SELECT CAST('1' AS numeric(10, 2))::text", "SELECT CAST(? AS numeric(?, ?))::text"),
        (
            "SELECT type'x', e, a$b, f(x'1'), date '2026-01-01'",
            "SELECT type?, e, a$b, f(?), date ?",
        ),
        ('SELECT 1 AS "\x1b[31m\n"', 'SELECT ? AS "\\x1b[31m "'),
    ],
)
def test_shape_of_statement_has_no_literal(sql: str, shape: str) -> None:
    assert shape_of(sql) == shape


def test_shape_of_long_statement_is_cut() -> None:
    shape = shape_of(f"SELECT {', '.join(['some_column'] * 1000)}")
    assert shape[-1] == "…"
    assert len(shape) == MAX_LENGTH
