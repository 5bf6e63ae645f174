"""
Writing requests and the catalog to write plans.
"""

from __future__ import annotations

from dataclasses import replace

from service.catalog import Catalog, Column, Relation, WriteKind
from service.plan.conditions import Bound, Condition, Every
from service.plan.conflict import plan_conflict
from service.plan.expressions import Scope
from service.plan.filters import asked_by, compare, plan_filter
from service.plan.outputs import sort_keys
from service.plan.read import plan_key, plan_rows
from service.plan.reread import reread
from service.plan.types import ReadPlan
from service.plan.veiled import unveiled
from service.plan.writable import assigned
from service.plan.writes import Back, DeletePlan, InsertPlan, Setting, UpdatePlan
from service.request.types import (
    Assignment,
    CreateRequest,
    DeleteRequest,
    Operand,
    Returning,
    Target,
    UpdateRequest,
)


def plan_create(catalog: Catalog, relation: Relation, request: CreateRequest) -> InsertPlan:
    """
    Plan `create` and `upsert`.

    A column that a new row leaves out, but another gives, takes its default.

    Raises:
        InvalidArgument: A column is unknown, or is generated.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    columns: dict[str, Column] = {}
    for row in request.rows:
        for each in row:
            columns.setdefault(each.column, assigned(relation, each))
    rows = tuple(
        tuple(_value(scope, columns[name], given.get(name)) for name in columns)
        for given in ({each.column: each for each in row} for row in request.rows)
    )
    conflict = plan_conflict(scope, request.conflict, request.rows) if request.conflict else None
    kinds: list[WriteKind] = ["insert", "update"] if conflict else ["insert"]
    settable = [each.column for each in conflict.takeovers] if conflict else []
    one = not request.many and conflict is None
    back = reread(scope, _returned(scope, request.returning), kinds, settable, one)
    name = f"{relation.name}.{'upsert' if conflict else 'create'}"
    return InsertPlan(name, relation, tuple(columns.values()), rows, back, conflict)


def plan_update(
    catalog: Catalog, relation: Relation, request: UpdateRequest, many: bool = False
) -> UpdatePlan:
    """
    Plan `update`.

    Args:
        catalog: For types.
        relation: Whose rows.
        request: The update.
        many: Whether it is a part of one for many rows, of which some may be left out.

    Raises:
        InvalidArgument: A name is unknown, or a column is generated.
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    settings = tuple(
        Setting(column, _value(scope, column, each))
        for each in request.changes
        for column in [assigned(relation, each)]
    )
    settable = [each.column for each in settings]
    one = request.target.key is not None and not many
    back = reread(scope, _returned(scope, request.returning), ["update"], settable, one)
    where = plan_target(scope, request.target, "update")
    return UpdatePlan(f"{relation.name}.update", relation, settings, where, back)


def plan_delete(catalog: Catalog, relation: Relation, request: DeleteRequest) -> DeletePlan:
    """
    Plan `delete`.

    Raises:
        InvalidArgument: A name is unknown.
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    one = request.target.key is not None
    back = reread(scope, _returned(scope, request.returning), ["delete"], one=one)
    where = plan_target(scope, request.target, "delete")
    return DeletePlan(f"{relation.name}.delete", relation, where, back)


def plan_current(
    catalog: Catalog,
    relation: Relation,
    target: Target,
    returning: Returning,
    lock: bool = False,
    limit: Operand | None = None,
) -> ReadPlan:
    """
    Plan to read the rows that a write is for, as they are.

    Args:
        catalog: For types.
        relation: Whose rows.
        target: Which rows.
        returning: What of them.
        lock: Whether they are to stay as they are until the transaction ends.
        limit: How many at most.
    """
    scope = Scope(catalog, relation, returning.embeds)
    back = _returned(scope, returning)
    where = plan_target(scope, target, "update")
    return ReadPlan(
        name=f"{relation.name}.update",
        relation=relation,
        outputs=back.outputs,
        where=where,
        order=back.order,
        embeds=back.embeds,
        limit=scope.bound(limit, scope.named("int8")) if limit else None,
        lock=lock,
    )


def plan_target(scope: Scope, target: Target, verb: str) -> Condition | None:
    """
    Plan the condition that picks the rows of a write, with what is expected of them.

    Raises:
        InvalidArgument: A name is unknown, or the key does not fit.
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    if target.key is None:
        return plan_filter(scope, target.where)
    conditions = [plan_key(scope, target.key, verb)]
    conditions += [_expected(scope, each) for each in target.expect]
    return conditions[0] if len(conditions) == 1 else Every(False, tuple(conditions))


def _expected(scope: Scope, each: Assignment) -> Condition:
    left = scope.of_column(scope.relation.column(each.column, each.path), each.path)
    unveiled(scope.catalog, left)
    if each.operand is None:
        raise TypeError("a default cannot be expected")
    if left.type.name == "json":
        jsonb = scope.named("jsonb")
        left = replace(left, cast=jsonb, type=jsonb)
    test = compare(scope, left, "=", scope.bound(each.operand, left.type))
    return replace(test, alike=True)


def _value(scope: Scope, column: Column, given: Assignment | None) -> Bound | None:
    if given is None or given.operand is None:
        return None
    type = scope.catalog.type(column.type)
    return Bound(given.operand.slot, type, given.operand.path, cast=False)


def _returned(scope: Scope, returning: Returning) -> Back:
    if not returning.rows:
        return Back()
    outputs, embeds = plan_rows(scope, returning.select, returning.embeds)
    inner = asked_by(scope, returning.embeds)
    return Back(outputs, sort_keys(scope, returning.order), embeds, inner)
