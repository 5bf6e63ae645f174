"""
Parse the arguments of the verbs that write: create, update, upsert, delete, import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidArgument, counted
from service.request.arguments import (
    IDEMPOTENCY_KEY,
    RECEIPT,
    Arguments,
    Referenced,
    Values,
    row_of,
    rows_of,
)
from service.request.filters import FilterParser, holds_always
from service.request.read_request import (
    Limits,
    Parsed,
    parse_embed,
    parse_form,
    parse_key,
)
from service.request.requests import (
    EVERYTHING,
    Assignment,
    CreateRequest,
    DeleteRequest,
    Filter,
    Old,
    OnConflict,
    Operand,
    Pick,
    Returning,
    Target,
    UpdateRequest,
    UpdateRowsRequest,
)
from service.request.row_values import assignments, refuse_many_steps
from service.request.select_list import (
    check_name,
    parse_names,
    parse_order,
    parse_select,
    unquoted,
)

RETURNING = ("select", "order", "embed", "returning", "form", IDEMPOTENCY_KEY, RECEIPT)
PLAIN, RETURNED = frozenset(["key", "values", "changes"]), Returning()
"""Arguments that do not affect the result of a write, and the default result."""
PICK = ("limit", "skip_locked")
BY_ROWS = ("rows", "by")
TARGET = ("where", "expect", "max_affected", "all")
START = ("columns", "on_conflict", "update")
"""Arguments that only the first call of an upload takes."""
KNOWN_IMPORT = ("csv", "upload", "done", IDEMPOTENCY_KEY, RECEIPT, *START)


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """
    One call of an import.

    Args:
        rows: Dicts, or lists of values in the order of `columns`; None if the call has none.
        csv: CSV text; None if the call has none.
        columns: Columns of the rows, if given; CSV then has no header.
        conflict: ON CONFLICT; None if a duplicate key is an error.
        upload: Id of the upload that this call belongs to.
        done: Whether it is the last call of the import.
        receipt: Whether the result includes the transaction id.
        timeout: The caller's timeout in seconds, if any.
    """

    rows: Sequence[Any] | None
    csv: str | None
    columns: tuple[str, ...] | None
    conflict: OnConflict | None
    upload: str | None
    done: bool
    receipt: bool
    timeout: float | None

    @property
    def empty(self) -> bool:
        """Whether the call has no rows."""
        return not self.rows and not self.csv


def parse_create(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[CreateRequest]:
    """Parse the arguments of `create`; referenced values stay marked."""
    return with_rows(*_create(args, kwargs, limits))


def parse_create_options(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[CreateRequest]:
    """Parse the arguments of `create` except its rows."""
    options, _ = _create(args, kwargs, limits)
    return options


def with_rows(options: Parsed[CreateRequest], given: Any) -> Parsed[CreateRequest]:
    """Parse rows, and return the call with them; their values follow those of the options."""
    values = Values(options.values)
    rows, many = rows_of(given, "values")
    parsed = tuple(
        assignments(row, f"values.{at}" if many else "values", values)
        for at, row in enumerate(rows)
    )
    asked = options.request  # constructed directly: dataclasses.replace takes three times as long
    request = CreateRequest(
        parsed, many, asked.returning, asked.max_affected, asked.conflict, asked.embeds_nested
    )
    return Parsed(request, values.marked(), options.timeout)


def parse_upsert(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[CreateRequest]:
    """Parse the arguments of `upsert`; referenced values stay marked."""
    known = [*RETURNING, "max_affected", "on_conflict", "update", "where"]
    given = Arguments(args, kwargs, ["values"], known)
    values = Values()
    conflict = _upserting(given, values, limits)
    return with_rows(_options(given, values, limits, conflict), given.required("values"))


def _create(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> tuple[Parsed[CreateRequest], Any]:
    """Return the call without its rows, and the rows unparsed."""
    given = Arguments(args, kwargs, ["values"], [*RETURNING, "max_affected"])
    rows = given.required("values")
    return _options(given, Values(), limits), rows


def _options(
    given: Arguments, values: Values, limits: Limits, conflict: OnConflict | None = None
) -> Parsed[CreateRequest]:
    """Return the call without its rows."""
    request = CreateRequest(
        (),
        False,
        _returning(given, values, limits, olds=conflict is not None),
        given.integer("max_affected"),
        conflict,
        given.value("embed") is None,
    )
    return Parsed(request, values.marked(), given.timeout())


def parse_update(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[UpdateRequest]:
    """Parse the arguments of `update`, by key or by filter."""
    given = _of_update(args, kwargs)
    if "by" in given:
        raise InvalidArgument('"by" goes with "rows"', path="by")
    values = Values()
    changes = row_of(given.required("changes"), "changes")
    request = UpdateRequest(
        _target(given, values, limits),
        assignments(changes, "changes", values, "changes"),
        _returning(given, values, limits, olds=True),
        given.integer("max_affected"),
        _pick(given, values),
    )
    refuse_many_steps((request.changes,), "changes")
    return Parsed(request, values.freeze(), given.timeout())


def parse_update_rows(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[UpdateRowsRequest]:
    """Parse the arguments of `update` with `rows`, which have changes of their own each."""
    given = _of_update(args, kwargs)
    for name in ("key", "changes", *TARGET, *PICK):
        if name in given and name != "max_affected":
            raise InvalidArgument(f'either "rows" or "{name}"', path=name)
    values = Values()
    rows, many = rows_of(given.value("rows"), "rows")
    if not many:
        raise InvalidArgument('"rows" is a list of rows', path="rows")
    if len(rows) > limits.max_rows:
        raise InvalidArgument(
            f"a call changes at most {counted(limits.max_rows, 'row')}", path="rows"
        )
    by = given.value("by")
    request = UpdateRowsRequest(
        tuple(assignments(row, f"rows.{at}", values, "changes") for at, row in enumerate(rows)),
        None if by is None else parse_names(by, "by"),
        _returning(given, values, limits, olds=True),
        given.integer("max_affected"),
    )
    if request.by == ():
        raise InvalidArgument("a key has columns", path="by")
    refuse_many_steps(request.rows, "rows")
    return Parsed(request, values.freeze(), given.timeout())


def _of_update(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    return Arguments(args, kwargs, ["key", "changes"], [*TARGET, *PICK, *BY_ROWS, *RETURNING])


def parse_delete(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[DeleteRequest]:
    """Parse the arguments of `delete`, by key or by filter."""
    given = Arguments(args, kwargs, ["key"], [*TARGET, *RETURNING])
    values = Values()
    request = DeleteRequest(
        _target(given, values, limits),
        _returning(given, values, limits, olds=True),
        given.integer("max_affected"),
    )
    return Parsed(request, values.freeze(), given.timeout())


def parse_import(args: Sequence[Any], kwargs: Mapping[str, Any]) -> ImportRequest:
    """
    Parse the arguments of `import`, except the values of its rows.

    A call with rows and without `upload` is a complete import, unless `done` is false.
    """
    given = Arguments(args, kwargs, ["rows"], KNOWN_IMPORT)
    rows, csv = given.value("rows"), given.value("csv")
    if isinstance(rows, str) and csv is None:
        rows, csv = None, rows
    if rows is not None and csv is not None:
        raise InvalidArgument('either "rows" or "csv"', path="csv")
    if not isinstance(rows, list | tuple | None):
        raise InvalidArgument('"rows" is a list of rows', path="rows")
    if not isinstance(csv, str | None):
        raise InvalidArgument('"csv" is a string', path="csv")
    upload = given.value("upload")
    if not isinstance(upload, str | None):
        raise InvalidArgument('"upload" is what the first call has answered', path="upload")
    for name in START if upload is not None else ():
        if given.value(name) is not None:
            raise InvalidArgument(f'"{name}" is for the first call of an upload', path=name)
    # Refused, rather than taken for the beginning of an upload: few may be open at a time.
    if all(given.value(name) is None for name in ("rows", "csv", "upload", "done")):
        raise InvalidArgument(
            "there is nothing to import",
            path="rows",
            hint='give "rows" or "csv"; done=False begins an upload, of many calls',
        )
    columns = given.value("columns")
    complete = upload is None and (rows is not None or csv is not None)
    return ImportRequest(
        rows,
        csv,
        None if columns is None else _columns(columns),
        _conflict(given),
        upload,
        given.flag("done", default=complete),
        given.flag(RECEIPT),
        given.timeout(),
    )


def _on_conflict(given: Arguments, update: Any) -> OnConflict:
    """Parse `on_conflict`, with the columns that `update` names."""
    key, columns = given.value("on_conflict"), None
    if update is not None:
        columns = parse_names(update, "update")
    if isinstance(key, str):  # the name of a key, an index or a column
        check_name(key, "on_conflict")
        return OnConflict(unquoted(key), columns)
    found = None if key is None else parse_names(key, "on_conflict")
    if found == ():
        raise InvalidArgument("a key has columns", path="on_conflict")
    return OnConflict(found, columns)


def _upserting(given: Arguments, values: Values, limits: Limits) -> OnConflict:
    """Parse what an upsert does to an existing row: columns to overwrite, or changes, and a condition."""
    update, changes = given.value("update"), tuple[Assignment, ...]()
    if isinstance(update, Mapping | Referenced):
        changes = assignments(row_of(update, "update"), "update", values, "changes")
        refuse_many_steps((changes,), "update")
        update = None if changes else ()
    conflict = replace(_on_conflict(given, update), changes=changes)
    if "where" in given:
        conflict = replace(conflict, where=_condition(given, conflict, values, limits))
    return conflict


def _condition(given: Arguments, conflict: OnConflict, values: Values, limits: Limits) -> Filter:
    where = FilterParser(values, limits.max_depth).parse(given.value("where"))
    if conflict.update == () and where != EVERYTHING:
        raise InvalidArgument(
            "rows that are there are left alone, whatever holds of them",
            path="where",
            hint='"update": [] does so; without it they change where the condition holds',
        )
    return where


def _target(given: Arguments, values: Values, limits: Limits) -> Target:
    # "in", not "is not None": a null key taken for a missing one would write many rows.
    if "key" in given:
        for name in ("where", "all"):
            if name in given:
                raise InvalidArgument(f'either "key" or "{name}"', path=name)
        return Target(parse_key(given.value("key"), values), _expect(given, values), EVERYTHING)
    if "expect" in given:
        raise InvalidArgument(
            '"expect" goes with a key', path="expect", hint='put conditions into "where"'
        )
    where = FilterParser(values, limits.max_depth).parse(given.value("where"))
    # Parsed in any case, so that a value that is not a boolean is refused.
    every = given.flag("all")
    if not every and holds_always(where, values.freeze()):
        raise InvalidArgument(
            "this would be for every row",
            path="where",
            hint='give a "key" or a "where", or say "all": true',
        )
    return Target(None, (), where)


def _pick(given: Arguments, values: Values) -> Pick | None:
    limit, skip_locked = given.integer("limit"), given.flag("skip_locked")
    if limit is None and not skip_locked:
        return None
    if "key" in given:
        name = "limit" if limit is not None else "skip_locked"
        raise InvalidArgument(f'"{name}" goes with a "where"', path=name)
    operand = None if limit is None else Operand(values.add(limit), "limit")
    return Pick(operand, skip_locked)


def _expect(given: Arguments, values: Values) -> tuple[Assignment, ...]:
    if given.value("expect") is None:
        return ()
    return assignments(row_of(given.value("expect"), "expect"), "expect", values, "expect")


def _returning(given: Arguments, values: Values, limits: Limits, olds: bool = False) -> Returning:
    if given.of(PLAIN):
        return RETURNED
    returning = given.value("returning")
    old: Old = returning if olds and returning in ("old", "both") else ""
    if not old and not isinstance(returning, bool | None):
        words = 'true, false, "old" or "both"' if olds else "true or false"
        hint = 'columns stand in "select", as in select=["id"]'
        raise InvalidArgument(f'"returning" is {words}', path="returning", hint=hint)
    return Returning(
        bool(old) or given.flag("returning", default=True),
        parse_select(given.value("select"), values),
        parse_order(given.value("order"), values),
        parse_embed(given, values, limits),
        parse_form(given),
        given.flag(RECEIPT),
        old,
    )


def _columns(value: Any) -> tuple[str, ...]:
    columns = parse_names(value, "columns")
    if not columns:
        raise InvalidArgument("a row has columns", path="columns")
    return columns


def _conflict(given: Arguments) -> OnConflict | None:
    if given.value("on_conflict") is None and given.value("update") is None:
        return None
    return _on_conflict(given, given.value("update"))
