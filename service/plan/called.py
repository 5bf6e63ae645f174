"""
Rows that a function returns, read like those of a relation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.catalog import NOWHERE, Catalog, Column, Relation
from service.errors import NoSuchProcedure
from service.functions import Function
from service.plan.aggregate import AggregatePlan, plan_aggregate
from service.plan.call import RECORD, generic, plan_source, result_columns, takes_lists
from service.plan.computed import keyless, rows_of
from service.plan.conditions import Condition, Present
from service.plan.filters import both
from service.plan.read import plan_all, plan_find
from service.plan.remembered import remembered
from service.plan.reread import follows
from service.plan.types import ReadPlan
from service.request.functions import CalledRequest
from service.request.types import AggregateRequest, FindRequest


def plan_called(catalog: Catalog, request: CalledRequest[FindRequest]) -> ReadPlan:
    """
    Plan a find on a function's rows.

    Raises:
        InvalidArgument: A name is unknown, or the token does not fit.
        NoSuchProcedure: The function returns no rows.
    """
    plan = plan_find(catalog, _rows(catalog, request), request.of)
    related = plan.embeds or plan.where is not None or follows(plan.outputs, plan.order)
    afterwards = bool(related) and _writes(catalog, request)
    return replace(_sourced(catalog, request, plan), afterwards=afterwards)


def plan_called_all(catalog: Catalog, request: CalledRequest[FindRequest]) -> ReadPlan:
    """Plan all of a function's rows that a find finds, without its pages, to count them."""
    return _sourced(catalog, request, plan_all(catalog, _rows(catalog, request), request.of))


def plan_called_groups(catalog: Catalog, request: CalledRequest[AggregateRequest]) -> AggregatePlan:
    """
    Plan an aggregate of a function's rows.

    Raises:
        InvalidArgument: A name is unknown.
        NoSuchProcedure: The function returns no rows.
    """
    function = request.call.function
    plan = plan_aggregate(catalog, _rows(catalog, request), request.of)
    return replace(
        plan,
        name=f"fn.{function.name}.aggregate",
        where=both(_there(function), plan.where),
        call=plan_source(catalog, request.call),
        afterwards=_writes(catalog, request),
    )


def _writes(catalog: Catalog, request: CalledRequest[Any]) -> bool:
    """Return whether a function may write what the rows that it gives are related to."""
    function = request.call.function
    return not function.reads and rows_of(catalog, function) is not None


def _rows(catalog: Catalog, request: CalledRequest[Any]) -> Relation:
    call = request.call
    return relation_of(catalog, call.function, call.generic, takes_lists(catalog, call))


@remembered
def relation_of(catalog: Catalog, function: Function, name: str, listed: bool) -> Relation:
    """
    Give the relation that a function's rows are of, or are like.

    Args:
        catalog: That has it.
        function: Any.
        name: Of the type that stands for polymorphic ones, if any are given.
        listed: Whether lists of it do.

    Raises:
        NoSuchProcedure: It returns no rows, or a procedure gave them.
    """
    served = rows_of(catalog, function)
    if served is not None:
        return keyless(catalog, served)
    columns = result_columns(catalog, function)
    if columns is None and function.result == RECORD:
        raise NoSuchProcedure(
            f'"{function.name}" returns records without columns of their own, and so has no verbs',
            hint="RETURNS TABLE (…), or an OUT argument for each value, gives it columns",
        )
    if columns is None or function.procedure:
        raise NoSuchProcedure(
            f'"{function.name}" returns no rows, and so has no verbs',
            hint=f'"fn.{function.name}" calls it',
        )
    if name:
        columns = {each.name: _standing(catalog, each, name, listed) for each in columns.values()}
    return Relation(NOWHERE, f"fn.{function.name}", "view", columns)


def _standing(catalog: Catalog, column: Column, name: str, listed: bool) -> Column:
    """Give a column the type that stands for its own, if that is polymorphic."""
    type = catalog.type(column.type)
    if type.kind != "pseudo":
        return column
    found = generic(catalog, name, type, listed)
    return replace(column, type=found.oid, declared=found.sql)


def _sourced(catalog: Catalog, request: CalledRequest[FindRequest], plan: ReadPlan) -> ReadPlan:
    function = request.call.function
    return replace(
        plan,
        name=f"fn.{function.name}.find",
        where=both(_there(function), plan.where),
        call=plan_source(catalog, request.call),
    )


def _there(function: Function) -> Condition | None:
    """A function of one row that finds none gives a row of nulls."""
    single = not function.many and not function.outputs
    return Present("t") if single else None
