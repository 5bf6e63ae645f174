"""
FROM items: a relation, a function call, or rows that the previous statement of the same message saved.

Saved rows are in a setting that is local to the transaction, as JSON of PostgreSQL's text of each value.
A setting needs no temporary table and no round trip, and no other transaction can see it.
"""

from __future__ import annotations

from collections.abc import Iterable

from psycopg2.sql import SQL, Composable, Identifier, Literal

from service.catalog import Relation
from service.plan.plans import AggregatePlan, CallPlan, FunctionCall, ReadPlan, Reread
from service.sql.expressions import (
    NAME,
    aliased,
    all_equal,
    argument,
    cast,
    json_text,
    relation_name,
)
from service.sql.statement import COMMA, EMPTY, MISSED, Statement, build_statement, quoted


def call(plan: CallPlan, limit: int) -> Statement:
    """
    Build the call of a function or procedure.

    Args:
        plan: The call's plan.
        limit: Maximum number of rows to return.
    """
    return build_statement(
        plan.name,
        _call_query(plan, limit),
        columns=plan.columns,
        writes=not plan.call.function.reads,
        untyped=plan.untyped and not plan.json,
        scalar=plan.columns == ("answer",),
    )


def function_source(found: FunctionCall) -> Composable:
    """Build a function call as a FROM item, with the alias "t"."""
    names = SQL(" ({})").format(COMMA.join(map(Identifier, found.names))) if found.names else EMPTY
    return SQL('{function} AS "t"{names}').format(function=_invocation(found), names=names)


def _call_query(plan: CallPlan, limit: int) -> Composable:
    function = _invocation(plan.call)
    # CALL is no expression: neither LIMIT nor to_json can be applied to it.
    if plan.call.function.procedure:
        return SQL("CALL {function}").format(function=function)
    stop = SQL(f" LIMIT {limit:d}" if plan.rows else "")
    if plan.untyped or (not plan.rows and len(plan.columns) == 1):
        if plan.json:
            value = json_text(function, plan.types[0])
        else:
            if plan.untyped:  # as JSON text, because a record may have two columns of one name
                function = SQL("CAST(pg_catalog.to_json({}) AS text)").format(function)
            value = aliased([(function, plan.columns[0])])
        return SQL("SELECT {value}{limit}").format(value=value, limit=stop)
    columns: list[Composable] = [Identifier(NAME, name) for name in plan.columns]
    if plan.json:
        columns = list(map(json_text, columns, plan.types))
    return SQL("SELECT {columns} FROM {function}{limit}").format(
        columns=COMMA.join(columns), function=function_source(plan.call), limit=stop
    )


def _invocation(found: FunctionCall) -> Composable:
    """Build a function call with its arguments."""
    return SQL("{function}({arguments})").format(
        function=Identifier(found.function.schema, found.function.name),
        arguments=COMMA.join(map(argument, found.arguments)),
    )


ORDER = Identifier("w", "n")
"""Last sort key, which keeps rows in the order in which they were saved."""

WRITTEN = SQL("CAST(pg_catalog.current_setting('rowcast.written') AS json)")
"""The rows that the previous statement saved."""


def save_rows(rows: Composable, must_write: bool = False, numbered: bool = False) -> Composable:
    """
    Build a statement that saves the rows which another statement returns.

    Args:
        rows: A statement that returns `saved_values` of each row.
        must_write: Whether the statement that reads the saved rows has to fail if there are none.
        numbered: Whether `rows` has a second column, the number of each row, by which they are sorted.
    """
    saved = SQL('coalesce(CAST(pg_catalog.json_agg("w"."v"{order}) AS text), {none})').format(
        order=SQL(' ORDER BY "w"."n"' if numbered else ""),
        none=Literal(MISSED if must_write else "[]"),  # MISSED is no JSON, so that reading it fails
    )
    return aggregated(rows, ["v", "n"] if numbered else ["v"], [save_value("written", saved)])


def save_value(name: str, value: Composable) -> Composable:
    """Build the call that sets a setting to a text for the transaction; it never returns null."""
    return SQL("pg_catalog.set_config({name}, {value}, true)").format(
        name=Literal(f"rowcast.{name}"), value=value
    )


def aggregated(rows: Composable, names: Iterable[str], effects: Iterable[Composable]) -> Composable:
    """
    Build a statement that evaluates aggregates of the rows of another one, and returns no row.

    Args:
        rows: A statement that returns rows.
        names: Names for its columns in "w".
        effects: Aggregates that are never null, so that OR evaluates all of them, in this order.
    """
    return SQL('WITH "w" ({columns}) AS ({rows}) SELECT FROM "w" HAVING {effects}; ').format(
        columns=COMMA.join(map(Identifier, names)),
        rows=rows,
        effects=SQL(" OR ").join(SQL("{} IS NULL").format(each) for each in effects),
    )


def saved_values(reread: Reread, relation: Relation) -> Composable:
    """Build the array of the values that are saved of the row "t"."""
    found: list[Composable] = [Identifier(NAME, each.name) for each in reread.saved]
    if reread.row:
        found.append(_row_value(NAME, relation))
    return SQL("CAST(ARRAY[{values}] AS text[])").format(
        values=COMMA.join(cast(each, "text") for each in found)
    )


def saved_rows(reread: Reread, relation: Relation, written: Composable = WRITTEN) -> Composable:
    """
    Build the FROM item of saved rows, which are read again as "t".

    Args:
        reread: Which values were saved, and how rows are found by them.
        relation: The relation of the rows.
        written: The saved rows, as JSON.
    """
    saved = _saved_source(written)
    if not reread.fallback:
        return SQL('{saved} JOIN {relation} AS "t" ON {key}').format(
            saved=saved, relation=relation_name(relation), key=_has_key(reread, NAME)
        )
    row = [(reread.row, row_type(relation))] if reread.row else []
    values = [(each.name, each.type) for each in reread.saved] + row
    # Second in a UNION ALL under LIMIT 1: used only if the row cannot be read from the relation.
    as_written = SQL("SELECT {values} LIMIT 1").format(
        values=aliased((_saved(at, type), name) for at, (name, type) in enumerate(values))
    )
    as_it_is = EMPTY
    if reread.equal:
        names: list[Composable] = [Identifier("r", each.name) for each in reread.saved]
        if reread.row:
            names.append(aliased([(_row_value("r", relation), reread.row)]))
        as_it_is = SQL(
            'SELECT {values} FROM {relation} AS "r" WHERE {key} UNION ALL '
        ).format(
            values=COMMA.join(names), relation=relation_name(relation), key=_has_key(reread, "r")
        )  # fmt: skip
    return SQL('{saved} CROSS JOIN LATERAL ({as_it_is}{as_written}) AS "t"').format(
        saved=saved, as_it_is=as_it_is, as_written=as_written
    )


def save_function_rows(plan: ReadPlan | AggregatePlan) -> Composable:
    """Build the statement that saves the rows of a function, each as one composite value, or nothing."""
    if plan.call is None or not plan.afterwards:
        return EMPTY
    return save_rows(
        SQL("SELECT CAST(ARRAY[{row}] AS text[]) FROM {function}").format(
            row=cast(_row_value(NAME, plan.relation), "text"), function=function_source(plan.call)
        )
    )


def row_source(plan: ReadPlan | AggregatePlan) -> Composable:
    """Build the FROM item of a plan's rows: a relation, a function, or what `save_function_rows` saved."""
    if plan.afterwards:
        return SQL('{saved} CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[{row}]) AS "t"').format(
            saved=_saved_source(WRITTEN), row=_saved(0, row_type(plan.relation))
        )
    if plan.call is not None:
        return function_source(plan.call)
    return SQL('{relation} AS "t"').format(relation=relation_name(plan.relation))


def row_type(relation: Relation) -> str:
    """Return the name of the composite type of a relation's rows."""
    return f"{quoted(relation.schema)}.{quoted(relation.name)}"


def _saved_source(written: Composable) -> Composable:
    return SQL(
        'pg_catalog.json_array_elements({written}) WITH ORDINALITY AS "w" ("v", "n")'
    ).format(written=written)


def _has_key(reread: Reread, source: str) -> Composable:
    return all_equal(
        (Identifier(source, each.name), equal, _saved(at, each.type))
        # Not strict: further values may be saved behind the key.
        for at, (equal, each) in enumerate(zip(reread.equal, reread.saved, strict=False))
    )


def _saved(at: int, type: str) -> Composable:
    return cast(SQL(f'"w"."v" OPERATOR(pg_catalog.->>) {at:d}'), type)


def _row_value(row: str, relation: Relation) -> Composable:
    return cast(SQL("{row}.*").format(row=Identifier(row)), row_type(relation))
