"""
New values of columns, some of which are computed from the values of the existing row.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.plan.conditions import Bound
from service.plan.plans import CaseValue, Computed, Part, PathStep, ValuesColumn
from service.sql.expressions import NAME, cast, operator
from service.sql.statement import COMMA, EMPTY, Mark, Parameter

GIVEN = "p"
"""Alias of the source that an update is joined to: the rows picked by a query, or given in the call."""

JSON_KIND = "coalesce(pg_catalog.jsonb_typeof({value}), 'null')"
IS_NULL = f"{JSON_KIND} OPERATOR(pg_catalog.=) 'null'"
REFUSALS = {
    "object": "pg_catalog.to_jsonb(ARRAY(SELECT pg_catalog.jsonb_object_keys({value})))",
    "array": "pg_catalog.to_jsonb(pg_catalog.jsonb_array_length({value}))",
}
"""
By kind, an expression that fails for JSON of another kind, with an error that says so.

`||` would not fail: it makes arrays of operands that do not match.
"""
NULL_STAYS = frozenset(["add", "multiply", "remove"])
"""Operations whose result is null if the value is null."""


def new_value(value: Bound | Computed | ValuesColumn | CaseValue | None) -> Composable:
    """Build the new value of a column of the row "t"."""
    if value is None:
        return SQL("DEFAULT")
    if isinstance(value, Computed):
        return computed_value(value)
    if isinstance(value, CaseValue):
        # An UPDATE has one SET for a column, although each row may change it in its own way. A value of the
        # row selects the way, so that the text grows with the number of ways, not of rows.
        ways = [
            SQL("WHEN {selector} OPERATOR(pg_catalog.=) {number} THEN {value}").format(
                selector=_operand(value.selector), number=SQL(f"{at:d}"), value=new_value(each)
            )
            for at, each in enumerate(value.ways, 1)
        ]
        return SQL("CASE {ways} ELSE {old} END").format(
            ways=SQL(" ").join(ways), old=Identifier(NAME, value.column.name)
        )
    return _operand(value)


def _operand(value: Bound | ValuesColumn) -> Composable:
    return Parameter(value) if isinstance(value, Bound) else Identifier(GIVEN, value.name)


def computed_value(value: Computed) -> Composable:
    """Build a value that is computed from the column of the row "t"."""
    found: Composable = Identifier(NAME, value.column.name)
    if value.document and (value.type.name == "json" or value.column.type != value.type.oid):
        found = cast(found, "jsonb")
    for each in value.parts:
        made = _document(found, each, each.steps) if value.document else _plain(found, each)
        found = Composed([Mark(each.path, value.column.name, cast=True), made])
    return cast(found, "json") if value.type.name == "json" else found


def _plain(value: Composable, part: Part) -> Composable:
    """Build a computed number, time or array."""
    others = list(map(_operand, part.operands))
    if part.computing == "remove":
        for each in others:
            value = SQL("pg_catalog.array_remove({array}, {value})").format(array=value, value=each)
        return value
    if part.operator is not None:
        return SQL("{value} {operator} {other}").format(
            value=value, operator=operator(part.operator), other=others[0]
        )
    pair = [value, *others] if part.computing == "append" else [*others, value]
    return SQL("pg_catalog.array_cat({arrays})").format(arrays=COMMA.join(pair))


def _document(
    document: Composable, part: Part, steps: Sequence[PathStep], depth: int = 1
) -> Composable:
    """
    Build a jsonb document with a part of it changed.

    Each step of the path is a subselect, which names the document that it changes once, because changes of
    one column nest. OFFSET 0 keeps the planner from pulling the subselects up: it would repeat the
    document wherever its name stands, and eight paths would take more than four seconds.
    """
    if not steps and not part.computing:
        # For a NULL value, jsonb_set would return NULL in place of the document.
        return SQL("coalesce({value}, 'null')").format(value=_operand(part.operands[0]))
    value = Identifier(f"d{depth}", "v")
    if steps:
        first, *others = steps
        path = SQL("ARRAY[{key}]").format(key=Parameter(first.key))
        # #> takes a path: its "0" is a position in an array and a key of an object, as the data has it.
        current = SQL("{value} OPERATOR(pg_catalog.#>) {path}").format(value=value, path=path)
        null_stays = part.computing in NULL_STAYS
        body: Composable = SQL(
            "pg_catalog.jsonb_set({document}, {path}, coalesce({new}, 'null'){only})"
        ).format(
            document=value if null_stays else _filled(value, "[]" if first.index else "{}"),
            path=path,
            new=_document(current, part, others, depth + 1),
            only=SQL(", false") if null_stays else EMPTY,
        )
        if null_stays:
            body = SQL(f"CASE WHEN {IS_NULL} THEN {{value}} ELSE {{body}} END").format(
                value=value, body=body
            )
    else:
        body = _changed(value, part)
    return SQL('(SELECT {body} FROM (SELECT {document} AS "v" OFFSET 0) AS {source})').format(
        body=body, document=document, source=Identifier(f"d{depth}")
    )


def _changed(value: Composable, part: Part) -> Composable:
    """Build the result of an operation on a JSON value."""
    other = _operand(part.operands[0])
    if part.computing in NULL_STAYS:
        current: Composable = SQL(
            f"CASE WHEN {JSON_KIND} OPERATOR(pg_catalog.<>) 'null' THEN {{value}} END"
        ).format(value=value)
        if part.operator is None:
            return SQL("{current} OPERATOR(pg_catalog.-) {keys}").format(
                current=current, keys=other
            )
        return SQL("pg_catalog.to_jsonb({current} {operator} {other})").format(
            current=cast(current, "numeric"), operator=operator(part.operator), other=other
        )
    current = (
        _filled(value, "{}", "object")
        if part.computing == "merge"
        else _filled(value, "[]", "array")
    )
    pair = [other, current] if part.computing == "prepend" else [current, other]
    return SQL(" OPERATOR(pg_catalog.||) ").join(pair)


def _filled(value: Composable, empty: str, kind: str = "") -> Composable:
    """Build a JSON value, or an empty one if it is null; the SQL fails if it is not of a given kind."""
    otherwise = (
        f"WHEN {JSON_KIND} OPERATOR(pg_catalog.=) '{kind}' THEN {{value}} ELSE {REFUSALS[kind]}"
        if kind
        else "ELSE {value}"
    )
    template = f"CASE WHEN {IS_NULL} THEN {{empty}} {otherwise} END"
    return SQL(template).format(value=value, empty=Literal(empty))
