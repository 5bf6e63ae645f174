"""
Properties of a plan that follow from the relations, functions, types and parameters it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from service.catalog import NOWHERE, Catalog, Column, Function, Relation, Type
from service.errors import InvalidArgument
from service.plan.plans import (
    BoolExpr,
    Bound,
    Compare,
    Condition,
    DeletePlan,
    InsertPlan,
    PlannedReturning,
    ReadPlan,
    UpdatePlan,
)

Used = Relation | Function | Type


def is_pure(plan: Any, written: Relation | None = None) -> bool:
    """
    Return whether a plan certainly has no effect on the state of the session that runs it.

    Args:
        plan: A frozen plan, which contains all catalog objects that it uses.
        written: The relation that it writes to, if any.
    """

    def pure(used: Used) -> bool:
        if isinstance(used, Relation):
            if used is written:
                return used.pure_writes
            # Relations without a schema, such as groups, read only what else the plan contains.
            return used.pure_reads or used.schema == NOWHERE
        # No function is pure: settings, temporary tables and locks are left behind only by functions.
        return isinstance(used, Type) and used.pure

    return all(map(pure, parts_of(plan, Used)))


def is_repeatable(plan: Any) -> bool:
    """Return whether a part of a plan may be evaluated several times: it uses no volatile function."""

    def repeatable(used: Used) -> bool:
        return not isinstance(used, Function) or used.volatility != "volatile"

    return all(map(repeatable, parts_of(plan, Used)))


def is_settled(plan: ReadPlan | InsertPlan | UpdatePlan | DeletePlan) -> bool:
    """
    Return whether PostgreSQL's best plan of a statement does not depend on the values of its parameters.

    That is so if all parameters are values of a key, which finds at most one row, or new values.
    """
    if isinstance(plan, InsertPlan):
        one = len(plan.rows) == 1 and plan.conflict is None
        return one and not any(map(_has_unit, plan.columns)) and _is_single(plan.returning)
    if isinstance(plan, ReadPlan):
        one = plan.call is None
        inside: Any = (plan.outputs, plan.order, plan.distinct, plan.embeds)
    else:
        settings = plan.settings if isinstance(plan, UpdatePlan) else ()
        one = _is_single(plan.returning) and not any(_has_unit(each.column) for each in settings)
        inside = plan.returning
    return one and _is_of_key(plan.relation, plan.where) and not _has_value(inside)


def _is_single(returning: PlannedReturning) -> bool:
    """Return whether a write is one statement, whose RETURNING is the result."""
    return returning.reread is None and not returning.must_write


def _has_unit(column: Column) -> bool:
    """Return whether a column has a default unit for numbers, as "interval hour" has."""
    # A parameter's type has no such modifier: the same number would mean seconds.
    return column.declared.startswith("interval ")


def _is_of_key(relation: Relation, where: Condition | None) -> bool:
    """Return whether a condition matches at most one row: it compares all columns of a key with values."""
    if relation.kind != "table" or relation.has_children:
        return False
    parts = where.conditions if isinstance(where, BoolExpr) and not where.any else (where,)
    columns = set()
    for each in parts:
        if not isinstance(each, Compare) or not isinstance(each.right, Bound) or each.left.links:
            return False
        left, whole = each.left, not (each.quantifier or each.not_distinct)
        itself = not (left.steps or left.applied or left.function)
        if each.operator.name == "=" and whole and itself:
            columns.add(left.column.name)
    return any(columns.issuperset(key.columns) for key in relation.unique_keys)


def _has_value(plan: Any) -> bool:
    """Return whether a part of a plan contains a parameter."""
    return any(isinstance(each, Bound) for each in parts_of(plan, Bound | Used))


def refuse_guarded(catalog: Catalog, plan: ReadPlan) -> None:
    """
    Refuse an estimate from the planner for relations with row-level security policies.

    Estimates are based on statistics of all rows, also of those that policies hide from the caller. A
    function may read any relation.

    Raises:
        InvalidArgument: Policies may hide rows of the statistics.
    """

    def is_open(used: Used) -> bool:
        if isinstance(used, Relation):
            return used.estimable
        return isinstance(used, Type) or not catalog.policies

    rows = (plan.call or plan.relation, plan.distinct, plan.outputs, plan.where)
    if not all(map(is_open, parts_of(rows, Used))):
        raise InvalidArgument(
            "what the planner expects would tell of rows that policies hide",
            path="count",
            hint='"exact" counts what may be seen',
        )


def parts_of(plan: Any, kinds: Any) -> Iterator[Any]:
    """Yield the parts of a plan that are instances of `kinds`, without descending into these."""
    if isinstance(plan, kinds):
        yield plan
    elif isinstance(plan, tuple):
        for each in plan:
            yield from parts_of(each, kinds)
    elif is_dataclass(plan) and not isinstance(plan, Column):  # its relation covers it
        for name in _names(plan.__class__):
            yield from parts_of(getattr(plan, name), kinds)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
