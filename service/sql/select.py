"""
SELECT: rows with keyset paging, groups and the measures over them, and what is related to rows.

An embed is one lateral subselect, giving one JSON value. A JSON document keeps what belongs together in
one column whatever its depth, so that a call stays one statement. Values that JSON cannot hold in their
wire form are text in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.catalog import Catalog, Relation
from service.datatypes import UNPLAIN
from service.plan.aggregate_plan import AggregatePlan
from service.plan.conditions import SortKey
from service.plan.plans import (
    Groups,
    Lock,
    Output,
    PlannedAfter,
    PlannedEmbed,
    PlannedReturning,
    ReadPlan,
    names_of,
    truncated,
)
from service.plan.uses import is_pure, is_settled
from service.plan.watch_plan import Way, array_bound
from service.sql.expressions import (
    aliased,
    cast,
    condition,
    expression,
    json_text,
    json_value,
    limit_offset,
    measure_value,
    operator,
    order_by,
    output_list,
    parameter,
    related_rows,
    relation_name,
    where_clause,
)
from service.sql.measured import join_measures
from service.sql.new_values import computed_value
from service.sql.saved_rows import ORDER, row_source, save_function_rows
from service.sql.statement import AND, COMMA, EMPTY, Parameter, Statement, build_statement


def select(plan: ReadPlan) -> Statement:
    """
    Build a read.

    Where the plan pages by keyset, the sort keys of each row follow its outputs as text,
    for the `next` token; `columns` names the outputs alone.
    """
    rows = rows_of(plan, plan.json)
    if plan.json and plan.distinct is True:  # values of type json have no equality, and no order
        names = [Identifier("j", truncated(output.name)) for output in plan.outputs]
        types = [output.expression.type for output in plan.outputs]
        rows = SQL("SELECT {columns} FROM ({rows}) AS j").format(
            columns=COMMA.join(map(json_text, names, types)), rows=rows_of(plan)
        )
    columns, embeds = answer_of(plan)
    return build_statement(
        plan.name,
        rows,
        save_function_rows(plan.call, plan.relation) if plan.call and plan.afterwards else EMPTY,
        columns=columns,
        embeds=embeds,
        pure=is_pure(plan),
        settled=is_settled(plan),
        backwards=plan.backwards,
        plain=plan.json or not (embeds or any(map(_has_parts, plan.outputs))),
    )


def _has_parts(output: Output) -> bool:
    """Return whether values may have others inside."""
    type = output.expression.type
    return type.kind not in ("base", "enum") or type.form in UNPLAIN


def count(plan: ReadPlan, limit: int | None = None) -> Statement:
    """
    Build the query how many rows a read returns.

    Args:
        plan: What to count.
        limit: Stop counting there.
    """
    stop = SQL("" if limit is None else f" LIMIT {limit:d}")
    return _about(plan, "SELECT pg_catalog.count(*) FROM ({rows}{limit}) AS counted", stop)


def exists(plan: ReadPlan) -> Statement:
    """Build the query whether a read returns any row."""
    return _about(plan, "SELECT EXISTS ({rows})")


def estimate(plan: ReadPlan) -> Statement:
    """Build the query how many rows the planner expects; it answers one JSON document."""
    return _about(plan, "EXPLAIN (FORMAT JSON) {rows}")


def answer_of(
    plan: ReadPlan | PlannedReturning,
) -> tuple[tuple[str, ...], tuple[PlannedEmbed, ...]]:
    """Return the names of an answer's columns, and the embeds among them that are to be read."""
    if plan.json:
        return names_of(plan.outputs, plan.embeds), ()
    names = (*(each.name for each in plan.outputs), *(each.key for each in plan.embeds))
    return names, plan.embeds


def _about(plan: ReadPlan, template: str, limit: Composable = EMPTY) -> Statement:
    statement = SQL(template).format(rows=rows_of(plan), limit=limit)
    return build_statement(plan.name, statement, columns=("answer",), pure=is_pure(plan))


def rows_of(plan: ReadPlan, json: bool = False) -> Composable:
    """Build the query of a read."""
    plan, measures = join_measures(plan)
    distinct: Composable = SQL("DISTINCT " if plan.distinct else "")
    if isinstance(plan.distinct, tuple) and plan.distinct:
        keys = COMMA.join(map(expression, plan.distinct))
        distinct = SQL("DISTINCT ON ({keys}) ").format(keys=keys)
    columns = [column_list(plan.outputs, plan.embeds, json)] if plan.outputs or plan.embeds else []
    if plan.by_keys:
        columns.append(ORDER)
    if plan.keyset:
        columns += [cast(expression(key.expression), "text") for key in plan.order]
    columns += map(expression, plan.keys)
    columns += [cast(computed_value(each), each.column.declared) for each in plan.computed]
    # DISTINCT has rows sorted by nothing but what is selected.
    last = ORDER if plan.afterwards and not plan.distinct else None
    return SQL(
        "SELECT {distinct}{columns} FROM {source}{measures}{embeds}{where}{order}{page}{lock}"
    ).format(
        distinct=distinct,
        columns=COMMA.join(columns),
        source=_by_keys(plan) if plan.by_keys else row_source(plan.relation, plan.call, plan.afterwards),
        measures=measures,
        embeds=embed_joins(plan.embeds, json),
        where=_where(plan),
        order=order_by(plan.order, last),
        page=limit_offset(plan.limit, plan.offset),
        lock=row_lock(plan.relation, plan.lock) if plan.lock else EMPTY,
    )  # fmt: skip


def row_lock(relation: Relation, lock: Lock) -> Composable:
    """Build the lock on the rows "t" that are read, where PostgreSQL has one."""
    if not relation.auto_updatable:
        # What triggers write may be an outer join or groups: refused, wherever the view is locked.
        return EMPTY
    strength = "UPDATE" if lock.key else "NO KEY UPDATE"
    # OF: the embeds are outer joins, whose nullable side PostgreSQL refuses to lock.
    return SQL(f' FOR {strength} OF "t"{" SKIP LOCKED" if lock.skip_locked else ""}')


def _by_keys(plan: ReadPlan) -> Composable:
    """Build what the FROM clause reads of rows by keys: the keys, numbered as "w", and the rows."""
    lists, equal = [], []
    for at, test in enumerate(plan.by_keys):
        name = Identifier("w", f"k{at}")
        value = name if test.candidate is None else cast(name, test.candidate.sql)
        lists.append(SQL("pg_catalog.unnest({list})").format(list=parameter(test.right)))
        equal.append(
            SQL("{column} {equal} {value}").format(
                column=expression(test.left), equal=operator(test.operator), value=value
            )
        )
    names = [Identifier(f"k{at}") for at in range(len(lists))]
    # Numbered, since a filter by the keys would lose their order, and which of them have no row.
    return SQL(
        'ROWS FROM ({lists}) WITH ORDINALITY AS "w" ({names}) JOIN {rows} ON {equal}'
    ).format(
        lists=COMMA.join(lists),
        names=COMMA.join([*names, Identifier("n")]),
        rows=row_source(plan.relation),
        equal=AND.join(equal),
    )  # fmt: skip


def _where(plan: ReadPlan) -> Composable:
    if plan.after is None:
        return where_clause(plan.where)
    after = _after(plan.after, plan.order)
    return SQL(" WHERE {}").format(
        AND.join([condition(plan.where), after] if plan.where is not None else [after])
    )


def _after(page: PlannedAfter, keys: Sequence[SortKey]) -> Composable:
    """
    Build the condition that a row comes after the end of a page.

    Where all keys run the same way and none can be null, one row comparison says it, and
    an index over the keys answers it. Else it is spelled key by key.
    """
    values = [expression(key.expression) for key in keys]
    ways = {key.descending for key in keys}
    nullable = any(key.expression.nullable for key in keys)
    if len(ways) == 1 and not nullable and len({*page.beyond}) == 1:
        return SQL("({keys}) {beyond} ({end})").format(
            keys=COMMA.join(values),
            beyond=operator(page.beyond[0]),
            end=COMMA.join(map(Parameter, page.operands)),
        )
    tied = [_is_tied(key, values[at], page, at) for at, key in enumerate(keys)]
    ways_beyond = [
        AND.join([*tied[:at], _is_beyond(key, values[at], page, at)]) for at, key in enumerate(keys)
    ]
    return SQL("({})").format(SQL(" OR ").join(SQL("({})").format(each) for each in ways_beyond))


def _is_tied(key: SortKey, value: Composable, page: PlannedAfter, at: int) -> Composable:
    if page.nulls[at]:
        return _null(key, value)
    end = Parameter(page.operands[at])
    return SQL("{key} {equal} {end}").format(key=value, equal=operator(page.equal[at]), end=end)


def _is_beyond(key: SortKey, value: Composable, page: PlannedAfter, at: int) -> Composable:
    if page.nulls[at]:
        return SQL("false") if key.nulls == "last" else _null(key, value, negated=True)
    beyond = SQL("{key} {beyond} {end}").format(
        key=value, beyond=operator(page.beyond[at]), end=Parameter(page.operands[at])
    )
    if key.nulls == "last" and key.expression.nullable:
        return SQL("({} OR {})").format(beyond, _null(key, value))
    return SQL("({})").format(beyond)


def _null(key: SortKey, value: Composable, negated: bool = False) -> Composable:
    """Return whether a sort key is null, as ORDER BY takes it."""
    # A row whose columns are all null IS NULL, and is sorted as the value that it is.
    if key.expression.type.kind in ("composite", "domain"):
        test = "{} IS DISTINCT FROM NULL" if negated else "{} IS NOT DISTINCT FROM NULL"
        return SQL(test).format(value)
    return SQL("{} IS NOT NULL" if negated else "{} IS NULL").format(value)


def column_list(
    outputs: Sequence[Output], embeds: Sequence[PlannedEmbed], json: bool = False
) -> Composable:
    """
    Build the select list of an answer, embeds last.

    Args:
        outputs: Of each row.
        embeds: Of each row.
        json: Whether each column is to be the text of its JSON; without names, then.
    """
    if json:
        values = [json_text(expression(each.expression), each.expression.type) for each in outputs]
        return COMMA.join([*values, *(cast(each, "text") for each in _json_of(embeds))])
    found = [output_list(outputs)] if outputs else []
    if embeds:  # as text, so that they are measured before they are read
        found.append(aliased((cast(_value(each), "text"), each.key) for each in embeds))
    return COMMA.join(found)


def embed_joins(embeds: Sequence[PlannedEmbed], json: bool = False) -> Composable:
    """Build the joins that make the embeds; `json` where nobody reads them on the way."""
    # Each aggregates its own rows: joined as they are, those of two embeds would multiply each other.
    return Composed(_join(embed, json) for embed in embeds)


def _join(embed: PlannedEmbed, json: bool) -> Composable:
    inner = [(_output(each, json), each.name) for each in embed.outputs]
    if json:
        inner += zip(_json_of(embed.embeds), names_of((), embed.embeds), strict=True)
    else:
        inner += [(_value(each), each.key) for each in embed.embeds]
    rows = related_rows(embed.link, embed.where, embed_joins(embed.embeds, json))
    if embed.grouped is not None:
        rows = SQL("({groups}) AS {alias}").format(
            groups=grouped(embed.grouped, rows), alias=Identifier(embed.grouped.source)
        )
    # "r".* and not "r", which would mean a column of that name
    return SQL(
        ' LEFT JOIN LATERAL (SELECT pg_catalog.{function}("r".*) AS "v"'
        ' FROM (SELECT {columns} FROM {rows}{order}{one}{page}) AS "r") AS {alias} ON true'
    ).format(
        function=SQL("json_agg" if embed.many else "row_to_json"),
        columns=aliased(inner),
        rows=rows,
        order=order_by(embed.order),
        # A second match, where no constraint forbids one, would double the row around it.
        one=SQL("" if embed.many or embed.limit else " LIMIT 1"),
        page=limit_offset(embed.limit, embed.offset),
        alias=Identifier(_alias(embed)),
    )


def _value(embed: PlannedEmbed) -> Composable:
    """Build the JSON document of an embed: NULL for no row."""
    value = Identifier(_alias(embed), "v")
    # json_agg over no rows gives NULL.
    return SQL("coalesce({value}, '[]')").format(value=value) if embed.many else value


def _json_of(embeds: Sequence[PlannedEmbed]) -> Iterator[Composable]:
    """Build the JSON of embeds, of those that are spread a value for each of their columns."""
    for embed in embeds:
        value = Identifier(_alias(embed), "v")
        if not embed.spread:
            none = "[]" if embed.many else "null"
            yield SQL("coalesce({value}, {none})").format(value=value, none=Literal(none))
            continue
        template = (
            "coalesce((SELECT pg_catalog.json_agg(pg_catalog.json_extract_path(row.value, {key}))"
            " FROM pg_catalog.json_array_elements({value}) AS row), '[]')"
            if embed.many
            else "coalesce(pg_catalog.json_extract_path({value}, {key}), 'null')"
        )
        for name in embed.columns:
            # The JSON has names as PostgreSQL keeps them, cut after 63 bytes.
            yield SQL(template).format(value=value, key=Literal(truncated(name)))


def _output(output: Output, json: bool) -> Composable:
    value = expression(output.expression)
    if json:
        return json_value(value, output.expression.type)
    return cast(value, "text") if output.text else value


def _alias(embed: PlannedEmbed) -> str:
    return f"e{embed.link.source}"


def aggregate(plan: AggregatePlan) -> Statement:
    """Build an aggregate: the groups, and a selection of them."""
    outputs = plan.grouped.outputs
    values = [(expression(each.expression), each.expression.type) for each in outputs]
    statement = SQL(
        'SELECT {columns} FROM ({groups}) AS "t"{having}{order}{page}'
    ).format(
        columns=COMMA.join(json_text(*each) for each in values) if plan.json else output_list(outputs),
        groups=grouped(
            plan.grouped,
            Composed([row_source(plan.relation, plan.call, plan.afterwards),
                      where_clause(plan.where)]),
        ),
        having=where_clause(plan.having),
        order=order_by(plan.grouped.order),
        page=limit_offset(plan.limit, plan.offset),
    )  # fmt: skip
    return build_statement(
        plan.name,
        statement,
        save_function_rows(plan.call, plan.relation) if plan.call and plan.afterwards else EMPTY,
        columns=tuple(output.name for output in outputs),
        pure=is_pure(plan),
    )


def grouped(groups: Groups, rows: Composable) -> Composable:
    """
    Build groups of rows: what they have in common, then the measures.

    Groups stand by position: a parameter spelled twice would be two different ones for PostgreSQL.

    Args:
        groups: Of them.
        rows: What the FROM clause reads, with the WHERE clause.
    """
    items = [output_list([each]) for each in groups.groups]
    by = SQL(" GROUP BY " + ", ".join(f"{at}" for at in range(1, len(items) + 1)))
    measures = [aliased([(measure_value(each), each.name)]) for each in groups.measures]
    return SQL("SELECT {items} FROM {rows}{by}").format(
        items=COMMA.join([*items, *measures]),
        rows=rows,
        by=by if items else EMPTY,
    )


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
