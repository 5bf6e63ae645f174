"""
Plan reads: rows with their embeds, and measures of groups.

The groups are planned as a relation of their own, with the names of groups and measures as columns, so
that `having` and `order` are planned like the filter and sort keys of any relation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count

from service.catalog import Catalog, Relation, Type
from service.errors import InvalidArgument, NoSuchProcedure
from service.plan.clauses import (
    both,
    check_readable,
    comparable,
    distinct_first,
    distinct_keys,
    inner_condition,
    outputs_of,
    plan_filter,
    plan_measure,
    plan_related,
    referenced,
    refuse_repeated,
    sort_keys,
    with_row_key,
)
from service.plan.operators import array_type_of, compare
from service.plan.plans import (
    AggregatePlan,
    BoolExpr,
    Compare,
    Condition,
    Expression,
    Groups,
    Output,
    PlannedAfter,
    PlannedEmbed,
    ReadPlan,
    SortKey,
    names_of,
    truncated,
)
from service.plan.scope import Scope, as_json, groups_of
from service.request.requests import (
    After,
    AggregateRequest,
    CountRequest,
    Embed,
    FindRequest,
    GetRequest,
    Item,
    Key,
    KeyMatch,
    Measure,
    Nulls,
    Operand,
    Reference,
)


def plan_columns(
    scope: Scope, select: tuple[Item, ...] | None, embeds: Sequence[Embed], path: str
) -> tuple[tuple[Output, ...], tuple[PlannedEmbed, ...]]:
    """Plan a select list and embeds; without a select list, an embed replaces a column of its name."""
    planned = [each for each in (_plan_embed(scope, embed) for embed in embeds) if each.columns]
    outputs = outputs_of(scope, select)
    if select is None:
        taken = {embed.name for embed in planned if not embed.spread}
        outputs = tuple(output for output in outputs if output.name not in taken)
    hint = 'rename one: "other_name:column" in select, or another name in embed'
    seen = refuse_repeated(names_of(outputs, planned), path, hint)
    return outputs, tuple(_keyed(planned, seen))


def _keyed(embeds: Sequence[PlannedEmbed], taken: set[str]) -> Iterator[PlannedEmbed]:
    """Return embeds with a unique key for each spread one, whose name may be a column's."""
    for embed in embeds:
        if not embed.spread:
            yield embed
            continue
        keys = chain([embed.key], (f"e{number}" for number in count()))
        key = next(each for each in keys if each not in taken)
        taken.add(key)
        yield replace(embed, key=key)


def _plan_embed(scope: Scope, embed: Embed) -> PlannedEmbed:
    link, inner, many = scope.link(embed)
    check_readable(inner.relation)
    grouped = _grouped(inner, embed)
    embeds: tuple[PlannedEmbed, ...] = ()
    if grouped is not None:
        outputs, order = grouped.outputs, grouped.order
    else:
        outputs, embeds = plan_columns(inner, embed.select, embed.embeds, embed.path)
        order, _ = with_row_key(inner, sort_keys(inner, embed.order)) if many else ((), False)
    outputs = tuple(
        # An embed is one JSON value. Types whose to_json differs from the wire form, as 5 for the float 5.0, are
        # sent as text.
        replace(output, text=not _is_json(scope.catalog, output.expression.type))
        for output in outputs
    )
    return PlannedEmbed(
        name=embed.name,
        # PostgreSQL truncates names to 63 bytes; the result of the call has the full name.
        key=truncated(embed.name),
        link=link,
        # Spread measures without groups are single values of the outer row.
        many=many and not (embed.spread and embed.measures and not embed.group),
        outputs=outputs,
        embeds=embeds,
        where=plan_related(inner, embed),
        order=order,
        limit=inner.number(embed.limit),
        offset=inner.number(embed.offset),
        spread=embed.spread,
        grouped=grouped,
    )


def _grouped(inner: Scope, embed: Embed) -> Groups | None:
    if not embed.measures and not embed.group:
        return None
    path, source = f"{embed.path}.measures", f"g{inner.source}"
    grouped, _ = plan_grouped(inner, embed.group, embed.measures, embed.order, path, source)
    return grouped


def _is_json(catalog: Catalog, type: Type) -> bool:
    """Return whether a type's JSON equals its form on the wire."""
    type = catalog.plain(type)
    if type.kind == "array":
        return _is_json(catalog, catalog.type(type.element))
    return type.data_type.native_json or type.kind in {"enum", "range", "multirange"}


NOTHING = BoolExpr(any=True, conditions=())
"""The condition that is false for every row."""


def plan_get(catalog: Catalog, relation: Relation, request: GetRequest) -> ReadPlan:
    """
    Plan `get`.

    Raises:
        NoSuchProcedure: The relation has no primary key.
    """
    check_readable(relation)
    scope = Scope(catalog, relation, request.embeds)
    outputs, embeds = plan_rows(scope, request.select, request.embeds)
    given, by_keys = request.key, tuple[Compare, ...]()
    key: Condition | None = None
    if not given.operands:
        key = NOTHING
    elif request.many:
        by_keys = _plan_keys(scope, given)
    else:
        key = plan_key(scope, given, "get")
    return ReadPlan(
        name=f"{relation.name}.get",
        relation=relation,
        outputs=outputs,
        where=both(key, inner_condition(scope, request.embeds)),
        by_keys=by_keys,
        embeds=embeds,
        json=as_json(catalog, request.form, outputs, embeds),
    )


def plan_find(catalog: Catalog, relation: Relation, request: FindRequest) -> ReadPlan:
    """Plan `find`; the primary key is appended to the sort keys, so that pages do not overlap."""
    check_readable(relation)
    scope = Scope(catalog, relation, request.embeds)
    outputs, embeds = plan_rows(scope, request.select, request.embeds)
    order = sort_keys(scope, request.order)
    if request.distinct and not outputs:
        raise InvalidArgument("distinct rows want a column to differ in", path="select")
    if request.distinct and embeds:
        raise InvalidArgument("distinct rows have no rows of their own to embed", path="embed")
    distinct: bool | tuple[Expression, ...]
    if request.distinct is True:
        distinct, keyset = True, False
        outputs = comparable_outputs(scope, outputs)
        order = distinct_keys(outputs, order)
    else:
        named = (referenced(scope, each) for each in request.distinct or ())
        distinct = tuple(comparable(scope, each) for each in named)
        order, keyed = with_row_key(scope, distinct_first(distinct, order))
        # Not for types whose text PostgreSQL looks up: a token may have been altered by the caller.
        keyset = keyed and not distinct and not _looked_up(catalog, order)
    backwards = request.after is not None and request.after.backwards
    # Read in reverse order, so that an index can be used; the worker reverses the rows.
    if backwards:
        order = tuple(map(_reversed_key, order))
    return ReadPlan(
        name=f"{relation.name}.find",
        relation=relation,
        outputs=outputs,
        where=both(plan_filter(scope, request.where), inner_condition(scope, request.embeds)),
        embeds=embeds,
        order=order,
        distinct=distinct,
        limit=scope.number(request.limit),
        offset=scope.number(request.offset),
        after=_after(scope, request.after, order, keyset) if request.after else None,
        backwards=backwards,
        keyset=keyset,
        json=as_json(catalog, request.form, outputs, embeds),
    )


def _looked_up(catalog: Catalog, order: Sequence[SortKey]) -> bool:
    return any(catalog.looks_up(key.expression.type) for key in order)


def plan_rows(
    scope: Scope, select: tuple[Item, ...] | None, embeds: Sequence[Embed]
) -> tuple[tuple[Output, ...], tuple[PlannedEmbed, ...]]:
    """Plan the columns of result rows; an empty select list without embeds means all columns."""
    if not select and not embeds:
        select = None
    return plan_columns(scope, select, embeds, "embed")


def plan_count(catalog: Catalog, relation: Relation, request: CountRequest) -> ReadPlan:
    """Plan `count` and `exists`: rows without columns."""
    where = plan_filter(Scope(catalog, relation), request.where)
    return ReadPlan(f"{relation.name}.count", relation, (), where)


def plan_all(catalog: Catalog, relation: Relation, request: FindRequest) -> ReadPlan:
    """Plan all rows of a `find`, without pages and order, to count them."""
    plan = plan_find(catalog, relation, replace(request, after=None, offset=None))
    # DISTINCT needs the select list; otherwise no columns are read.
    outputs = plan.outputs if plan.distinct else ()
    return replace(plan, outputs=outputs, embeds=(), order=(), limit=None, keyset=False)


def check_keyed(relation: Relation, verb: str) -> None:
    """
    Check that a relation has a primary key, for a verb by key.

    Raises:
        NoSuchProcedure: The relation has no primary key.
    """
    if not relation.primary_key:
        raise NoSuchProcedure(
            f'"{relation.name}" has no primary key, and so no {verb} by key',
            hint=f'"{relation.name}.{"find" if verb == "get" else verb}" takes a where',
            relation=relation.name,
        )


def plan_key(scope: Scope, key: KeyMatch, verb: str) -> Condition | None:
    """
    Plan the condition that a row has a key.

    Raises:
        NoSuchProcedure: The relation has no primary key.
    """
    check_keyed(scope.relation, verb)
    conditions = []
    for expression, operand in _key_operands(scope, key, "key"):
        conditions.append(compare(scope, expression, "=", scope.bound(operand, expression.type)))
    return both(*conditions)


def _plan_keys(scope: Scope, key: KeyMatch) -> tuple[Compare, ...]:
    """Plan the comparisons of key columns with the lists of their values."""
    found = []
    for expression, operand in _key_operands(scope, key, "keys"):
        many, candidate = array_type_of(scope, expression.type)
        test = compare(scope, expression, "=", scope.bound(operand, many), expression.type)
        found.append(replace(test, candidate=candidate))
    return tuple(found)


def key_columns(catalog: Catalog, relation: Relation, key: KeyMatch, path: str) -> tuple[str, ...]:
    """
    Return the columns of a key: those that it names, or those of the primary key.

    Raises:
        InvalidArgument: They are not a key of the relation, or the number of values differs.
    """
    columns = key.columns or relation.primary_key
    for name in key.columns:
        relation.column(name, f"{path}.{name}")
    if key.columns:
        check_unique_key(catalog, relation, key.columns, path)
    if len(columns) != len(key.operands):
        raise InvalidArgument(
            f'the key of "{relation.name}" is {", ".join(columns) or "none"}:'
            f" {len(columns)} value{'s' * (len(columns) != 1)}, got {len(key.operands)}",
            path=path,
            columns=list(columns),
        )
    return columns


def check_unique_key(
    catalog: Catalog, relation: Relation, columns: Sequence[str], path: str, hint: str | None = None
) -> None:
    """
    Check that columns are those of a unique key.

    Raises:
        InvalidArgument: They are not; `candidates` has the columns of each unique key, and `hint` is given
            if there are any.
    """
    if catalog.key_of(relation, columns) is None:
        keys = [list(each.columns) for each in relation.unique_keys]
        message = f"no unique key over {', '.join(columns)}"
        raise InvalidArgument(message, path=path, hint=hint if keys else None, candidates=keys)


def _key_operands(scope: Scope, key: KeyMatch, path: str) -> list[tuple[Expression, Operand]]:
    """Return the columns of a key, each with the operand that it is compared with."""
    columns = key_columns(scope.catalog, scope.relation, key, path)
    return [
        (scope.expression(Reference(name, operand.path)), operand)
        for name, operand in zip(columns, key.operands, strict=True)
    ]


def _reversed_key(key: SortKey) -> SortKey:
    """Return a sort key with the reverse order."""
    # Nulls move as well: an index that is scanned backwards has them at its other end.
    nulls: Nulls = "first" if key.nulls == "last" else "last"
    return replace(key, descending=not key.descending, nulls=nulls)


def _after(
    scope: Scope, after: After, order: tuple[SortKey, ...], keyset: bool
) -> PlannedAfter | None:
    # The last page: it ends at the end of all rows.
    if after.backwards and not after.operands and keyset:
        return None
    if len(after.operands) != len(order) or not keyset:
        path = "before" if after.backwards else "after"
        raise InvalidArgument("not a token of these sort keys", path=path)
    types = [key.expression.type for key in order]
    beyond = [_beyond(scope.catalog.plain(key.expression.type), key.descending) for key in order]
    return PlannedAfter(
        tuple(
            scope.bound(operand, type, raw=True)
            for operand, type in zip(after.operands, types, strict=True)
        ),
        after.nulls,
        tuple(scope.operator("=", type, type) for type in types),
        tuple(scope.operator(name, type, type) for name, type in zip(beyond, types, strict=True)),
    )


def _beyond(type: Type, descending: bool) -> str:
    name = "<" if descending else ">"
    return f"#{name}#" if type.form == "hstore" else name  # the names of its operator class


def plan_aggregate(
    catalog: Catalog, relation: Relation, request: AggregateRequest
) -> AggregatePlan:
    """Plan `aggregate`."""
    scope = Scope(catalog, relation)
    grouped, result = plan_grouped(
        scope, request.group, request.measures, request.order, "measures"
    )
    return AggregatePlan(
        name=f"{relation.name}.aggregate",
        relation=relation,
        where=plan_filter(scope, request.where),
        grouped=grouped,
        having=plan_filter(result, request.having),
        limit=scope.number(request.limit),
        offset=scope.number(request.offset),
        json=as_json(catalog, request.form, grouped.outputs),
    )


def plan_totals(catalog: Catalog, relation: Relation, request: FindRequest) -> AggregatePlan:
    """Plan the measures of `find`, over all matching rows rather than a page."""
    scope = Scope(catalog, relation, request.embeds)
    grouped, _ = plan_grouped(scope, (), request.measures, (), "measures")
    return AggregatePlan(
        name=f"{relation.name}.find",
        relation=relation,
        where=both(plan_filter(scope, request.where), inner_condition(scope, request.embeds)),
        grouped=grouped,
        having=None,
        limit=None,
        offset=None,
        json=as_json(catalog, request.form, grouped.outputs),
    )


def plan_grouped(
    scope: Scope,
    group: tuple[Item, ...],
    measures: Iterable[Measure],
    order: Iterable[Key],
    path: str,
    source: str = "t",
) -> tuple[Groups, Scope]:
    """
    Plan groups of rows; return their scope as well.

    Args:
        scope: Scope of the rows.
        group: GROUP BY.
        measures: Aggregates over the rows of each group.
        order: Sort keys of the groups.
        path: Path of the measures in the call.
        source: Alias of the groups.
    """
    groups = comparable_outputs(scope, outputs_of(scope, group))
    planned = tuple(plan_measure(scope, measure) for measure in measures)
    names = [output.name for output in groups] + [measure.name for measure in planned]
    refuse_repeated(
        names, path, 'rename one: "other_name:column" in group, or another name in measures'
    )
    types = {output.name: output.expression.type for output in groups}
    types |= {measure.name: measure.type for measure in planned}
    # A subquery, because in PostgreSQL names of the select list are visible in ORDER BY but not in HAVING.
    result = Scope(scope.catalog, groups_of(scope.relation, types), source=source)
    outputs = tuple(
        Output(result.of_column(column), name) for name, column in result.relation.columns.items()
    )
    keys = _group_order(scope, result, groups, order)
    return Groups(groups, planned, outputs, keys, source), result


def comparable_outputs(scope: Scope, outputs: Iterable[Output]) -> tuple[Output, ...]:
    """Return outputs whose expressions are cast to comparable types."""
    return tuple(
        replace(output, expression=comparable(scope, output.expression)) for output in outputs
    )


def _group_order(
    scope: Scope, result: Scope, groups: tuple[Output, ...], order: Iterable[Key]
) -> tuple[SortKey, ...]:
    """Plan sort keys, with the groups appended so that the order is total."""
    named = [Key(_of_group(scope, result, groups, key), key.descending, key.nulls) for key in order]
    keys = sort_keys(result, named)
    bare = [key.expression for key in keys if not (key.expression.steps or key.expression.applied)]
    taken = {expression.column.name for expression in bare}
    rest = [Key(Reference(output.name, "group")) for output in groups if output.name not in taken]
    return keys + sort_keys(result, rest)


def _of_group(scope: Scope, result: Scope, groups: tuple[Output, ...], key: Key) -> Reference:
    """Return the name of the group that a sort key means by its expression, as in "driver.name"."""
    reference = key.reference
    if not reference.owners and (
        reference.name in result.relation.columns or reference.name not in scope.relation.columns
    ):
        return reference
    value = comparable(scope, referenced(scope, reference))
    for output in groups:
        if output.expression.same(value):
            return Reference(output.name, reference.path)
    return reference
