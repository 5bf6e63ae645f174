"""
New rows with their numbers: MERGE gives back what it has read beside what it has written.

INSERT gives back what it has written alone, and in an order that PostgreSQL does not promise. MERGE
does so from PostgreSQL 17 on.
"""

from __future__ import annotations

from dataclasses import replace

from psycopg2.sql import SQL, Composable, Composed, Identifier

from service.plan.plans import InsertPlan
from service.sql.expressions import relation_name
from service.sql.statement import COMMA, EMPTY, Parameter

NUMBER: Composable = Identifier("s", "n")
"""The number of a row among those of the statement, from 0."""


def numbered_rows(plan: InsertPlan) -> Composable:
    """
    Build the MERGE of new rows; rows that give the same columns share a clause of it.

    A column that a row does not give takes its default, and a clause can say so of all its rows alone.
    """
    # A clause for each would make the text grow with the rows, and an application gives few sets of columns.
    shapes: dict[tuple[bool, ...], int] = {}
    rows = []
    for number, row in enumerate(plan.rows):
        shape = shapes.setdefault(tuple(value is not None for value in row), len(shapes))
        # No column gives these values their types: each is cast, without modifiers, which would cut.
        values = [Parameter(replace(value, cast=True)) if value else SQL("NULL") for value in row]
        rows.append(
            SQL("({values})").format(
                values=COMMA.join([SQL(f"{number:d}"), SQL(f"{shape:d}"), *values])
            )
        )
    names = ["n", "shape", *(f"c{at}" for at in range(len(plan.columns)))]
    return SQL(
        'MERGE INTO {relation} AS "t" USING (VALUES {rows}) AS "s" ({names}) ON false{inserts}'
    ).format(
        relation=relation_name(plan.relation),
        rows=COMMA.join(rows),
        names=COMMA.join(map(Identifier, names)),
        inserts=Composed(
            [
                _insert(plan, shape, number if len(shapes) > 1 else None)
                for shape, number in shapes.items()
            ]
        ),
    )


def _insert(plan: InsertPlan, shape: tuple[bool, ...], number: int | None) -> Composable:
    given = [at for at, is_given in enumerate(shape) if is_given]
    which = EMPTY if number is None else SQL(
        f' AND "s"."shape" OPERATOR(pg_catalog.=) {number:d}'
    )  # fmt: skip
    if not given:
        return SQL(" WHEN NOT MATCHED{which} THEN INSERT DEFAULT VALUES").format(which=which)
    return SQL(" WHEN NOT MATCHED{which} THEN INSERT ({columns}) VALUES ({values})").format(
        which=which,
        columns=COMMA.join(Identifier(plan.columns[at].name) for at in given),
        values=COMMA.join(Identifier("s", f"c{at}") for at in given),
    )
