"""
Whether a plan is certain to leave nothing behind in the session that runs it.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from service.catalog import NOWHERE, Column, Function, Relation, Type
from service.plan.conditions import Bound


def is_pure(plan: Any, written: Relation | None = None) -> bool:
    """
    Return whether everything that a plan names is pure.

    Args:
        plan: Frozen, of frozen parts; whatever it uses of the catalog stands in it.
        written: The relation that it writes to, if any.
    """
    if isinstance(plan, Function):
        return False
    if isinstance(plan, Type):
        return plan.pure
    if isinstance(plan, Bound):
        return plan.type.pure
    if isinstance(plan, Relation):
        if plan is written:
            return plan.pure_writes
        return plan.pure_reads or plan.schema == NOWHERE
    if isinstance(plan, tuple):
        return all(is_pure(each, written) for each in plan)
    if is_dataclass(plan) and not isinstance(plan, Column):  # which its relation speaks for
        return all(is_pure(getattr(plan, name), written) for name in _names(plan.__class__))
    return True


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
