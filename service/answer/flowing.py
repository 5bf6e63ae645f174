"""
What the verbs stream and export read: rows of a relation, or those that a function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from service.answer.called import as_csv, find
from service.answer.served import Served
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation
from service.db.codec import Codec
from service.db.database import Database
from service.db.statements import kept_txn
from service.functions import Function
from service.plan.hidden import refuse_veiled
from service.plan.read import plan_find
from service.plan.types import ReadPlan
from service.request.functions import parse_called
from service.request.read import Format, Limits, check_format, parse_unpaged
from service.request.types import FindRequest, Form
from service.sql.select import select
from service.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class Flow:
    """
    Rows that are read without a limit.

    Args:
        codec: For the values, both ways.
        statement: Reads them.
        values: Of the call.
        form: Of the rows.
        timeout: Seconds that each step of reading may take.
        reads: Whether to read them changes nothing; what is changed is kept if all rows could
            be sent, and not otherwise.
        around: What runs each step in the worker, if it does not run by itself.
    """

    codec: Codec
    statement: Statement
    values: Sequence[Any]
    form: Form
    timeout: float | None
    reads: bool = True
    around: tuple[Callable[..., Any], ...] = ()


class Source(Protocol):
    """Makes a flow of what a call asks for."""

    def __call__(
        self,
        served: Served,
        of: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        limits: Limits,
        format: Format | None = None,
    ) -> Flow:
        """
        Read the arguments of a call, less those that its verb has taken.

        Args:
            served: What is served.
            of: The relation, or the functions of a name.
            args: By position.
            kwargs: By name.
            limits: What a call may ask for.
            format: What the rows are written as, if they are to be text.

        Raises:
            ServiceError: What is wrong with them.
        """


class Flowing(Verbs):
    """
    Verbs that send all rows of a flow.

    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What one row may weigh.
        source: Of the rows.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int, source: Source) -> None:
        super().__init__(database, limits, max_bytes)
        self.source = source


def of_relation(
    served: Served,
    of: Relation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    format: Format | None = None,
) -> Flow:
    """Make a flow of a relation's rows."""
    call = parse_unpaged(args, kwargs, limits, f"{of.schema}.{of.name}")
    check_format(format, call.request.embeds)
    make = _as_csv if format == "csv" else _unpaged
    statement = served.statement(make, of, call.request)
    return Flow(served.codec, statement, call.values, call.request.form, call.timeout)


def of_function(
    served: Served,
    of: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    format: Format | None = None,
) -> Flow:
    """Make a flow of the rows that a function returns."""
    call = parse_called(
        of,
        args,
        kwargs,
        served.catalog,
        lambda rest, rows: parse_unpaged([], rest, limits, rows),
    )
    rows, function = call.request.of, call.request.call.function
    check_format(format, rows.embeds)
    statement = served.statement(as_csv if format == "csv" else find, function, call.request)
    around = (kept_txn,) if function.reads else ()
    return Flow(
        served.codec, statement, call.values, rows.form, call.timeout, function.reads, around
    )


def _unpaged(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    return select(_plan(catalog, relation, request))


def _as_csv(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    """Spell what PostgreSQL writes by itself, past the codec."""
    plan = _plan(catalog, relation, request)
    refuse_veiled(catalog, plan.outputs, plan.embeds)
    return select(plan)


def _plan(catalog: Catalog, relation: Relation, request: FindRequest) -> ReadPlan:
    """Plan a find whose rows carry no token of where their page ends."""
    return replace(plan_find(catalog, relation, request), keyset=False)
