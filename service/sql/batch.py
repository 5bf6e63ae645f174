"""
One statement for many calls that differ in their values alone.
"""

from __future__ import annotations

import re
from dataclasses import replace

from service.catalog import Type
from service.plan.conditions import Bound
from service.sql.statement import Statement, doubled

PLACE = re.compile("%s|%%")


def batched(statement: Statement, texts: Type) -> Statement:
    """
    Build the statement that runs another one for each of a list of values.

    After the columns of the other one, which has parameters, comes the number of the values, from 1.

    Args:
        statement: That reads.
        texts: The type of arrays of text: each parameter is one, of the values of one parameter of the
            other statement, as PostgreSQL's text.
    """
    bounds = iter(enumerate(statement.bounds))

    def value(place: re.Match[str]) -> str:
        if place[0] != "%s":
            return place[0]
        at, bound = next(bounds)
        # where the statement itself has no cast, the place gave the type
        return (
            f'given."p{at}"' if bound.cast else f'CAST(given."p{at}" AS {doubled(bound.type.sql)})'
        )

    inner = PLACE.sub(value, statement.text)
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
