"""
What an update is joined to: rows that were picked and locked, or rows of the call.
"""

from __future__ import annotations

from dataclasses import replace

from psycopg2.sql import SQL, Composable, Identifier

from service.plan.conditions import Bound
from service.plan.plans import CallRows, Joined, Lock, Picked, UpdatePlan
from service.sql.expressions import NAME, cast, operator, relation_name
from service.sql.new_values import GIVEN, new_value
from service.sql.select import row_lock, rows_of
from service.sql.statement import AND, COMMA, EMPTY, Parameter, Statement, build_statement

ORDINAL = Identifier(GIVEN, "n")
"""The number of a row of the call, from 0."""


def ahead_of(joined: Joined) -> Composable:
    """Build what stands before an update: the query of the rows that are picked."""
    if not isinstance(joined.source, Picked):
        return EMPTY
    # not a subselect of the WHERE: PostgreSQL could run that again, and take other rows
    return SQL("WITH {name} ({key}) AS ({rows}) ").format(
        name=Identifier(GIVEN),
        key=COMMA.join(Identifier(f"k{at}") for at in range(len(joined.key))),
        rows=rows_of(joined.source.read),
    )


def source_of(joined: Joined) -> Composable:
    """Build what the FROM clause of an update reads."""
    if isinstance(joined.source, Picked):
        return Identifier(GIVEN)
    return SQL("(VALUES {rows}) AS {name} ({columns})").format(
        rows=_values(joined.source),
        name=Identifier(GIVEN),
        columns=COMMA.join(Identifier(each.name) for each, _ in joined.source.columns),
    )


def is_joined(joined: Joined) -> Composable:
    """Build the condition that a row has the key of what it is joined to."""
    return AND.join(
        SQL("{column} {equal} {value}").format(
            column=Identifier(NAME, name),
            equal=operator(equal),
            value=Identifier(GIVEN, f"k{at}"),
        )
        for at, (name, equal) in enumerate(zip(joined.key, joined.equal, strict=True))
    )


def lock_rows(plan: UpdatePlan) -> Statement:
    """
    Build the query of the rows that an update is for, in the order of the call; they are locked,
    where PostgreSQL can.

    Behind the columns stand the number of each, and its new values of the columns that are computed.
    """
    if plan.joined is None:
        raise TypeError("the rows are not those of a call")
    columns = tuple(each.name for each in plan.relation.columns.values() if each.selectable)
    new = [
        cast(new_value(each.value), each.column.declared) for each in plan.settings if each.computes
    ]
    rows = SQL(
        'SELECT {columns} FROM {source} JOIN {relation} AS "t" ON {key} ORDER BY {number}{lock}'
    ).format(
        columns=COMMA.join([*(Identifier(NAME, name) for name in columns), ORDINAL, *new]),
        source=source_of(plan.joined),
        relation=relation_name(plan.relation),
        key=is_joined(plan.joined),
        number=ORDINAL,
        lock=row_lock(plan.relation, Lock()),
    )
    return build_statement(plan.name, rows, columns=columns)


def _values(given: CallRows) -> Composable:
    """Build the rows of VALUES: the types of the first one are those of all."""
    found = []
    for at, row in enumerate(given.rows):
        cells: list[Composable] = []
        for value, (_, type) in zip(row, given.columns, strict=True):
            if isinstance(value, Bound):
                cells.append(Parameter(replace(value, cast=not at)))
            else:
                cell = SQL("NULL" if value is None else f"{value:d}")
                cells.append(cell if at else cast(cell, type.sql))
        found.append(SQL("({cells})").format(cells=COMMA.join(cells)))
    return COMMA.join(found)
