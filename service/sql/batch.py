"""
One statement for many calls that differ in their values alone.
"""

from __future__ import annotations

from dataclasses import replace

from service.catalog import Type
from service.plan.conditions import Bound
from service.sql.statement import Statement


def batched(statement: Statement, texts: Type) -> Statement:
    """
    Build the statement that runs another one for each of a list of values.

    After the columns of the other one, which has parameters, comes the number of the values, from 1.

    Args:
        statement: That reads.
        texts: The type of arrays of text: each parameter is one, of the values of one parameter of the
            other statement, as PostgreSQL's text.
    """
    inner = statement.substituted(lambda at, _: f'given."p{at}"').text
    places = range(len(statement.bounds))
    lists = ", ".join("pg_catalog.unnest(CAST(%s AS text[]))" for _ in places)
    names = ", ".join(f'"p{at}"' for at in places)
    text = (
        f'SELECT found.*, given."n" FROM ROWS FROM ({lists}) WITH ORDINALITY AS given({names}, "n")'
        f" CROSS JOIN LATERAL ({inner}) AS found"
    )
    return replace(
        statement,
        text=text,
        bounds=tuple(Bound(at, texts, "", raw=True) for at in places),
        marks=(),
    )
