"""
Two statements in one message: the first hands its rows on, the second reads them and what is
related to them.

A setting of the transaction carries them over, as JSON of PostgreSQL's own text for each value. It
is the one thing that needs no table and no round trip, and nobody but the transaction sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from psycopg2.sql import SQL, Identifier

from service.catalog import Relation
from service.plan.types import Carried, FunctionCall, Reread
from service.sql.expressions import ROW, operator, separated
from service.sql.functions import function_source
from service.sql.statement import MISSED, Part, doubled, quoted

SETTING = "rowcast.written"
WRITTEN, FOUND = Identifier("w"), Identifier("r")


def save_rows(rows: Iterable[Part], certain: bool = False) -> Iterator[Part]:
    """
    Build a statement that hands on the rows of another one.

    Args:
        rows: A statement that returns `saved_values` of each.
        certain: Whether the statement behind is to fail if there are none.
    """
    yield SQL('WITH "w" ("v") AS (')
    yield from rows
    yield SQL(") SELECT FROM ")
    yield WRITTEN
    # the condition is for its effect; no row of it is sent
    yield SQL(f" HAVING pg_catalog.set_config('{SETTING}', coalesce(CAST(pg_catalog.json_agg(")
    yield Identifier("w", "v")
    none = MISSED if certain else "[]"  # the former is no JSON
    yield SQL(f") AS text), '{none}'), true) IS NULL; ")


def saved_rows(reread: Reread, relation: Relation) -> Iterator[Part]:
    """Build the FROM clause of the second statement, where "t" are the rows."""
    yield from _saved()
    home = Identifier(relation.schema, relation.name)
    if not reread.loose:
        yield SQL(" JOIN ")
        yield home
        yield SQL(" AS ")
        yield ROW
        yield SQL(" ON ")
        yield from _found_by(reread, "t")
        return
    yield SQL(" CROSS JOIN LATERAL (")
    if reread.equal:
        yield SQL("SELECT ")
        items: list[list[Part]] = [[Identifier("r", each.name)] for each in reread.carried]
        if reread.row:
            items.append([*_row_value(FOUND, relation), SQL(" AS "), Identifier(reread.row)])
        yield from separated(items)
        yield SQL(" FROM ")
        yield home
        yield SQL(" AS ")
        yield FOUND
        yield SQL(" WHERE ")
        yield from _found_by(reread, "r")
        yield SQL(" UNION ALL ")
    yield SQL("SELECT ")
    carried = [*reread.carried, *([Carried(reread.row, _row_type(relation))] if reread.row else [])]
    yield from separated(
        [*_value(at, each.type), SQL(" AS "), Identifier(each.name)]
        for at, each in enumerate(carried)
    )
    yield SQL(" LIMIT 1) AS ")
    yield ROW


def saved_values(reread: Reread, relation: Relation) -> Iterator[Part]:
    """Build what is handed on of a row "t", as one value."""
    yield SQL("CAST(ARRAY[")
    found: list[list[Part]] = [[Identifier("t", each.name)] for each in reread.carried]
    if reread.row:
        found.append(list(_row_value(ROW, relation)))
    yield from separated([SQL("CAST("), *each, SQL(" AS text)")] for each in found)
    yield SQL("] AS text[])")


def save_function_rows(call: FunctionCall, relation: Relation) -> Iterator[Part]:
    """Build a statement that hands on the rows of a function, each as one value."""
    row = [
        SQL("SELECT CAST(ARRAY[CAST("),
        *_row_value(ROW, relation),
        SQL(" AS text)] AS text[]) FROM "),
    ]
    yield from save_rows([*row, *function_source(call)])


def saved_function_rows(relation: Relation) -> Iterator[Part]:
    """Build the FROM clause of the second statement, where "t" are the rows of the function."""
    yield from _saved()
    yield SQL(" CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[")
    yield from _value(0, _row_type(relation))
    yield SQL("]) AS ")
    yield ROW


def ordered(by: Iterable[Part]) -> Iterator[Part]:
    """Build an ORDER BY clause that keeps equal rows in the order in which they were handed on."""
    found = list(by)
    yield from found
    yield SQL(", " if found else " ORDER BY ")
    yield Identifier("w", "n")


def _saved() -> Iterator[Part]:
    yield SQL(" FROM pg_catalog.json_array_elements(CAST(pg_catalog.current_setting(")
    yield SQL(f"'{SETTING}') AS json)) WITH ORDINALITY AS ")
    yield WRITTEN
    yield SQL(' ("v", "n")')


def _found_by(reread: Reread, source: str) -> Iterator[Part]:
    yield from separated(
        (
            [Identifier(source, each.name), operator(equal), *_value(at, each.type)]
            for at, (equal, each) in enumerate(zip(reread.equal, reread.carried, strict=False))
        ),
        " AND ",
    )


def _value(at: int, type: str) -> Iterator[Part]:
    yield SQL("CAST(")
    yield Identifier("w", "v")
    yield SQL(f" OPERATOR(pg_catalog.->>) {at:d} AS {doubled(type)})")


def _row_value(row: Identifier, relation: Relation) -> Iterator[Part]:
    """Build a row as one value."""
    yield SQL("CAST(")
    yield row
    yield SQL(f".* AS {doubled(_row_type(relation))})")


def _row_type(relation: Relation) -> str:
    return f"{quoted(relation.schema)}.{quoted(relation.name)}"
