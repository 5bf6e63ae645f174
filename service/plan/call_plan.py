"""
Plan calls of functions, alone and as a source of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

from service.catalog import (
    NOWHERE,
    Argument,
    Catalog,
    Column,
    Function,
    Relation,
    Type,
    cached_per_catalog,
)
from service.errors import DatabaseRefused, InvalidArgument, NoSuchProcedure
from service.plan.clauses import both
from service.plan.joins import keyless, returned_relation
from service.plan.plans import (
    AggregatePlan,
    Bound,
    CallPlan,
    FunctionCall,
    NotNullRow,
    PlannedArgument,
    ReadPlan,
)
from service.plan.returning import follows
from service.plan.scope import has_hidden_field
from service.request.call_request import CallRequest, FunctionRowsRequest
from service.request.requests import Operand

Answer = Literal["nothing", "value", "values", "composite", "row", "rows"]
"""
The result of a call: null, a value, a list of values, a row or null, a row that is never null (of OUT
arguments), or a list of rows.
"""

RECORD, RECORDS = 2249, 2287
VOID = 2278
ARRAYS = ("anyarray", "anycompatiblearray")
"""Polymorphic types that mean arrays."""

Plan = TypeVar("Plan", ReadPlan, AggregatePlan)


def plan_call(catalog: Catalog, request: CallRequest) -> CallPlan:
    """
    Plan a plain call.

    Raises:
        InvalidArgument: `max_affected` is given for a function that returns no rows.
    """
    function = request.function
    answer = answer_kind(catalog, function)
    # Refused rather than ignored: the caller relies on it to limit a write.
    if request.max_affected is not None and (function.procedure or answer == "nothing"):
        raise InvalidArgument(
            f'"{function.name}" returns no rows that could be counted', path="max_affected"
        )
    columns = result_columns(catalog, function)
    names: tuple[str, ...] = () if function.procedure else ("answer",)
    if columns is not None and answer in ("row", "rows"):
        names = tuple(columns)
    fields = [column.type for column in columns.values()] if columns else []
    if names == ("answer",):
        fields = [function.result]
    types = tuple(catalog.plain(catalog.type(oid)) for oid in fields)
    if request.form == "json":
        _refuse_json(catalog, function, types, columns is None)
    return CallPlan(
        types=types,
        name=f"fn.{function.name}",
        call=plan_source(catalog, request),
        columns=names,
        rows=answer in ("rows", "values"),
        untyped=columns is None and function.result == RECORD,
        json=request.form == "json",
    )


def plan_called(
    catalog: Catalog,
    request: FunctionRowsRequest[Any],
    plan: Callable[[Catalog, Relation, Any], Plan],
) -> Plan:
    """
    Plan a verb on a function's rows as on those of a relation.

    Raises:
        NoSuchProcedure: The function returns no rows.
    """
    call, function = request.call, request.call.function
    rows = relation_of(catalog, function, call.generic, takes_lists(catalog, call))
    found = plan(catalog, rows, request.of)
    # A function that returns one row returns NULL if it finds none, and FROM makes that a row of nulls.
    not_null = None if function.many or function.outputs else NotNullRow("t")
    # `afterwards`: a statement does not see what a function in it writes.
    return replace(
        found,
        name=f"fn.{function.name}.{found.name.rpartition('.')[2]}",
        where=both(not_null, found.where),
        call=plan_source(catalog, call),
        afterwards=_writes(catalog, function) and _reads_more(found),
    )


def refuse_second_call(function: Function) -> None:
    """
    Check that a function may be called a second time, for what is computed beside its rows.

    Raises:
        InvalidArgument: The function may write.
    """
    if not function.reads:
        raise InvalidArgument(
            f'"{function.name}" may write, and is called once: its rows or their measures',
            path="measures",
            hint=f'"fn.{function.name}.aggregate" gives these',
        )


def plan_source(catalog: Catalog, request: CallRequest) -> FunctionCall:
    """
    Plan a function with its arguments.

    Raises:
        DatabaseRefused: It returns records of unknown type, which may contain rows with hidden fields.
    """
    function = request.function
    given = [oid for _, oid in function.outputs] or [function.result]
    if catalog.hidden_fields and (RECORDS in given or (function.outputs and RECORD in given)):
        raise DatabaseRefused(
            f'"{function.name}" gives a record of no known type, which may have hidden fields',
            hint="a row type, or an OUT argument for each value, says what it is",
            sqlstate="42P18",
        )
    arguments = tuple(_arguments(catalog, request))
    # An alias in FROM needs column names for OUT arguments and for scalar values.
    names = tuple(name for name, _ in function.outputs)
    if not names and function.many and result_columns(catalog, function) is None:
        names = ("answer",)
    return FunctionCall(function, arguments, names)


def answer_kind(catalog: Catalog, function: Function) -> Answer:
    """Return the kind of a function's result."""
    if function.procedure:
        return "row" if function.outputs else "nothing"
    rows = result_columns(catalog, function) is not None
    if function.many:
        return "rows" if rows else "values"
    if function.outputs:
        return "row"
    if function.result == VOID:
        return "nothing"
    return "composite" if rows else "value"


@cached_per_catalog
def result_columns(catalog: Catalog, function: Function) -> Mapping[str, Column] | None:
    """Return the columns of the rows that a function returns; None if it returns values."""
    fields = function.outputs
    if not fields:
        result = catalog.plain(catalog.type(function.result))
        if result.kind != "composite":
            return None
        fields = tuple((name, oid) for name, oid in result.fields if name)
    return {name: Column(name, oid, catalog.type(oid).sql) for name, oid in fields}


@cached_per_catalog
def relation_of(catalog: Catalog, function: Function, name: str, listed: bool) -> Relation:
    """
    Return the relation of a function's rows, or one with their columns.

    Args:
        catalog: The catalog.
        function: The function.
        name: Name of the actual type of polymorphic arguments, if there are any.
        listed: Whether the actual type is an array of it.

    Raises:
        NoSuchProcedure: It returns no rows, or a procedure gave them.
    """
    served = returned_relation(catalog, function)
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
    # Polymorphic columns have the actual type of this call, so that each call may have other columns.
    if name:
        columns = {
            each.name: replace(each, type=type.oid, declared=type.sql)
            for each in columns.values()
            for type in [generic(catalog, name, catalog.type(each.type), listed)]
        }
    return Relation(NOWHERE, f"fn.{function.name}", "view", columns)


def generic(catalog: Catalog, name: str, type: Type, listed: bool) -> Type:
    """Return the actual type of a polymorphic type, an array if `listed`; any other type unchanged."""
    if type.kind != "pseudo":
        return type
    element = catalog.types_by_name[name]
    if listed or type.name in ARRAYS:
        return catalog.array_of(element) or element
    return element


def takes_lists(catalog: Catalog, request: CallRequest) -> bool:
    """Return whether an argument of type `anyelement` or similar is a list, so that it means an array."""
    return any(
        request.lists & {at, argument.name} and catalog.type(argument.type).name not in ARRAYS
        for at, argument in enumerate(request.function.inputs)
    )


def _refuse_json(catalog: Catalog, function: Function, types: Iterable[Type], bare: bool) -> None:
    """
    Check that a result may be returned as JSON text.

    Raises:
        InvalidArgument: It may have hidden fields, which the codec has to remove, or it is a CALL's.
    """
    hidden = any(has_hidden_field(catalog, type.oid) for type in types)
    if (
        function.procedure
        or hidden
        or (bare and catalog.hidden_fields and function.result == RECORD)
    ):
        raise InvalidArgument(
            f'what "{function.name}" answers does not come as JSON text',
            path="form",
            hint='"dicts" or "lists"',
        )


def _arguments(catalog: Catalog, request: CallRequest) -> Iterator[PlannedArgument]:
    given = dict(request.named)
    ordered = _in_order(request)
    for at, argument in enumerate(request.function.inputs):
        operand = (
            request.positional[at] if at < len(request.positional) else given.get(argument.name)
        )
        if operand is not None:
            by_position = ordered or at < len(request.positional)
            key = at if at < len(request.positional) else argument.name
            planned = _argument(catalog, request, argument, operand, key)
            yield replace(planned, name="") if by_position else planned
    if request.function.procedure:  # CALL requires an argument for each OUT parameter
        for argument in request.function.arguments:
            if argument.mode == "out":
                yield PlannedArgument(argument.name, None)


def _in_order(request: CallRequest) -> bool:
    """
    Return whether all arguments must be passed by position, because the function is variadic.

    PostgreSQL uses the default of a variadic argument only in a call without named arguments, and no
    defaults at all if the variadic argument is given.

    Raises:
        InvalidArgument: The variadic argument is given, but one before it is left out.
    """
    inputs = request.function.inputs
    if not inputs or inputs[-1].mode != "variadic":
        return False
    given = {name for name, _ in request.named}
    left_out = [each.name not in given for each in inputs[len(request.positional) :]]
    first = left_out.index(True) if True in left_out else len(left_out)
    if not all(left_out[first:]):
        name = inputs[len(request.positional) + first].name
        raise InvalidArgument(
            f'"{name}" is missing: its default goes only without what stands behind it', path=name
        )
    return bool(left_out and left_out[-1])


def _argument(
    catalog: Catalog,
    request: CallRequest,
    argument: Argument,
    operand: Operand,
    key: str | int,
) -> PlannedArgument:
    type = catalog.type(argument.type)
    if request.generic:
        listed = key in request.lists or argument.mode == "variadic"
        type = generic(catalog, request.generic, type, listed)
    bound = Bound(operand.slot, type, operand.path)
    return PlannedArgument(argument.name, bound, argument.mode == "variadic")


def _writes(catalog: Catalog, function: Function) -> bool:
    """Return whether a function may write rows that are related to the rows it returns."""
    return not function.reads and returned_relation(catalog, function) is not None


def _reads_more(plan: ReadPlan | AggregatePlan) -> bool:
    """Return whether a plan may read more than the rows that the function returned."""
    if isinstance(plan, AggregatePlan):
        return True
    return bool(plan.embeds or plan.where is not None or follows(plan.outputs, plan.order))
