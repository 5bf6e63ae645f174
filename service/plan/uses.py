"""
What follows for a plan from all that it uses: of the catalog relations, functions and types, and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from service.catalog import NOWHERE, Catalog, Column, Function, Relation, Type
from service.errors import InvalidArgument
from service.plan.conditions import BoolExpr, Bound, Compare, Condition
from service.plan.plans import DeletePlan, InsertPlan, PlannedReturning, ReadPlan, UpdatePlan

Used = Relation | Function | Type


def is_pure(plan: Any, written: Relation | None = None) -> bool:
    """
    Return whether a plan is certain to leave nothing behind in the session that runs it.

    Args:
        plan: Frozen, of frozen parts; whatever it uses of the catalog stands in it.
        written: The relation that it writes to, if any.
    """

    def pure(used: Used) -> bool:
        if isinstance(used, Relation):
            if used is written:
                return used.pure_writes
            # Of no schema are groups, say, which read nothing but what else stands in the plan.
            return used.pure_reads or used.schema == NOWHERE
        # No function is: a setting, a temporary table or a lock is left behind by way of one alone.
        return isinstance(used, Type) and used.pure

    return all(map(pure, parts_of(plan, Used)))


def is_repeatable(plan: Any) -> bool:
    """Return whether a part of a plan has one value, however often it stands in a statement."""

    def repeatable(used: Used) -> bool:
        return not isinstance(used, Function) or used.volatility != "volatile"

    return all(map(repeatable, parts_of(plan, Used)))


def is_settled(plan: ReadPlan | InsertPlan | UpdatePlan | DeletePlan) -> bool:
    """
    Return whether PostgreSQL would run a statement in the same way whatever the values of a call are.

    They are those of a key, of which there is one row at most whatever else is asked of it, and those
    that are written: no statistics say anything of either.
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
    """Return whether one statement writes and reads back, and does not fail by what it writes."""
    return returning.reread is None and not returning.must_write


def _has_unit(column: Column) -> bool:
    """Return whether a column gives a number without a unit its own one, as an "interval hour" does."""
    # To a parameter, which is of no such type, a number is one of seconds.
    return column.declared.startswith("interval ")


def _is_of_key(relation: Relation, where: Condition | None) -> bool:
    """Return whether a condition is of one row at most: by a key of a table, and values beside it."""
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
    """Return whether a value of the call stands in a part of a plan."""
    return any(isinstance(each, Bound) for each in parts_of(plan, Bound | Used))


def refuse_guarded(catalog: Catalog, plan: ReadPlan) -> None:
    """
    Refuse to answer what the planner expects of a read where policies stand before its rows.

    It goes by statistics of all rows, those too that policies hide from the caller. What a function
    reads is not known.

    Raises:
        InvalidArgument: Policies may hide rows that the statistics speak of.
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
    """Yield what stands in a plan and is of some classes; what is in those is not looked at."""
    if isinstance(plan, kinds):
        yield plan
    elif isinstance(plan, tuple):
        for each in plan:
            yield from parts_of(each, kinds)
    elif is_dataclass(plan) and not isinstance(plan, Column):  # which its relation speaks for
        for name in _names(plan.__class__):
            yield from parts_of(getattr(plan, name), kinds)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
