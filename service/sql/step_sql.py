"""
The steps of nested new rows as statements, and the one that reads the rows of the call after them.
"""

from __future__ import annotations

from service.catalog import Relation
from service.plan.conditions import Bound
from service.plan.plans import InsertPlan, PlannedReturning, ReadPlan, UpdatePlan
from service.sql.modify import modify, reread_rows
from service.sql.select import answer_of, select
from service.sql.statement import Parameter, Statement, build_statement


def step_statement(plan: InsertPlan | UpdatePlan | ReadPlan) -> Statement:
    """Build the statement of a step."""
    return select(plan) if isinstance(plan, ReadPlan) else modify(plan)


def answer_statement(relation: Relation, returning: PlannedReturning, written: Bound) -> Statement:
    """
    Build what reads the rows of the call.

    Args:
        relation: Whose rows.
        returning: What is answered of them.
        written: Their keys, as a list of lists of PostgreSQL's text.
    """
    names, embeds = answer_of(returning)
    return build_statement(
        f"{relation.name}.create",
        reread_rows(relation, returning, Parameter(written)),
        columns=names,
        embeds=embeds,
        writes=True,
        receipt=returning.receipt,
        flagged=bool(returning.inner),
    )
