"""
The statements of an import: a COPY, and those around it if rows go through a temporary table.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2.sql import SQL, Composable, Identifier, Literal

from service.plan.write_plan import ImportPlan
from service.sql.expressions import relation_name
from service.sql.modify import on_conflict
from service.sql.statement import COMMA, EMPTY, catalog_sql, render

STAGE = Identifier("pg_temp", "rowcast_import")
DEFAULT = r"\D"
"""Marker of a column's default in COPY's text; no value is equal to it, as backslashes are doubled."""


@dataclass(frozen=True, slots=True)
class CopyIn:
    """
    The statements of an import, none with parameters.

    Args:
        before: Creates the temporary table, if the import needs one.
        copy: The COPY.
        copy_with_defaults: The same with a marker for a column's default (PostgreSQL 16 and later).
        after: Inserts the rows of the temporary table into the relation.
        dropped: Drops the temporary table, for further imports in the same transaction.
    """

    before: str | None
    copy: str
    copy_with_defaults: str | None
    after: str | None = None
    dropped: str = "DROP TABLE pg_temp.rowcast_import"


def copy_in(plan: ImportPlan) -> CopyIn:
    """Build the statements of an import."""
    home, names = relation_name(plan.relation), [Identifier(each.name) for each in plan.columns]
    if not plan.staged:
        defaults = None if plan.csv else _copy(plan, home, DEFAULT)
        return CopyIn(None, _copy(plan, home), defaults)
    # The temporary table has no constraints: those of the relation are checked by the INSERT.
    stage = SQL("CREATE TEMPORARY TABLE rowcast_import ({columns}) ON COMMIT DROP").format(
        columns=COMMA.join(
            SQL("{name} {type}").format(name=name, type=catalog_sql(column.declared))
            for name, column in zip(names, plan.columns, strict=True)
        )
    )
    merge = SQL(
        'INSERT INTO {relation} AS "t" ({columns}) SELECT {columns} FROM {stage}{conflict}'
    ).format(
        relation=home,
        columns=COMMA.join(names),
        stage=STAGE,
        conflict=on_conflict(plan.conflict, plan.relation) if plan.conflict else EMPTY,
    )
    return CopyIn(_text(stage), _copy(plan, STAGE), None, _text(merge))


def _copy(plan: ImportPlan, target: Identifier, default: str | None = None) -> str:
    template = "COPY {target} ({columns}) FROM STDIN WITH (FORMAT {format}{header}{default})"
    return _text(
        SQL(template).format(
            target=target,
            columns=COMMA.join(Identifier(column.name) for column in plan.columns),
            format=SQL("csv" if plan.csv else "text"),
            header=SQL(", HEADER" if plan.header else ""),
            default=SQL(", DEFAULT {}").format(Literal(default)) if default else EMPTY,
        )
    )


def _text(statement: Composable) -> str:
    text, _, _ = render([statement])
    return text % ()  # undoes the doubling of percent signs, because COPY takes no parameters
