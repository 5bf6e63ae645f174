"""
Plan updates with different changes for each row: UPDATE … FROM (VALUES …), joined by a key.

Even with many rows, a column changes in few ways: to a value, or by certain operators at certain paths.
Each way is one expression with columns of its own in VALUES, and each row has the number of its way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from service.catalog import Catalog, Column, Relation, Type
from service.errors import InvalidArgument, NoSuchProcedure
from service.plan.operators import plan_computed
from service.plan.plans import (
    Bound,
    CallRows,
    CaseValue,
    Computed,
    Setting,
    UpdateJoin,
    UpdatePlan,
    ValuesColumn,
)
from service.plan.read_plan import check_unique_key
from service.plan.returning import plan_returning
from service.plan.scope import Scope
from service.plan.write_plan import assigned
from service.request.requests import Assignment, UpdateRowsRequest
from service.request.row_values import expression_shape

Cell = Bound | int | None


@dataclass
class _Source:
    """The VALUES list under construction: a dict of cells for each row."""

    rows: list[dict[str, Cell]]
    columns: dict[str, Type] = field(default_factory=dict)

    def add(self, prefix: str, type: Type) -> ValuesColumn:
        """Add a column, and return the reference to it."""
        name = f"{prefix}{len(self.columns)}"
        self.columns[name] = type
        return ValuesColumn(name)

    def given(self) -> CallRows:
        """Return the finished VALUES list."""
        columns = tuple((ValuesColumn(name), type) for name, type in self.columns.items())
        return CallRows(
            columns, tuple(tuple(row.get(name) for name in self.columns) for row in self.rows)
        )


def key_of_rows(
    catalog: Catalog, relation: Relation, by: tuple[str, ...] | None
) -> tuple[str, ...]:
    """
    Return the columns of the key by which rows are found.

    Raises:
        NoSuchProcedure: The relation has no primary key, and the call names no other key.
        InvalidArgument: The columns are not a unique key.
    """
    if by is None:
        if not relation.primary_key:
            raise NoSuchProcedure(
                f'"{relation.name}" has no primary key, and so no update by rows',
                hint='"by" names the columns of a unique key',
                relation=relation.name,
            )
        return relation.primary_key
    for at, name in enumerate(by):
        relation.column(name, f"by.{at}")
    hint = "by other columns, a row could be changed by several"
    check_unique_key(catalog, relation, by, "by", hint)
    return by


def split_row(
    key: Sequence[str], row: Sequence[Assignment], path: str
) -> tuple[list[Assignment], list[Assignment]]:
    """
    Split a row into its key, in the order of the key's columns, and its changes.

    Raises:
        InvalidArgument: A column of the key is missing, or its value is computed.
    """
    of_key = {each.column: each for each in row if each.column in key}
    for name in key:
        each = of_key.get(name)
        if each is None:
            raise InvalidArgument(
                f'a row names its "{name}", by which it is found', path=path, column=name
            )
        if each.computes or each.operand is None:
            raise InvalidArgument("a key is a value", path=each.path, column=name)
    return [of_key[name] for name in key], [each for each in row if each.column not in key]


def plan_update_rows(
    catalog: Catalog, relation: Relation, request: UpdateRowsRequest
) -> UpdatePlan:
    """
    Plan an update with different changes for each row.

    Raises:
        NoSuchProcedure: The relation has no primary key, and the call names no other key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    key = key_of_rows(catalog, relation, request.by)
    split = [split_row(key, row, f"rows.{at}") for at, row in enumerate(request.rows)]
    source = _Source([{"n": at} for at in range(len(split))], {"n": scope.builtin("int4")})
    for at, name in enumerate(key):
        source.columns[f"k{at}"] = type = catalog.type(relation.columns[name].type)
        for cells, (of_key, _) in zip(source.rows, split, strict=True):
            cells[f"k{at}"] = _bound(of_key[at], type)
    changed: dict[str, list[list[Assignment]]] = {}
    most = max((len(each.items) for _, changes in split for each in changes), default=0)
    for at, (_, changes) in enumerate(split):
        for each in changes:
            # Not setdefault, which makes a list for each value: 1,000 rows took 108 ms instead of 53.
            if each.column not in changed:
                changed[each.column] = [[] for _ in split]
            changed[each.column][at].append(_padded(each, most))
    settings = tuple(_setting(scope, source, rows) for rows in changed.values())
    settable = [each.column for each in settings]
    planned = plan_returning(scope, request.returning, ["update"], settable)
    joined = UpdateJoin(source.given(), key, scope.equals(key))
    return UpdatePlan(f"{relation.name}.update", relation, settings, None, planned, joined)


def _setting(scope: Scope, source: _Source, rows: Sequence[Sequence[Assignment]]) -> Setting:
    """Plan the changes of a column, given each row's assignments to it, which may be empty."""
    first = next(given[0] for given in rows if given)
    column = assigned(scope.relation, first)
    if any(given and given[0].operand is None for given in rows):
        return _default(column, rows)
    ways: dict[Hashable, tuple[int, ValuesColumn | Computed, list[ValuesColumn]]] = {}
    selector = source.add("s", scope.builtin("int4"))
    for cells, given in zip(source.rows, rows, strict=True):
        if not given:
            cells[selector.name] = 0
            continue
        shape = expression_shape(given)
        value = _value(scope, column, given)
        bounds = _bounds(value)
        if shape not in ways:
            columns = [source.add("v", each.type) for each in bounds]
            ways[shape] = len(ways) + 1, _with_columns(value, columns), columns
        number, _, columns = ways[shape]
        cells[selector.name] = number
        cells.update((each.name, bound) for each, bound in zip(columns, bounds, strict=True))
    found = tuple(way for _, way, _ in ways.values())
    if len(found) == 1 and all(rows):
        del source.columns[selector.name]
        return Setting(column, found[0])
    return Setting(column, CaseValue(column, found, selector))


def _padded(given: Assignment, most: int) -> Assignment:
    """Return a `$remove` padded to `most` values by repeating the last one, so that all share one way."""
    last = given.items[-1:]
    return given._replace(items=given.items + last * (most - len(given.items))) if last else given


def _default(column: Column, rows: Sequence[Sequence[Assignment]]) -> Setting:
    # DEFAULT is not an expression: it cannot be one of the results of the CASE that selects a row's way.
    other = next((given for given in rows if not given or given[0].operand is not None), None)
    if other is not None:
        raise InvalidArgument(
            f'"{column.name}" takes its default in every row, or in none',
            path=next(given[0].path for given in rows if given and given[0].operand is None),
            column=column.name,
        )
    return Setting(column, None)


def _value(scope: Scope, column: Column, given: Sequence[Assignment]) -> Bound | Computed:
    if given[0].computes:
        return plan_computed(scope, column, given)
    return _bound(given[0], scope.catalog.plain(scope.catalog.type(column.type)))


def _bounds(value: Bound | Computed) -> list[Bound]:
    """Return the parameters of a row's value, without those of the paths into JSON."""
    if isinstance(value, Bound):
        return [value]
    operands = (each for part in value.parts for each in part.operands)
    return [each for each in operands if isinstance(each, Bound)]


def _with_columns(
    value: Bound | Computed, columns: Sequence[ValuesColumn]
) -> ValuesColumn | Computed:
    """Return the expression of a way: a row's value with columns of VALUES in place of its parameters."""
    if isinstance(value, Bound):
        return columns[0]
    rest = iter(columns)
    # PostgreSQL does not report which row an expression failed in, so the path is that of all rows.
    parts = (
        replace(part, operands=tuple(islice(rest, len(part.operands))), path="rows")
        for part in value.parts
    )
    return replace(value, parts=tuple(parts))


def _bound(each: Assignment, type: Type) -> Bound:
    if each.operand is None:
        raise TypeError("a default has no value")
    return Bound(each.operand.slot, type, each.operand.path, cast=False)
