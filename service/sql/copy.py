"""
Import plans to the statements around a COPY.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from psycopg2.sql import SQL, Identifier

from service.plan.write import ImportPlan
from service.sql.expressions import ROW, separated
from service.sql.statement import Part, doubled, render
from service.sql.write import on_conflict

STAGE = Identifier("pg_temp", "rowcast_import")
DEFAULT = r"\D"
"""What stands for a column's default in COPY's text, where a value's backslash is doubled."""


@dataclass(frozen=True, slots=True)
class CopyIn:
    """
    The statements of an import, none with parameters.

    Args:
        before: Makes the temporary table, if one is needed.
        copy: The COPY.
        copy_with_defaults: The same, with a word for a column's default (PostgreSQL 16).
        after: Takes the rows over from the temporary table.
    """

    before: str | None
    copy: str
    copy_with_defaults: str | None
    after: str | None


def copy_in(plan: ImportPlan) -> CopyIn:
    """Build the statements of an import."""
    if not plan.staged:
        home = Identifier(plan.relation.schema, plan.relation.name)
        copy = _text(_copy(plan, home))
        defaults = None if plan.csv else _text([*_copy(plan, home, DEFAULT)])
        return CopyIn(None, copy, defaults, None)
    return CopyIn(_text(_stage(plan)), _text(_copy(plan, STAGE)), None, _text(_merge(plan)))


def _copy(plan: ImportPlan, target: Identifier, default: str | None = None) -> Iterator[Part]:
    yield SQL("COPY ")
    yield target
    yield SQL(" (")
    yield from _columns(plan)
    yield SQL(") FROM STDIN WITH (")
    yield SQL("FORMAT csv" if plan.csv else "FORMAT text")
    yield SQL(", HEADER" if plan.header else "")
    yield SQL(f", DEFAULT '{default}'" if default else "")
    yield SQL(")")


def _stage(plan: ImportPlan) -> Iterator[Part]:
    """Build a table of the same types, without constraints: those are the relation's to check."""
    yield SQL("CREATE TEMPORARY TABLE rowcast_import (")
    # the catalog's own spelling, as in casts
    yield from separated(
        [Identifier(column.name), SQL(f" {doubled(column.declared)}")] for column in plan.columns
    )
    yield SQL(") ON COMMIT DROP")


def _merge(plan: ImportPlan) -> Iterator[Part]:
    yield SQL("INSERT INTO ")
    yield Identifier(plan.relation.schema, plan.relation.name)
    yield SQL(" AS ")
    yield ROW
    yield SQL(" (")
    yield from _columns(plan)
    yield SQL(") SELECT ")
    yield from _columns(plan)
    yield SQL(" FROM ")
    yield STAGE
    if plan.conflict is not None:
        yield from on_conflict(plan.conflict)


def _columns(plan: ImportPlan) -> Iterator[Part]:
    yield from separated([Identifier(column.name)] for column in plan.columns)


def _text(parts: Iterable[Part]) -> str:
    text, _, _ = render(parts)
    return text % ()  # percent signs of names are doubled for the sake of parameters
