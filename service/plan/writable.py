"""
Which columns of a relation a call may write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.catalog import Column, Relation
from service.errors import InvalidArgument
from service.request.types import Assignment


def writable(relation: Relation, name: str, path: str) -> Column:
    """
    Look up a column that is to be given a value.

    Raises:
        InvalidArgument: It is unknown, or the database alone gives it values.
    """
    column = relation.column(name, path)
    if column.made:
        raise _made(column, path)
    return column


def assigned(relation: Relation, each: Assignment) -> Column:
    """
    Look up a column that is given a value, or is to take its default.

    Raises:
        InvalidArgument: It is unknown, or the database alone gives it values; in a view, an
            expression has no default either.
    """
    if each.operand is not None:
        return writable(relation, each.column, each.path)
    column = relation.column(each.column, each.path)
    if column.made and relation.kind == "view":
        raise _made(column, each.path)
    return column


def refuse_names(relation: Relation, rows: Iterable[Sequence[Assignment]]) -> None:
    """
    Check the columns that rows give, each name once.

    Raises:
        InvalidArgument: As of `assigned`.
    """
    known: set[tuple[str, bool]] = set()
    for row in rows:
        for each in row:
            key = each.column, each.operand is None
            if key not in known:
                assigned(relation, each)
                known.add(key)


def _made(column: Column, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'"{column.name}" is made by the database and cannot be written',
        path=path,
        column=column.name,
    )
