"""
INSERT, UPDATE and DELETE, with ON CONFLICT and RETURNING; and the COPY of an import.

If each of several new rows has to be identified by its number, they are inserted by MERGE, whose RETURNING
(PostgreSQL 17 and later) can name columns of its source beside those of the target. RETURNING of an INSERT
has only columns of the target, and PostgreSQL does not guarantee the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.catalog import Relation
from service.datatypes import DOCUMENTS, UNPLAIN
from service.plan.plans import (
    BoolExpr,
    Bound,
    CallRows,
    ConflictUpdate,
    DeletePlan,
    InsertPlan,
    Lock,
    LockedRows,
    Output,
    PlannedConflict,
    PlannedReturning,
    Setting,
    UpdateJoin,
    UpdatePlan,
    is_pure,
    is_settled,
)
from service.plan.write_plan import ImportPlan
from service.sql.expressions import (
    GIVEN,
    NAME,
    aliased,
    all_equal,
    cast,
    condition,
    expression,
    json_text,
    new_value,
    order_by,
    relation_name,
    where_clause,
)
from service.sql.saved_rows import ORDER, WRITTEN, save_rows, saved_rows, saved_values
from service.sql.select import (
    answer_of,
    column_list,
    embed_joins,
    row_lock,
    rows_of,
)
from service.sql.statement import (
    COMMA,
    EMPTY,
    LARGE,
    MISSED,
    TRANSACTION,
    UNSEEN,
    Parameter,
    Statement,
    Unseen,
    build_statement,
    catalog_sql,
    render,
)

WritePlan = InsertPlan | UpdatePlan | DeletePlan
MANY_BYTES, MANY_COLUMNS = 2**16, 100
"""Size from which the texts of a row make it large; and maximum columns of a row that is not."""
NEW = "excluded"
"""PostgreSQL's name for the proposed row in ON CONFLICT DO UPDATE."""


def modify(plan: WritePlan) -> Statement:
    """Build a write whose rows are returned by RETURNING, or read again by a second statement."""
    returning, ahead, guard = plan.returning, EMPTY, ""
    numbered = _is_numbered(plan)
    if returning.reread is not None:
        values = [saved_values(returning.reread, plan.relation), *([ORDINAL] if numbered else [])]
        written = SQL("{write} RETURNING {values}").format(
            write=_write(plan), values=COMMA.join(values)
        )
        ahead = save_rows(written, returning.must_write, numbered)
        rows = reread_rows(plan.relation, returning)
        numbered = False  # the second statement sorts them
    elif returning.must_write:
        rows = _failing_without_row(plan)
    else:
        rows = _write(plan)
        numbers = [NUMBER] if isinstance(plan, InsertPlan) and plan.numbered else []
        columns = [*numbers]
        if returning.outputs:
            columns.append(column_list(returning.outputs, (), returning.json))
        columns += [TRANSACTION] if returning.receipt else []
        columns += [ORDINAL] if numbered and columns else []
        if columns:
            rows = SQL("{write} RETURNING {columns}").format(
                write=rows, columns=COMMA.join(columns)
            )
        guard = _guard(returning.outputs)
    names, embeds = answer_of(returning)
    settled = is_settled(plan)
    single = settled and not (returning.json or returning.receipt)
    single = single and all(map(_is_scalar_or_document, returning.outputs))
    statement = build_statement(
        plan.name,
        rows,
        ahead,
        columns=names,
        embeds=embeds,
        writes=True,
        receipt=returning.receipt,
        flagged=bool(returning.inner),
        must_write=returning.must_write,
        unseen=_unseen(plan),
        numbered=numbered and bool(returning.outputs),
        pure=is_pure(plan, plan.relation),
        settled=settled,
        types=tuple(each.expression.type.oid for each in returning.outputs) if single else (),
    )
    return replace(statement, guarded=statement.followed(guard)) if guard else statement


def _is_scalar_or_document(output: Output) -> bool:
    type = output.expression.type
    return type.kind in ("base", "enum") and type.form not in UNPLAIN - DOCUMENTS


def _guard(outputs: Sequence[Output]) -> str:
    """Build the column behind RETURNING's last that fails for a large row; "" if there can be none."""
    types = [each.expression.type for each in outputs]
    # The size of a record is more than its text: the answer has the names of its fields as well.
    if len(outputs) > MANY_COLUMNS or any(type.kind not in ("base", "enum") for type in types):
        return ""
    sizes = [
        SQL("coalesce(pg_catalog.octet_length({text}), 0)").format(
            text=cast(expression(each.expression), "text")
        )
        for each, type in zip(outputs, types, strict=True)
        if not type.data_type.short
    ]
    if not sizes:
        return ""
    sum = SQL(" OPERATOR(pg_catalog.+) ").join(sizes)
    # A CASE, not a constant, so that the cast of `LARGE` fails when it is run, not when it is parsed.
    guard = SQL(", CAST(CASE WHEN {sum} OPERATOR(pg_catalog.>) {most} THEN {large} END AS boolean)")
    parts = guard.format(sum=sum, most=SQL(f"{MANY_BYTES:d}"), large=Literal(LARGE))
    text, bounds, _ = render([parts])
    return "" if bounds else text


def _is_numbered(plan: WritePlan) -> bool:
    """Return whether the rows that come back have numbers, by which they are those of the call."""
    joined = plan.joined if isinstance(plan, UpdatePlan) else None
    return joined is not None and isinstance(joined.source, CallRows)


def _unseen(plan: WritePlan) -> Unseen:
    """Return why an upsert may meet a row that the caller does not see."""
    conflict = plan.conflict if isinstance(plan, InsertPlan) else None
    if conflict is None or conflict.guard is None:
        return ""
    return "left out" if plan.relation.kind == "view" else "late"


def on_conflict(conflict: PlannedConflict, relation: Relation) -> Composable:
    """Build the ON CONFLICT clause."""
    target = SQL("({columns})").format(columns=COMMA.join(map(Identifier, conflict.key)))
    action: Composable = SQL("NOTHING")
    if conflict.updates:
        new_values = [
            new_value(each.value) if isinstance(each, Setting) else _conflict_value(conflict, each)
            for each in conflict.updates
        ]
        where = where_clause(conflict.where)
        if conflict.guard is not None:
            new_values[0], where = _guarded(conflict, relation, new_values[0])
        settings = COMMA.join(
            SQL("{column} = {value}").format(column=Identifier(each.column.name), value=value)
            for each, value in zip(conflict.updates, new_values, strict=True)
        )
        action = SQL("UPDATE SET {settings}{where}").format(settings=settings, where=where)
    return SQL(" ON CONFLICT {target} DO {action}").format(
        target=catalog_sql(conflict.target.text) if conflict.target else target, action=action
    )


def _write(plan: WritePlan) -> Composable:
    relation = relation_name(plan.relation)
    if isinstance(plan, InsertPlan) and plan.numbered:
        return _merge(plan)
    if isinstance(plan, DeletePlan):
        return SQL('DELETE FROM {relation} AS "t"{where}').format(
            relation=relation, where=where_clause(plan.where)
        )
    if isinstance(plan, UpdatePlan):
        ahead, source, where = EMPTY, EMPTY, where_clause(plan.where)
        if plan.joined is not None:
            ahead = _with_clause(plan.joined)
            source = SQL(" FROM {source}").format(source=_source(plan.joined))
            where = SQL(" WHERE {key}").format(key=_has_joined_key(plan.joined))
        return SQL('{ahead}UPDATE {relation} AS "t" SET {settings}{source}{where}').format(
            ahead=ahead,
            relation=relation,
            settings=COMMA.join(
                SQL("{column} = {value}").format(
                    column=Identifier(each.column.name), value=new_value(each.value)
                )
                for each in plan.settings
            ),
            source=source,
            where=where,
        )
    template = 'INSERT INTO {relation} AS "t" ({columns}) VALUES {rows}{conflict}'
    if not plan.columns and len(plan.rows) == 1:
        template = 'INSERT INTO {relation} AS "t" DEFAULT VALUES{conflict}'
    elif not plan.columns:  # DEFAULT VALUES inserts one row only
        template = (
            'INSERT INTO {relation} AS "t"'
            " SELECT FROM pg_catalog.generate_series(1, {number}){conflict}"
        )
    return SQL(template).format(
        relation=relation,
        columns=COMMA.join(Identifier(column.name) for column in plan.columns),
        rows=COMMA.join(
            SQL("({values})").format(values=COMMA.join(map(new_value, row))) for row in plan.rows
        ),
        number=SQL(f"{len(plan.rows)}"),
        conflict=on_conflict(plan.conflict, plan.relation) if plan.conflict else EMPTY,
    )


def _failing_without_row(plan: WritePlan) -> Composable:
    """
    Build a write that fails if it writes no row, by casting `MISSED` to boolean.

    So the effects of an INSTEAD OF trigger that returns no row are rolled back.
    """
    outputs = plan.returning.outputs
    names = [f"c{at}" for at in range(len(outputs))]
    values = [
        (expression(each.expression), name) for each, name in zip(outputs, names, strict=True)
    ]
    found = [
        (json_text(value, each.expression.type) if plan.returning.json else value, each.name)
        for value, each in zip((Identifier("w", name) for name in names), outputs, strict=True)
    ]
    receipt = [TRANSACTION] if plan.returning.receipt else []
    return SQL(
        # The outer join returns a row even for no row, so that the cast is evaluated and fails.
        'WITH "w" AS ({write} RETURNING {values}) SELECT {columns} FROM (SELECT) AS "o"'
        ' LEFT JOIN "w" ON true WHERE CAST(coalesce("w"."v", {missed}) AS boolean)'
    ).format(
        write=_write(plan),
        # A text: beside a boolean, `MISSED` would be a boolean constant too, and fail when it is parsed.
        values=aliased([*values, (SQL("CAST('true' AS text)"), "v")]),
        columns=COMMA.join([*([aliased(found)] if found else []), *receipt]),
        missed=Literal(MISSED),
    )


def reread_rows(
    relation: Relation, returning: PlannedReturning, written: Composable = WRITTEN
) -> Composable:
    """Build the query that reads written rows again, by the values that were saved of them."""
    if returning.reread is None:
        raise TypeError("nothing is read again")
    columns = []
    if returning.outputs or returning.embeds:
        columns.append(column_list(returning.outputs, returning.embeds, returning.json))
    if returning.receipt:
        columns.append(TRANSACTION)
    # Not in a WHERE, because all written rows are counted, those that are not part of the answer too.
    if returning.inner:
        columns.append(condition(BoolExpr(False, returning.inner)))
    return SQL("SELECT {columns} FROM {rows}{embeds}{order}").format(
        columns=COMMA.join(columns),
        rows=saved_rows(returning.reread, relation, written),
        embeds=embed_joins(returning.embeds, returning.json),
        order=order_by(returning.order, ORDER),
    )


def _guarded(
    conflict: PlannedConflict, relation: Relation, value: Composable
) -> tuple[Composable, Composable]:
    """
    Build a new value and a WHERE clause that evaluate nothing of rows the caller may not see.

    PostgreSQL evaluates the WHERE of DO UPDATE before the row-level security policies, so whether the
    policies then refuse the row would reveal whether its values match. Therefore the condition is
    evaluated only for visible rows; a hidden row passes it, and the policies refuse it. A row that they
    do not refuse was inserted after the statement began, or is left out by a view. For such a row the
    new value, which is computed after the policies, fails as a cast of `UNSEEN`, so that nothing is
    written without the condition.
    """
    if conflict.guard is None:
        raise TypeError("there is nothing to guard by")
    same = (
        (Identifier("v", name), equal, Identifier(NAME, name)) for name, equal in conflict.guard
    )
    rows = SQL('FROM {relation} AS "v" WHERE {same}').format(
        relation=relation_name(relation),
        same=all_equal(same, conflict.nulls),
    )
    seen = SQL(
        "CASE WHEN CAST(coalesce((SELECT CAST('true' AS text) {rows}), {unseen}) AS boolean)"
        " THEN {value} END"
    ).format(rows=rows, unseen=Literal(UNSEEN), value=value)
    if conflict.where is None:
        return seen, EMPTY
    # CASE, because PostgreSQL may evaluate the terms of an OR in any order.
    where = SQL(" WHERE CASE WHEN EXISTS (SELECT {rows}) THEN {condition} ELSE true END").format(
        rows=rows, condition=condition(conflict.where)
    )
    return seen, where


def _conflict_value(conflict: PlannedConflict, update: ConflictUpdate) -> Composable:
    """
    Build the value that an existing row gets from the new row.

    The existing value stays if the new row has one of the keys `kept`, those of rows without the column.
    """
    name = update.column.name
    template = "CASE WHEN {kept} THEN {old} ELSE {new} END"
    return SQL(template if update.kept else "{new}").format(
        kept=SQL(" OR ").join(_has_key(conflict, key) for key in update.kept),
        old=Identifier(NAME, name),
        new=Identifier(NEW, name),
    )


def _has_key(conflict: PlannedConflict, key: Sequence[Bound]) -> Composable:
    parts = (
        (Identifier(NEW, name), equal, Parameter(value))
        for name, equal, value in zip(conflict.key, conflict.equal, key, strict=True)
    )
    # With NULLS NOT DISTINCT a key may be null, for which an equality operator returns null.
    return all_equal(parts, conflict.nulls)


NUMBER: Composable = Identifier("s", "n")
"""The number of a row among those of the statement, from 0."""


def _merge(plan: InsertPlan) -> Composable:
    """
    Build the MERGE that inserts new rows.

    Rows with the same columns share a WHEN clause, which leaves the other columns to their defaults.
    """
    # The text does not grow with a clause for each row: an application uses few sets of columns.
    shapes: dict[tuple[bool, ...], int] = {}
    rows = []
    for number, row in enumerate(plan.rows):
        shape = shapes.setdefault(tuple(value is not None for value in row), len(shapes))
        # Unlike in an INSERT, no column determines the types of VALUES here, so each value is cast. The
        # types have no modifiers, because a cast to varchar(n) would truncate instead of failing.
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


ORDINAL = Identifier(GIVEN, "n")
"""The number of a row of the call, from 0."""


def _with_clause(joined: UpdateJoin) -> Composable:
    """Build the WITH clause of an update: the query that picks the rows, if there is one."""
    if not isinstance(joined.source, LockedRows):
        return EMPTY
    # Not a subselect of the WHERE, which PostgreSQL could run again and get other rows from.
    return SQL("WITH {name} ({key}) AS ({rows}) ").format(
        name=Identifier(GIVEN),
        key=COMMA.join(Identifier(f"k{at}") for at in range(len(joined.key))),
        rows=rows_of(joined.source.read),
    )


def _source(joined: UpdateJoin) -> Composable:
    """Build the FROM item that an update is joined to."""
    if isinstance(joined.source, LockedRows):
        return Identifier(GIVEN)
    return SQL("(VALUES {rows}) AS {name} ({columns})").format(
        rows=_values(joined.source),
        name=Identifier(GIVEN),
        columns=COMMA.join(Identifier(each.name) for each, _ in joined.source.columns),
    )


def _has_joined_key(joined: UpdateJoin) -> Composable:
    """Build the condition that a row has the key of the row it is joined to."""
    return all_equal(
        (Identifier(NAME, name), equal, Identifier(GIVEN, f"k{at}"))
        for at, (name, equal) in enumerate(zip(joined.key, joined.equal, strict=True))
    )


def lock_rows(plan: UpdatePlan) -> Statement:
    """
    Build the query that reads the rows of an update in the order of the call, and locks them if
    PostgreSQL can lock rows of the relation.

    Behind the columns it returns the number of each row, and the new values of computed columns.
    """
    if plan.joined is None:
        raise TypeError("the rows are not those of a call")
    columns = tuple(each.name for each in plan.relation.columns.values() if each.selectable)
    new = [
        cast(new_value(each.value), each.column.declared) for each in plan.settings if each.computes
    ]
    rows = SQL(
        'SELECT {columns} FROM {source} JOIN {relation} AS "t" ON {key} ORDER BY {number}{lock}'
    ).format(
        columns=COMMA.join([*(Identifier(NAME, name) for name in columns), ORDINAL, *new]),
        source=_source(plan.joined),
        relation=relation_name(plan.relation),
        key=_has_joined_key(plan.joined),
        number=ORDINAL,
        lock=row_lock(plan.relation, Lock()),
    )
    return build_statement(plan.name, rows, columns=columns)


def _values(given: CallRows) -> Composable:
    """Build the rows of VALUES; casts in the first row determine the types of all rows."""
    found = []
    for at, row in enumerate(given.rows):
        cells: list[Composable] = []
        for value, (_, type) in zip(row, given.columns, strict=True):
            if isinstance(value, Bound):
                cells.append(Parameter(replace(value, cast=not at)))
            else:
                cell = SQL("NULL" if value is None else f"{value:d}")
                cells.append(cell if at else cast(cell, type.sql))
        found.append(SQL("({cells})").format(cells=COMMA.join(cells)))
    return COMMA.join(found)


STAGE = Identifier("pg_temp", "rowcast_import")
DEFAULT = r"\D"
"""Marker of a column's default in COPY's text; no value is equal to it, as backslashes are doubled."""


@dataclass(frozen=True, slots=True)
class CopyIn:
    """
    The statements of an import, none with parameters.

    Args:
        before: Creates the temporary table, if the import needs one.
        copy: The COPY.
        copy_with_defaults: The same with a marker for a column's default (PostgreSQL 16 and later).
        after: Inserts the rows of the temporary table into the relation.
        dropped: Drops the temporary table, for further imports in the same transaction.
    """

    before: str | None
    copy: str
    copy_with_defaults: str | None
    after: str | None = None
    dropped: str = "DROP TABLE pg_temp.rowcast_import"


def copy_in(plan: ImportPlan) -> CopyIn:
    """Build the statements of an import."""
    home, names = relation_name(plan.relation), [Identifier(each.name) for each in plan.columns]
    if not plan.staged:
        defaults = None if plan.csv else _copy(plan, home, DEFAULT)
        return CopyIn(None, _copy(plan, home), defaults)
    # The temporary table has no constraints: those of the relation are checked by the INSERT.
    stage = SQL("CREATE TEMPORARY TABLE rowcast_import ({columns}) ON COMMIT DROP").format(
        columns=COMMA.join(
            SQL("{name} {type}").format(name=name, type=catalog_sql(column.declared))
            for name, column in zip(names, plan.columns, strict=True)
        )
    )
    merge = SQL(
        'INSERT INTO {relation} AS "t" ({columns}) SELECT {columns} FROM {stage}{conflict}'
    ).format(
        relation=home,
        columns=COMMA.join(names),
        stage=STAGE,
        conflict=on_conflict(plan.conflict, plan.relation) if plan.conflict else EMPTY,
    )
    return CopyIn(_text(stage), _copy(plan, STAGE), None, _text(merge))


def _copy(plan: ImportPlan, target: Identifier, default: str | None = None) -> str:
    template = "COPY {target} ({columns}) FROM STDIN WITH (FORMAT {format}{header}{default})"
    return _text(
        SQL(template).format(
            target=target,
            columns=COMMA.join(Identifier(column.name) for column in plan.columns),
            format=SQL("csv" if plan.csv else "text"),
            header=SQL(", HEADER" if plan.header else ""),
            default=SQL(", DEFAULT {}").format(Literal(default)) if default else EMPTY,
        )
    )


def _text(statement: Composable) -> str:
    text, _, _ = render([statement])
    return text % ()  # undoes the doubling of percent signs, because COPY takes no parameters
