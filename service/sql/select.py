"""
SELECT: rows with keyset pagination and embeds, and aggregates.

An embed is a lateral subselect that returns one JSON document. Related rows of any depth are in one column
that way, and a call stays one statement. Values that JSON cannot represent in their wire form are text in
the document.

A measure of related rows is a subselect for each row, too. To sort by a measure, all rows must be measured
before the first one is known, and then one pass over the related rows takes three fifths of the time
(`bench/sorting.py`): such measures are joined with the groups of the related rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.catalog import Catalog, Column, Relation
from service.datatypes import UNPLAIN
from service.plan.clauses import both
from service.plan.plans import (
    AggregatePlan,
    BoolExpr,
    Compare,
    Condition,
    Equals,
    Exists,
    Expression,
    Groups,
    IsTest,
    Link,
    Lock,
    Not,
    Output,
    PlannedAfter,
    PlannedEmbed,
    PlannedReturning,
    ReadPlan,
    Search,
    SortKey,
    is_pure,
    is_repeatable,
    is_settled,
    names_of,
    parts_of,
    truncated,
)
from service.plan.watch_plan import OutwardJoin, array_bound
from service.sql.expressions import (
    NAME,
    aliased,
    all_equal,
    cast,
    compared,
    computed_value,
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
from service.sql.saved_rows import ORDER, row_source, save_function_rows
from service.sql.statement import AND, COMMA, EMPTY, Parameter, Statement, build_statement


def select(plan: ReadPlan) -> Statement:
    """
    Build the query of a read.

    With keyset pagination, it returns those sort keys of each row that its outputs do not show as text behind
    them, for the `next` token; the statement's `columns` are the outputs only.
    """
    rows = rows_of(plan, plan.json)
    if plan.json and plan.distinct is True:  # DISTINCT needs equality, which json does not have
        names = [Identifier("j", truncated(output.name)) for output in plan.outputs]
        types = [output.expression.type for output in plan.outputs]
        rows = SQL("SELECT {columns} FROM ({rows}) AS j").format(
            columns=COMMA.join(map(json_text, names, types)), rows=rows_of(plan)
        )
    columns, embeds = answer_of(plan)
    return build_statement(
        plan.name,
        rows,
        save_function_rows(plan),
        columns=columns,
        embeds=embeds,
        pure=is_pure(plan),
        settled=is_settled(plan),
        backwards=plan.backwards,
        keys=_key_places(plan) if plan.keyset else (),
        plain=plan.json or not (embeds or any(map(has_parts, plan.outputs))),
    )


def has_parts(output: Output) -> bool:
    """Return whether values of an output may be lists or objects."""
    type = output.expression.type
    return type.kind not in ("base", "enum") or type.form in UNPLAIN


def count(plan: ReadPlan, limit: int | None = None) -> Statement:
    """
    Build the query that counts the rows of a read.

    Args:
        plan: The read.
        limit: Number of rows at which counting stops.
    """
    stop = SQL("" if limit is None else f" LIMIT {limit:d}")
    return _wrapped(plan, "SELECT pg_catalog.count(*) FROM ({rows}{limit}) AS counted", stop)


def exists(plan: ReadPlan) -> Statement:
    """Build the query that returns whether a read has any row."""
    return _wrapped(plan, "SELECT EXISTS ({rows})")


def estimate(plan: ReadPlan) -> Statement:
    """Build the query for the planner's row estimate; it returns EXPLAIN's JSON document."""
    return _wrapped(plan, "EXPLAIN (FORMAT JSON) {rows}")


def answer_of(
    plan: ReadPlan | PlannedReturning,
) -> tuple[tuple[str, ...], tuple[PlannedEmbed, ...]]:
    """Return the names of the answer's columns, and the embeds among them that are to be decoded."""
    if plan.json:
        return names_of(plan.outputs, plan.embeds), ()
    names = (*(each.name for each in plan.outputs), *(each.key for each in plan.embeds))
    return names, plan.embeds


def _wrapped(plan: ReadPlan, template: str, limit: Composable = EMPTY) -> Statement:
    """Build a statement of one column around the query of a read."""
    statement = SQL(template).format(rows=rows_of(plan), limit=limit)
    return build_statement(plan.name, statement, columns=("answer",), pure=is_pure(plan))


def rows_of(plan: ReadPlan, json: bool = False) -> Composable:
    """Build the SQL of a read; with `json`, each column is the JSON text of its value."""
    # Of the plan as it is, as the statement's `keys`: a sort key that is joined equals no output.
    places = _key_places(plan) if plan.keyset else ()
    plan, measures = join_measures(plan)
    distinct: Composable = SQL("DISTINCT " if plan.distinct else "")
    if isinstance(plan.distinct, tuple) and plan.distinct:
        keys = COMMA.join(map(expression, plan.distinct))
        distinct = SQL("DISTINCT ON ({keys}) ").format(keys=keys)
    columns = [column_list(plan.outputs, plan.embeds, json)] if plan.outputs or plan.embeds else []
    if plan.by_keys:
        columns.append(ORDER)
    width = len(plan.outputs) + len(plan.embeds)
    behind = (key for key, place in zip(plan.order, places, strict=False) if place >= width)
    columns += [cast(expression(key.expression), "text") for key in behind]
    columns += map(expression, plan.keys)
    columns += [cast(computed_value(each), each.column.declared) for each in plan.computed]
    # With DISTINCT, PostgreSQL refuses sort keys that are not in the select list.
    last = ORDER if plan.afterwards and not plan.distinct else None
    return SQL(
        "SELECT {distinct}{columns} FROM {source}{measures}{embeds}{where}{order}{page}{lock}"
    ).format(
        distinct=distinct,
        columns=COMMA.join(columns),
        source=_by_keys(plan) if plan.by_keys else row_source(plan),
        measures=measures,
        embeds=embed_joins(plan.embeds, json),
        where=_where(plan),
        order=order_by(plan.order, last),
        page=limit_offset(plan.limit, plan.offset),
        lock=row_lock(plan.relation, plan.lock) if plan.lock else EMPTY,
    )  # fmt: skip


def _key_places(plan: ReadPlan) -> tuple[int, ...]:
    """Return the place in a row of the result of each sort key: that of an equal output, or one behind them."""
    places, behind = list[int](), len(plan.outputs) + len(plan.embeds)
    for key in plan.order:
        equal = (at for at, each in enumerate(plan.outputs) if each.expression.same(key.expression))
        # PostgreSQL writes only integers as Python does. A cast and a column more cost it 12 of 81 µs for 101 rows.
        integer = key.expression.type.form == "integer" and not plan.json
        place = next(equal, None) if integer else None
        places.append(behind if place is None else place)
        behind += place is None
    return tuple(places)


def row_lock(relation: Relation, lock: Lock) -> Composable:
    """Build the clause that locks the rows "t", if PostgreSQL can lock rows of the relation."""
    if not relation.auto_updatable:
        # A view with INSTEAD OF triggers may contain groups or outer joins, where locks are refused.
        return EMPTY
    strength = "UPDATE" if lock.key else "NO KEY UPDATE"
    # OF "t", because PostgreSQL refuses to lock the nullable side of an outer join, as embeds are.
    return SQL(f' FOR {strength} OF "t"{" SKIP LOCKED" if lock.skip_locked else ""}')


def _by_keys(plan: ReadPlan) -> Composable:
    """Build the FROM item of a read by keys: the keys with their numbers as "w", joined to the rows."""
    lists, equal = [], []
    for at, test in enumerate(plan.by_keys):
        name = Identifier("w", f"k{at}")
        value = name if test.candidate is None else cast(name, test.candidate.sql)
        lists.append(SQL("pg_catalog.unnest({list})").format(list=parameter(test.right)))
        equal.append((expression(test.left), test.operator, value))
    names = [Identifier(f"k{at}") for at in range(len(lists))]
    # A join, because a WHERE with the keys would lose their order, and which key has no row.
    return SQL(
        'ROWS FROM ({lists}) WITH ORDINALITY AS "w" ({names}) JOIN {rows} ON {equal}'
    ).format(
        lists=COMMA.join(lists),
        names=COMMA.join([*names, Identifier("n")]),
        rows=row_source(plan),
        equal=all_equal(equal),
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

    If all keys have one direction and none is nullable, it is one row comparison, for which PostgreSQL
    can use an index. Otherwise it is an OR of comparisons key by key.
    """
    values = [expression(key.expression) for key in keys]
    directions = {key.descending for key in keys}
    nullable = any(key.expression.nullable for key in keys)
    if len(directions) == 1 and not nullable and len({*page.beyond}) == 1:
        return SQL("({keys}) {beyond} ({end})").format(
            keys=COMMA.join(values),
            beyond=operator(page.beyond[0]),
            end=COMMA.join(map(Parameter, page.operands)),
        )
    tied = [_is_tied(key, values[at], page, at) for at, key in enumerate(keys)]
    cases = [
        AND.join([*tied[:at], _is_beyond(key, values[at], page, at)]) for at, key in enumerate(keys)
    ]
    return SQL("({})").format(SQL(" OR ").join(SQL("({})").format(each) for each in cases))


def _is_tied(key: SortKey, value: Composable, page: PlannedAfter, at: int) -> Composable:
    if page.nulls[at]:
        return _is_null(key, value)
    return compared(value, page.equal[at], Parameter(page.operands[at]))


def _is_beyond(key: SortKey, value: Composable, page: PlannedAfter, at: int) -> Composable:
    if page.nulls[at]:
        return SQL("false") if key.nulls == "last" else _is_null(key, value, negated=True)
    beyond = compared(value, page.beyond[at], Parameter(page.operands[at]))
    if key.nulls == "last" and key.expression.nullable:
        return SQL("({} OR {})").format(beyond, _is_null(key, value))
    return SQL("({})").format(beyond)


def _is_null(key: SortKey, value: Composable, negated: bool = False) -> Composable:
    """Build the condition that a sort key is null in the sense of ORDER BY."""
    # A composite value of nulls only IS NULL, but ORDER BY does not sort it as a null.
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
        outputs: Outputs of the rows.
        embeds: Embeds of the rows.
        json: Whether each column is to be the JSON text of its value; such columns have no aliases.
    """
    if json:
        values = [json_text(expression(each.expression), each.expression.type) for each in outputs]
        return COMMA.join([*values, *(cast(each, "text") for each in _json_of(embeds))])
    found = [output_list(outputs)] if outputs else []
    if embeds:  # as text, so that their size is checked before they are decoded
        found.append(aliased((cast(_embed_value(each), "text"), each.key) for each in embeds))
    return COMMA.join(found)


def embed_joins(embeds: Sequence[PlannedEmbed], json: bool = False) -> Composable:
    """Build the joins of embeds; with `json`, in their final form, because they are not decoded."""
    # Each subselect aggregates its rows: joined directly, the rows of two embeds would multiply.
    return Composed(_embed_join(embed, json) for embed in embeds)


def _embed_join(embed: PlannedEmbed, json: bool) -> Composable:
    inner = [(_output(each, json), each.name) for each in embed.outputs]
    if json:
        inner += zip(_json_of(embed.embeds), names_of((), embed.embeds), strict=True)
    else:
        inner += [(_embed_value(each), each.key) for each in embed.embeds]
    rows = related_rows(embed.link, embed.where, embed_joins(embed.embeds, json))
    if embed.grouped is not None:
        rows = SQL("({groups}) AS {alias}").format(
            groups=grouped(embed.grouped, rows), alias=Identifier(embed.grouped.source)
        )
    # "r".* because "r" would be taken for a column of that name if there is one.
    return SQL(
        ' LEFT JOIN LATERAL (SELECT pg_catalog.{function}("r".*) AS "v"'
        ' FROM (SELECT {columns} FROM {rows}{order}{one}{page}) AS "r") AS {alias} ON true'
    ).format(
        function=SQL("json_agg" if embed.many else "row_to_json"),
        columns=aliased(inner),
        rows=rows,
        order=order_by(embed.order),
        # Without a unique constraint there may be a second match, which would duplicate the outer row.
        one=SQL("" if embed.many or embed.limit else " LIMIT 1"),
        page=limit_offset(embed.limit, embed.offset),
        alias=Identifier(_alias(embed)),
    )


def _embed_value(embed: PlannedEmbed) -> Composable:
    """Build the JSON document of an embed; for no related row it is NULL, of a to-many embed []."""
    value = Identifier(_alias(embed), "v")
    # json_agg of no rows is NULL.
    return SQL("coalesce({value}, '[]')").format(value=value) if embed.many else value


def _json_of(embeds: Sequence[PlannedEmbed]) -> Iterator[Composable]:
    """Build the final JSON of embeds; a spread embed gives a value for each of its columns."""
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
            # The document has names as PostgreSQL truncates them, to 63 bytes.
            yield SQL(template).format(value=value, key=Literal(truncated(name)))


def _output(output: Output, json: bool) -> Composable:
    value = expression(output.expression)
    if json:
        return json_value(value, output.expression.type)
    return cast(value, "text") if output.text else value


def _alias(embed: PlannedEmbed) -> str:
    return f"e{embed.link.source}"


def aggregate(plan: AggregatePlan) -> Statement:
    """Build an aggregate: a query of groups, with HAVING, sorting and pagination around it."""
    outputs = plan.grouped.outputs
    values = [(expression(each.expression), each.expression.type) for each in outputs]
    statement = SQL(
        'SELECT {columns} FROM ({groups}) AS "t"{having}{order}{page}'
    ).format(
        columns=COMMA.join(json_text(*each) for each in values) if plan.json else output_list(outputs),
        groups=grouped(
            plan.grouped,
            Composed([row_source(plan),
                      where_clause(plan.where)]),
        ),
        having=where_clause(plan.having),
        order=order_by(plan.grouped.order),
        page=limit_offset(plan.limit, plan.offset),
    )  # fmt: skip
    return build_statement(
        plan.name,
        statement,
        save_function_rows(plan),
        columns=tuple(output.name for output in outputs),
        pure=is_pure(plan),
        plain=plan.json or not any(map(has_parts, outputs)),
    )


def grouped(groups: Groups, rows: Composable) -> Composable:
    """
    Build the SQL of groups: the grouping keys, then the measures.

    GROUP BY has the keys by position, because PostgreSQL takes a parameter that occurs twice for two
    different values.

    Args:
        groups: Grouping keys and measures.
        rows: FROM item of the rows, with their WHERE clause.
    """
    items = [output_list([each]) for each in groups.groups]
    by = SQL(" GROUP BY " + ", ".join(f"{at}" for at in range(1, len(items) + 1)))
    measures = [aliased([(measure_value(each), each.name)]) for each in groups.measures]
    return SQL("SELECT {items} FROM {rows}{by}").format(
        items=COMMA.join([*items, *measures]),
        rows=rows,
        by=by if items else EMPTY,
    )


def outer_rows(catalog: Catalog, join: OutwardJoin, columns: Sequence[str]) -> Statement | None:
    """
    Build the query for the outer rows to which changed rows are joined.

    It returns one column, the JSON text of an array of `columns` of each row. Its parameters are arrays, as
    PostgreSQL's text, so that one statement serves any number of changed rows: the values of each column of
    the join. With several columns, all combinations of their values match.

    Returns:
        None if values of a column cannot be sent as an array.
    """
    tests = []
    for slot, (outer_name, name, equal) in enumerate(join.pairs):
        values = array_bound(catalog, catalog.type(join.relation.columns[name].type), slot)
        if values is None:
            return None
        tests.append(
            SQL('"t".{column} {equal} ANY ({values})').format(
                column=Identifier(outer_name), equal=operator(equal), values=Parameter(values)
            )
        )
    return build_statement(
        f"{join.outer.name}.outer_rows",
        SQL(
            "SELECT DISTINCT CAST(pg_catalog.json_build_array({columns}) AS text)"
            ' FROM {relation} AS "t" WHERE {tests}'
        ).format(
            columns=COMMA.join(Identifier("t", name) for name in columns),
            relation=relation_name(join.outer),
            tests=AND.join(tests),
        ),
        columns=("key",),
        pure=join.outer.pure_reads,
    )


VALUE = "v"
"""Name of the measure's column in its join."""


def join_measures(plan: ReadPlan) -> tuple[ReadPlan, Composable]:
    """
    Return a plan whose measures are columns of joins, if its first sort key is one; and the joins.

    The plan stays as it is if rows are sorted by something else first, are distinct, or come from a
    function: then only few rows may have to be measured.
    """
    first = plan.order[0].expression if plan.order else None
    if plan.call or plan.distinct or first is None or not _is_joined(first):
        return plan, EMPTY
    joins = _MeasureJoins(plan)
    order = tuple(replace(key, expression=joins.value(key.expression)) for key in plan.order)
    where = plan.where and joins.condition(plan.where)
    return replace(plan, order=order, where=where), Composed(joins.built)


def _is_joined(value: Expression) -> bool:
    """Return whether a value is a measure of rows that are related to the row itself by columns."""
    if value.measure is None or len(value.links) != 1:
        return False
    (link,) = value.links
    return link.function is None and link.outer == NAME


class _MeasureJoins:
    """
    Builder of the joins of a plan.

    Args:
        plan: The plan of the rows.

    Attributes:
        built: The joins built so far.
    """

    def __init__(self, plan: ReadPlan) -> None:
        self.built: list[Composable] = []
        self._plan = plan
        self._known: list[tuple[Expression, Expression]] = []

    def value(self, value: Expression) -> Expression:
        """Return a value with its measure, if it is one, replaced by the column of a join."""
        if not _is_joined(value):
            return value
        bare = replace(value, steps=(), applied=())
        column = next((column for known, column in self._known if known.same(bare)), None)
        if column is None:
            column = self._add_join(bare)
            self._known.append((bare, column))
        return replace(
            column,
            steps=value.steps,
            as_json=value.as_json,
            applied=value.applied,
            type=value.type,
            path=value.path,
        )

    def condition(self, where: Condition) -> Condition:
        """Return a condition with its measures replaced by columns of joins."""
        if isinstance(where, BoolExpr):
            return replace(where, conditions=tuple(map(self.condition, where.conditions)))
        if isinstance(where, Not):
            return Not(self.condition(where.condition))
        if isinstance(where, Compare):
            right = where.right
            right = self.value(right) if isinstance(right, Expression) else right
            return replace(where, left=self.value(where.left), right=right)
        if isinstance(where, IsTest | Search):
            return replace(where, left=self.value(where.left))
        return where

    def _add_join(self, value: Expression) -> Expression:
        (link,), measure = value.links, value.measure
        assert measure is not None
        rows, source, pairs = _split_link(link)
        alias = f"m{len(self.built) + 1}"
        keys = [Identifier(source, name) for _, name, _ in pairs]
        names = [f"k{at}" for at in range(len(pairs))]
        numbers = ", ".join(f"{at}" for at in range(1, len(pairs) + 1))
        counted = measure.function == "count"
        none = cast(SQL("0"), measure.type.sql)
        found = Identifier(f"{alias}g" if counted else alias, VALUE)
        self.built.append(
            SQL(
                " LEFT JOIN (SELECT {columns} FROM {rows} GROUP BY {numbers}) AS {alias} ON {equal}"
            ).format(
                columns=aliased([*zip(keys, names, strict=True), (measure_value(measure), VALUE)]),
                rows=related_rows(rows, both(link.where, self._of_rows(source, pairs))),
                numbers=SQL(numbers),
                alias=Identifier(*found.strings[:1]),
                equal=all_equal(
                    (Identifier(NAME, name), equal, Identifier(found.strings[0], f"k{at}"))
                    for at, (name, _, equal) in enumerate(pairs)
                ),
            )
        )
        if counted:  # the count of no rows is 0, for which the outer join gives NULL
            self.built.append(
                SQL(
                    " CROSS JOIN LATERAL (SELECT coalesce({found}, {none}) AS {value}) AS {alias}"
                ).format(found=found, none=none, value=Identifier(VALUE), alias=Identifier(alias))
            )
        column = Column(VALUE, measure.type.oid, measure.type.sql)
        return Expression(column, measure.type, path=value.path, source=alias)

    def _of_rows(self, source: str, pairs: Equals) -> Condition | None:
        """Return the condition that a related row belongs to one of the rows that are read, if useful."""
        relation = self._plan.relation
        where = both(*_repeatable_terms(self._plan.where))
        if where is None and relation.kind == "table" and relation.estimable:
            return None
        # The filter of the rows, seen from the related rows: without it, all related rows would be grouped
        # even if the filter leaves ten rows.
        reversed_pairs = tuple((right, left, equal) for left, right, equal in pairs)
        return Exists(Link(relation, NAME, source, reversed_pairs), where)


def _split_link(link: Link) -> tuple[Link, str, Equals]:
    """Return a link without the condition that relates it to one row, the alias, and that condition."""
    if link.junction is None:
        return replace(link, pairs=()), link.source, link.pairs
    junction = replace(link.junction, outer_pairs=())
    return replace(link, junction=junction), junction.source, link.junction.outer_pairs


def _repeatable_terms(where: Condition | None) -> Iterator[Condition]:
    """Yield the terms of a conjunction that may be evaluated a second time, in another subselect."""
    if isinstance(where, BoolExpr) and not where.any:
        for each in where.conditions:
            yield from _repeatable_terms(each)
    elif (
        where is not None
        and is_repeatable(where)
        and not any(map(_is_joined, parts_of(where, Expression)))
    ):
        yield where
