"""
From rows that have changed to the rows that they are related to, one step at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.sql import SQL, Identifier

from service.catalog import Catalog
from service.plan.keyed import Way, array_bound
from service.sql.expressions import operator, relation_name
from service.sql.statement import AND, COMMA, Parameter, Statement, build_statement


def climb(catalog: Catalog, way: Way, columns: Sequence[str]) -> Statement | None:
    """
    Build the query for the rows that a way leads to; None where values cannot be given.

    It returns one column: the JSON array of some columns of each, as text. Its parameters are arrays,
    as PostgreSQL's text, of the values that the columns of the way have: in several columns, each of
    their combinations.
    """
    # One statement for any number of rows that have changed: values are arrays.
    tests = []
    for slot, (there, here, equal) in enumerate(way.pairs):
        values = array_bound(catalog, catalog.type(way.relation.columns[here].type), slot)
        if values is None:
            return None
        tests.append(
            SQL('"t".{column} {equal} ANY ({values})').format(
                column=Identifier(there), equal=operator(equal), values=Parameter(values)
            )
        )
    return build_statement(
        f"{way.outer.name}.climb",
        SQL(
            "SELECT DISTINCT CAST(pg_catalog.json_build_array({columns}) AS text)"
            ' FROM {relation} AS "t" WHERE {tests}'
        ).format(
            columns=COMMA.join(Identifier("t", name) for name in columns),
            relation=relation_name(way.outer),
            tests=AND.join(tests),
        ),
        columns=("key",),
        pure=way.outer.pure_reads,
    )
