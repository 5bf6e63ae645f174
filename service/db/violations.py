"""
SQLSTATE class 23: constraint violations, in terms of the catalog.

PostgreSQL's message names tables that may be hidden, and its DETAIL shows entire rows ("Failing row
contains …") or keys of rows that the caller may not see. So the message is worded here, and the DETAIL is
passed on only if it shows the caller's own key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg2

from service.catalog import Catalog, QualifiedName, Relation
from service.db.blame import rows_of, types_within
from service.errors import (
    CheckViolation,
    ConstraintViolation,
    ExclusionViolation,
    ForeignKeyViolation,
    NotNullViolation,
    UniqueViolation,
)


class Violation(NamedTuple):
    """
    What PostgreSQL reports of a violated constraint; a partition is reported as its root table.

    Args:
        home: Schema and name of the table, or of the domain.
        constraint: Name of the constraint, as declared on the root table.
        column: Column of a NOT NULL constraint.
        detail: PostgreSQL's DETAIL.
        domain: Whether it is a constraint of a domain.
        sqlstate: SQLSTATE of class 23, or 44000.
    """

    home: QualifiedName
    constraint: str | None
    column: str | None
    detail: str | None
    domain: bool
    sqlstate: str


def violation(
    error: psycopg2.Error, catalog: Catalog | None, acted_on: Relation | None
) -> ConstraintViolation | None:
    """
    Return the error of a violated constraint; None if the error is another one.

    Args:
        error: PostgreSQL's error.
        catalog: The served catalog: no other object is named.
        acted_on: The relation of the call, if it has one.
    """
    make = _KINDS.get(error.pgcode or "")
    if make is None:
        return None
    reported = _reported(error, catalog)
    relation = None if catalog is None else catalog.relations.get(reported.home)
    found = make(reported, relation, acted_on)
    if reported.domain and catalog is not None and acted_on is not None:
        _name_column(found, error, reported, catalog, acted_on)
    return found


def _reported(error: psycopg2.Error, catalog: Catalog | None) -> Violation:
    diag = error.diag
    table, name, detail = diag.table_name or "", diag.constraint_name, diag.message_detail
    home = (diag.schema_name or "", table or diag.datatype_name or "")
    if catalog is not None and table:
        name = catalog.constraint_copies.get((*home, name or ""), name)
        home = catalog.partitions.get(home, home)
        before, found, after = (detail or "").rpartition(f'"{table}"')
        if found and ")" not in after:  # not inside the key in parentheses, which may be any text
            detail = f'{before}"{home[1]}"{after}'
    return Violation(home, name, diag.column_name, detail, not table, error.pgcode or "")


def _name_column(
    found: ConstraintViolation,
    error: psycopg2.Error,
    reported: Violation,
    catalog: Catalog,
    acted_on: Relation,
) -> None:
    """Add the only written column that contains values of the domain; PostgreSQL reports no column."""
    given = rows_of(error, catalog)
    written = acted_on.columns if given is None else {n for row in given.rows for n in row.columns}
    names = [
        name
        for name in written
        if any(
            (each.schema, each.name) == reported.home
            for each in types_within(catalog, acted_on.columns[name].type)
        )
    ]
    if len(names) == 1 and error.diag.context is None:
        found.message = f"{_listed(names)} does not satisfy a check of the database"
        found.details.setdefault("column", names[0])
        found.details.setdefault("columns", names)


def _details(
    reported: Violation,
    relation: Relation | None,
    columns: Sequence[str] | None,
    detail: str | None = None,
) -> dict[str, Any]:
    known = reported.constraint in (relation.constraints if relation else ())
    return {
        "columns": list(columns) if columns else None,
        "column": columns[0] if columns and len(columns) == 1 else None,
        "detail": detail,
        "sqlstate": reported.sqlstate,
        "relation": relation.name if relation else None,
        # A constraint of a domain belongs to no relation.
        "constraint": reported.constraint if known or reported.domain else None,
    }


def _unique(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.unique_keys if relation else ()
    key = next((each for each in keys if each.name == reported.constraint), None)
    columns = key.columns if key else ()
    shown = key is not None and _is_acted_on(acted_on, reported) and _readable(relation, columns)
    which = f" of {_listed(columns)}" if columns else ""
    return UniqueViolation(
        f"there is a row with the same value{which} already",
        **_details(reported, relation, columns, reported.detail if shown else None),
    )


def _foreign_key(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.foreign_keys if relation else ()
    key = next((each for each in keys if each.name == reported.constraint), None)
    columns = key.columns if key else ()
    message = "a reference between rows would no longer hold"
    if relation is not None and key is not None:
        here, home = _home(acted_on), _home(relation)
        detail = reported.detail or ""
        missing = "not present in table" in detail
        # If the message is not in English, the relation of the call decides which of the two it is.
        if "referenced from table" in detail or (not missing and home != here == key.target):
            message = f'rows of "{relation.name}" still refer to it'
        elif missing or home == here != key.target:
            message = f'{_listed(columns)} refers to no row of "{key.target[1]}"'
    own = _is_acted_on(acted_on, reported) or (key is not None and _home(acted_on) == key.target)
    shown = own and key is not None and _readable(relation, columns)
    return ForeignKeyViolation(
        message, **_details(reported, relation, columns, reported.detail if shown else None)
    )


def _not_null(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    known = relation is not None and reported.column in relation.columns
    column = reported.column if known else None
    return NotNullViolation(
        f'"{column}" must not be null' if column else "a value that is required is missing",
        **_details(reported, relation, [column] if column else None),
    )


def _check(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(reported, relation)
    if reported.sqlstate == "44000":
        message = "the row would not belong to the view it is written through"
    elif reported.constraint is None:
        message = "no part of the relation takes such a row"  # there is no partition for it
    else:
        message = f"{_listed(columns) or 'a value'} does not satisfy a check of the database"
    return CheckViolation(message, **_details(reported, relation, columns))


def _exclusion(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(reported, relation)
    which = f" in {_listed(columns)}" if columns else ""
    return ExclusionViolation(
        f"the row conflicts with another one{which}", **_details(reported, relation, columns)
    )


_KINDS = {
    "23001": _foreign_key,
    "23502": _not_null,
    "23503": _foreign_key,
    "23505": _unique,
    "23514": _check,
    "23P01": _exclusion,
    "44000": _check,
}


def _checked(reported: Violation, relation: Relation | None) -> tuple[str, ...]:
    known = relation.constraints if relation else {}
    return known.get(reported.constraint or "", ())


def _home(relation: Relation | None) -> tuple[str, str] | None:
    return (relation.schema, relation.name) if relation else None


def _is_acted_on(acted_on: Relation | None, reported: Violation) -> bool:
    """Return whether the violation is on the relation of the call; a trigger may write to others."""
    return _home(acted_on) == reported.home


def _readable(relation: Relation | None, columns: tuple[str, ...]) -> bool:
    return relation is not None and all(relation.columns[name].selectable for name in columns)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
