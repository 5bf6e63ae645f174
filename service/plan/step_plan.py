"""
The steps of nested new rows to plans, and how the rows of the call are read after them.
"""

from __future__ import annotations

from dataclasses import replace

from service.catalog import Catalog, Relation
from service.plan.hidden import as_json
from service.plan.plans import (
    InsertPlan,
    Lock,
    Output,
    PlannedReturning,
    ReadPlan,
    Reread,
    UpdatePlan,
)
from service.plan.predicates import inner_conditions, sort_keys
from service.plan.read_plan import plan_get, plan_rows
from service.plan.reread import saved_columns
from service.plan.scope import Scope
from service.plan.tree import LinkedKey, LinkedRow, NewRows, TreeStep
from service.plan.write_plan import plan_new_rows, plan_update
from service.request.requests import (
    EVERYTHING,
    GetRequest,
    Item,
    Reference,
    Returning,
    Target,
    UpdateRequest,
)


def plan_step(catalog: Catalog, step: TreeStep) -> InsertPlan | UpdatePlan | ReadPlan:
    """Plan a step; what comes back of it are the values that later steps use."""
    if isinstance(step, NewRows):
        return _new_rows(catalog, step)
    if isinstance(step, LinkedRow):
        target = Target(step.key, (), EVERYTHING)
        request = UpdateRequest(target, step.changes, Returning(rows=False))
        # That it writes none is found by the number of rows: nothing is kept then.
        return plan_update(catalog, step.relation, request, many=True)
    return _linked_key(catalog, step)


def plan_answer(
    catalog: Catalog, relation: Relation, returning: Returning, key: tuple[str, ...]
) -> PlannedReturning:
    """Plan what comes back of the rows of the call: they are read by their keys, at the end."""
    scope = Scope(catalog, relation, returning.embeds)
    reread = Reread(scope.equals(key), saved_columns(relation, key), "", fallback=False)
    if not returning.rows:
        return PlannedReturning(reread=reread, receipt=returning.receipt)
    outputs, embeds = plan_rows(scope, returning.select, returning.embeds)
    return PlannedReturning(
        outputs,
        sort_keys(scope, returning.order),
        embeds,
        inner_conditions(scope, returning.embeds),
        reread,
        json=as_json(catalog, returning.form, outputs, embeds),
        receipt=returning.receipt,
    )


def _new_rows(catalog: Catalog, step: NewRows) -> InsertPlan:
    scope, relation = Scope(catalog, step.relation), step.relation
    columns, rows = plan_new_rows(scope, step.rows)
    values = [scope.of_column(relation.columns[name]) for name in step.columns]
    text = scope.named("text")
    values += [scope.of_column(relation.columns[name]).cast(text) for name in step.texts]
    returning = PlannedReturning(tuple(Output(each, f"c{at}") for at, each in enumerate(values)))
    numbered = bool(values) and len(rows) > 1
    return InsertPlan(
        f"{relation.name}.create", relation, columns, rows, returning, numbered=numbered
    )


def _linked_key(catalog: Catalog, step: LinkedKey) -> ReadPlan:
    select = tuple(Item(Reference(name, step.path)) for name in step.columns)
    plan = plan_get(catalog, step.relation, GetRequest(step.key, select))
    return replace(plan, lock=Lock()) if step.locked else plan
