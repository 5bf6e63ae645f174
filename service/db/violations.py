"""
SQLSTATE class 23: what a constraint said, in terms of the catalog.

PostgreSQL's own message names tables that may be hidden, and its detail shows whole rows
("Failing row contains …") or other people's keys. So both are worded here anew; the detail
is passed on only where it shows the caller's own key.
"""

from __future__ import annotations

from typing import Any

import psycopg2

from service.catalog import Catalog, Relation
from service.errors import (
    CheckViolation,
    ConstraintViolation,
    ExclusionViolation,
    ForeignKeyViolation,
    NotNullViolation,
    UniqueViolation,
)

Diagnostics = psycopg2.extensions.Diagnostics


def violation(
    error: psycopg2.Error, catalog: Catalog | None, acted_on: Relation | None
) -> ConstraintViolation | None:
    """
    Return the error of a violated constraint; None if the SQLSTATE is not one.

    Args:
        error: Of class 23, or 44000.
        catalog: What is served; nothing else is named.
        acted_on: The relation of the call, if it is of one.
    """
    make = _KINDS.get(error.pgcode or "")
    if make is None:
        return None
    diag = error.diag
    served = catalog.relations if catalog is not None else {}
    relation = served.get((diag.schema_name or "", diag.table_name or ""))
    return make(diag, relation, acted_on, error.pgcode or "")


def _details(diag: Diagnostics, relation: Relation | None, sqlstate: str) -> dict[str, Any]:
    known = diag.constraint_name in (relation.constraints if relation else ())
    return {
        "sqlstate": sqlstate,
        "relation": relation.name if relation else None,
        # A domain's constraint is its type's, and so of no relation.
        "constraint": diag.constraint_name if known or diag.datatype_name else None,
    }


def _unique(
    diag: Diagnostics, relation: Relation | None, acted_on: Relation | None, sqlstate: str
) -> ConstraintViolation:
    keys = relation.unique_keys if relation else ()
    key = next((each for each in keys if each.name == diag.constraint_name), None)
    columns = list(key.columns) if key else None
    shown = _is(acted_on, diag) and key is not None and _readable(relation, key.columns)
    which = f" of {_listed(columns)}" if columns else ""
    return UniqueViolation(
        f"there is a row with the same value{which} already",
        columns=columns,
        column=_single(columns),
        detail=diag.message_detail if shown else None,
        **_details(diag, relation, sqlstate),
    )


def _foreign_key(
    diag: Diagnostics, relation: Relation | None, acted_on: Relation | None, sqlstate: str
) -> ConstraintViolation:
    keys = relation.foreign_keys if relation else ()
    key = next((each for each in keys if each.name == diag.constraint_name), None)
    columns = list(key.columns) if key else None
    message = "a reference between rows would no longer hold"
    if relation is not None and key is not None:
        here, home = _home(acted_on), _home(relation)
        detail = diag.message_detail or ""
        missing = "not present in table" in detail
        # a server of another language says it otherwise: then the call tells
        if "referenced from table" in detail or (not missing and home != here == key.target):
            message = f'rows of "{relation.name}" still refer to it'
        elif missing or home == here != key.target:
            message = f'{_listed(columns)} refers to no row of "{key.target[1]}"'
    own = _is(acted_on, diag) or (key is not None and _home(acted_on) == key.target)
    shown = own and key is not None and _readable(relation, key.columns)
    return ForeignKeyViolation(
        message,
        columns=columns,
        column=_single(columns),
        detail=diag.message_detail if shown else None,
        **_details(diag, relation, sqlstate),
    )


def _not_null(
    diag: Diagnostics, relation: Relation | None, acted_on: Relation | None, sqlstate: str
) -> ConstraintViolation:
    known = relation is not None and diag.column_name in relation.columns
    column = diag.column_name if known else None
    return NotNullViolation(
        f'"{column}" must not be null' if column else "a value that is required is missing",
        columns=[column] if column else None,
        column=column,
        **_details(diag, relation, sqlstate),
    )


def _check(
    diag: Diagnostics, relation: Relation | None, acted_on: Relation | None, sqlstate: str
) -> ConstraintViolation:
    columns = _checked(diag, relation)
    if sqlstate == "44000":
        message = "the row would not belong to the view it is written through"
    elif diag.constraint_name is None:
        message = "no part of the relation takes such a row"  # no partition fits
    else:
        message = f"{_listed(columns) or 'a value'} does not satisfy a check of the database"
    return CheckViolation(
        message, columns=columns, column=_single(columns), **_details(diag, relation, sqlstate)
    )


def _exclusion(
    diag: Diagnostics, relation: Relation | None, acted_on: Relation | None, sqlstate: str
) -> ConstraintViolation:
    columns = _checked(diag, relation)
    which = f" in {_listed(columns)}" if columns else ""
    return ExclusionViolation(
        f"the row conflicts with another one{which}",
        columns=columns,
        column=_single(columns),
        **_details(diag, relation, sqlstate),
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


def _checked(diag: Diagnostics, relation: Relation | None) -> list[str] | None:
    known = relation.constraints if relation else {}
    return list(known.get(diag.constraint_name or "", ())) or None


def _home(relation: Relation | None) -> tuple[str, str] | None:
    return (relation.schema, relation.name) if relation else None


def _is(acted_on: Relation | None, diag: Diagnostics) -> bool:
    """Return whether it is the caller's own row: a trigger or a function writes others, too."""
    return _home(acted_on) == (diag.schema_name, diag.table_name)


def _readable(relation: Relation | None, columns: tuple[str, ...]) -> bool:
    return relation is not None and all(relation.columns[name].selectable for name in columns)


def _single(columns: list[str] | None) -> str | None:
    return columns[0] if columns and len(columns) == 1 else None


def _listed(columns: list[str] | None) -> str:
    return ", ".join(f'"{column}"' for column in columns or ())
