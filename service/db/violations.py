"""
SQLSTATE class 23: what a constraint said, in terms of the catalog.

PostgreSQL's own message names tables that may be hidden, and its detail shows whole rows
("Failing row contains …") or other people's keys. So both are worded here anew; the detail
is passed on only where it shows the caller's own key.
"""

from __future__ import annotations

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


class Violated(NamedTuple):
    """
    What PostgreSQL says of a violated constraint, of partitions in the names of their table.

    Args:
        home: Schema and name of the table; schema and name of the domain, if it is a domain's.
        constraint: Its name, where it was declared.
        column: Of NOT NULL.
        detail: As PostgreSQL words it.
        domain: Whether it is a domain's.
        sqlstate: Of class 23, or 44000.
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
    Return the error of a violated constraint; None if the SQLSTATE is not one.

    Args:
        error: Of class 23, or 44000.
        catalog: What is served; nothing else is named.
        acted_on: The relation of the call, if it is of one.
    """
    make = _KINDS.get(error.pgcode or "")
    if make is None:
        return None
    said = _said(error, catalog)
    relation = None if catalog is None else catalog.relations.get(said.home)
    found = make(said, relation, acted_on)
    if said.domain and catalog is not None and acted_on is not None:
        _name_column(found, error, said, catalog, acted_on)
    return found


def _said(error: psycopg2.Error, catalog: Catalog | None) -> Violated:
    diag = error.diag
    table, name, detail = diag.table_name or "", diag.constraint_name, diag.message_detail
    home = (diag.schema_name or "", table or diag.datatype_name or "")
    if catalog is not None and table:
        name = catalog.constraint_copies.get((*home, name or ""), name)
        home = catalog.partitions.get(home, home)
        before, found, after = (detail or "").rpartition(f'"{table}"')
        if found and ")" not in after:  # behind the key in parentheses, which may be any text
            detail = f'{before}"{home[1]}"{after}'
    return Violated(home, name, diag.column_name, detail, not table, error.pgcode or "")


def _name_column(
    found: ConstraintViolation,
    error: psycopg2.Error,
    said: Violated,
    catalog: Catalog,
    acted_on: Relation,
) -> None:
    """Add the one column written that holds values of the domain; PostgreSQL names none."""
    given = rows_of(error, catalog)
    written = acted_on.columns if given is None else {n for row in given.rows for n in row.columns}
    names = [
        name
        for name in written
        if any(
            (each.schema, each.name) == said.home
            for each in types_within(catalog, acted_on.columns[name].type)
        )
    ]
    if len(names) == 1 and error.diag.context is None:
        found.message = f"{_listed(names)} does not satisfy a check of the database"
        found.details.setdefault("column", names[0])
        found.details.setdefault("columns", names)


def _details(said: Violated, relation: Relation | None) -> dict[str, Any]:
    known = said.constraint in (relation.constraints if relation else ())
    return {
        "sqlstate": said.sqlstate,
        "relation": relation.name if relation else None,
        # A domain's constraint is its type's, and so of no relation.
        "constraint": said.constraint if known or said.domain else None,
    }


def _unique(
    said: Violated, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.unique_keys if relation else ()
    key = next((each for each in keys if each.name == said.constraint), None)
    columns = list(key.columns) if key else None
    shown = _is(acted_on, said) and key is not None and _readable(relation, key.columns)
    which = f" of {_listed(columns)}" if columns else ""
    return UniqueViolation(
        f"there is a row with the same value{which} already",
        columns=columns,
        column=_single(columns),
        detail=said.detail if shown else None,
        **_details(said, relation),
    )


def _foreign_key(
    said: Violated, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.foreign_keys if relation else ()
    key = next((each for each in keys if each.name == said.constraint), None)
    columns = list(key.columns) if key else None
    message = "a reference between rows would no longer hold"
    if relation is not None and key is not None:
        here, home = _home(acted_on), _home(relation)
        detail = said.detail or ""
        missing = "not present in table" in detail
        # a server of another language says it otherwise: then the call tells
        if "referenced from table" in detail or (not missing and home != here == key.target):
            message = f'rows of "{relation.name}" still refer to it'
        elif missing or home == here != key.target:
            message = f'{_listed(columns)} refers to no row of "{key.target[1]}"'
    own = _is(acted_on, said) or (key is not None and _home(acted_on) == key.target)
    shown = own and key is not None and _readable(relation, key.columns)
    return ForeignKeyViolation(
        message,
        columns=columns,
        column=_single(columns),
        detail=said.detail if shown else None,
        **_details(said, relation),
    )


def _not_null(
    said: Violated, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    known = relation is not None and said.column in relation.columns
    column = said.column if known else None
    return NotNullViolation(
        f'"{column}" must not be null' if column else "a value that is required is missing",
        columns=[column] if column else None,
        column=column,
        **_details(said, relation),
    )


def _check(
    said: Violated, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(said, relation)
    if said.sqlstate == "44000":
        message = "the row would not belong to the view it is written through"
    elif said.constraint is None:
        message = "no part of the relation takes such a row"  # no partition fits
    else:
        message = f"{_listed(columns) or 'a value'} does not satisfy a check of the database"
    return CheckViolation(
        message, columns=columns, column=_single(columns), **_details(said, relation)
    )


def _exclusion(
    said: Violated, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(said, relation)
    which = f" in {_listed(columns)}" if columns else ""
    return ExclusionViolation(
        f"the row conflicts with another one{which}",
        columns=columns,
        column=_single(columns),
        **_details(said, relation),
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


def _checked(said: Violated, relation: Relation | None) -> list[str] | None:
    known = relation.constraints if relation else {}
    return list(known.get(said.constraint or "", ())) or None


def _home(relation: Relation | None) -> tuple[str, str] | None:
    return (relation.schema, relation.name) if relation else None


def _is(acted_on: Relation | None, said: Violated) -> bool:
    """Return whether it is the caller's own row: a trigger or a function writes others, too."""
    return _home(acted_on) == said.home


def _readable(relation: Relation | None, columns: tuple[str, ...]) -> bool:
    return relation is not None and all(relation.columns[name].selectable for name in columns)


def _single(columns: list[str] | None) -> str | None:
    return columns[0] if columns and len(columns) == 1 else None


def _listed(columns: list[str] | None) -> str:
    return ", ".join(f'"{column}"' for column in columns or ())
