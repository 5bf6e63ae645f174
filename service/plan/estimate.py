"""
Whether a caller may know what the planner expects.

It goes by statistics of all rows, those too that policies hide from the caller.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.catalog import Catalog, Relation
from service.errors import InvalidArgument
from service.plan.conditions import Condition, Every, Exists, Expression, Link, Not, Present
from service.plan.types import ReadPlan


def refuse_guarded(catalog: Catalog, plan: ReadPlan) -> None:
    """
    Refuse to tell what the planner expects of a read.

    Raises:
        InvalidArgument: Policies may hide rows that the statistics speak of.
    """
    if not all(_is_open(catalog, each) for each in _read(plan)):
        raise InvalidArgument(
            "what the planner expects would tell of rows that policies hide",
            path="count",
            hint='"exact" counts what may be seen',
        )


def _is_open(catalog: Catalog, read: Relation | None) -> bool:
    """Return whether no policy stands before a relation; None is a function, which reads any."""
    return not catalog.policies if read is None else read.estimable


def _read(plan: ReadPlan) -> Iterator[Relation | None]:
    """Return each relation that the number of rows depends on, and None for a function."""
    yield None if plan.call is not None else plan.relation
    for expression in plan.distinct if isinstance(plan.distinct, tuple) else ():
        yield from _of_expression(expression)
    for output in plan.outputs:
        yield from _of_expression(output.expression)
    yield from _of_condition(plan.where)


def _of_condition(where: Condition | None) -> Iterator[Relation | None]:
    if isinstance(where, Every):
        for each in where.conditions:
            yield from _of_condition(each)
    elif isinstance(where, Not):
        yield from _of_condition(where.condition)
    elif isinstance(where, Exists):
        yield from _of_link(where.link)
        yield from _of_condition(where.condition)
    elif where is not None and not isinstance(where, Present):
        yield from _of_expression(where.left)


def _of_expression(expression: Expression) -> Iterator[Relation | None]:
    if expression.function is not None:
        yield None
    for link in expression.links:
        yield from _of_link(link)


def _of_link(link: Link) -> Iterator[Relation | None]:
    yield None if link.function is not None else link.relation
    if link.passage is not None:
        yield link.passage.relation
    yield from _of_condition(link.where)
