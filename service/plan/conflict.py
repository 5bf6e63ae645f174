"""
What `upsert` does about rows that are there already, against the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from service.catalog import Column, Relation, Type, UniqueIndex, UniqueKey
from service.errors import InvalidArgument, UnknownName
from service.plan.conditions import Bound, Operator
from service.plan.expressions import Scope
from service.plan.writable import writable
from service.plan.writes import Conflict, Takeover
from service.request.types import Assignment, OnConflict

Rows = Sequence[Sequence[Assignment]]


def plan_conflict(scope: Scope, conflict: OnConflict, rows: Rows) -> Conflict:
    """
    Plan what becomes of new rows whose key is there already.

    A row there takes over what its new row gives, less the key; when that is nothing, the
    key itself, so that the row still comes back.

    Raises:
        InvalidArgument: A column is unknown or made by the database, or there is no such key.
    """
    relation = scope.relation
    index = _index(relation, conflict)
    if index is not None:
        key, stays, nulls, target = index.used, index.columns, index.nulls, index.target
    else:
        key = stays = _key(scope, conflict.key)
        _refuse_late(relation, key)
        nulls, target = any(each.nulls for each in _alike(relation, key)), None
    if conflict.update is not None:
        columns = [
            writable(relation, name, f"update.{at}") for at, name in enumerate(conflict.update)
        ]
        settings = tuple(Takeover(column) for column in columns)
        return Conflict(key, settings, _equal(scope, key), nulls, target)
    given = dict.fromkeys(each.column for row in rows for each in row)
    settable = {name for name, column in relation.columns.items() if not column.made}
    takeovers = [
        Takeover(relation.columns[name], _kept(scope, rows, key, name))
        for name in given
        if name in settable and name not in stays
    ]
    if not takeovers:
        takeovers = [Takeover(relation.columns[name]) for name in key if name in settable][:1]
    return Conflict(key, tuple(takeovers), _equal(scope, key), nulls, target)


def _equal(scope: Scope, key: Sequence[str]) -> tuple[Operator, ...]:
    types = [scope.catalog.type(scope.relation.columns[name].type) for name in key]
    return tuple(scope.operator("=", type, type) for type in types)


def _index(relation: Relation, conflict: OnConflict) -> UniqueIndex | None:
    """
    Return the index that is named, if it is no key.

    Raises:
        InvalidArgument: ON CONFLICT cannot go by it.
    """
    found = next((each for each in relation.unique_indexes if each.name == conflict.key), None)
    if found is None:
        return None
    if found.fault:
        raise InvalidArgument(
            f'no row can be upserted by "{found.name}": it {found.fault}',
            path="on_conflict",
            hint="name another unique key or index",
            candidates=_keys(relation),
        )
    if found.skips and conflict.update != ():
        raise InvalidArgument(
            f'by "{found.name}", an exclusion constraint, rows that are there can be left alone only',
            path="on_conflict",
            hint="update: [] does so",
        )
    return found


def _key(scope: Scope, key: str | tuple[str, ...] | None) -> tuple[str, ...]:
    relation = scope.relation
    named = {each.name: each.columns for each in relation.unique_keys}
    if key is None:
        if not relation.primary_key:
            raise _keyless(relation, f'"{relation.name}" has no primary key')
        return relation.primary_key
    if isinstance(key, str):
        if key in named:
            return named[key]
        if key not in relation.columns:
            of = f'relation "{relation.name}"'
            known = [*named, *(each.name for each in relation.unique_indexes)]
            found = UnknownName("unique key", key, known, of, "on_conflict")
            found.details.setdefault("hint", _keyless(relation, "").details["hint"])
            raise found
        key = (key,)
    for at, name in enumerate(key):
        relation.column(name, f"on_conflict.{at}")
    # a view's keys are those of its tables, which PostgreSQL knows
    if relation.kind == "table" and scope.catalog.key_of(relation, key) is None:
        raise _keyless(relation, f"no unique key over {', '.join(key)}")
    return key


def _keyless(relation: Relation, message: str) -> InvalidArgument:
    """Return the refusal of an upsert that has no key to go by, with what there is."""
    keys = _keys(relation)
    indexes = [each.name for each in relation.unique_indexes if not each.fault]
    if keys or indexes:
        example = json.dumps(keys[0] if keys else indexes[0])
        hint = f"on_conflict names a unique key or index, as in {example}"
    else:
        hint = f'"{relation.name}" has no unique key at all: "{relation.name}.create" adds rows'
    return InvalidArgument(message, path="on_conflict", hint=hint, candidates=keys)


def _refuse_late(relation: Relation, key: Sequence[str]) -> None:
    """Refuse a key that ON CONFLICT cannot go by."""
    if _is_late(relation, key):
        raise InvalidArgument(
            f"no row can be upserted by {', '.join(key)}: that key is deferrable, or of periods",
            path="on_conflict",
            hint="name the columns of another unique key" if _keys(relation) else None,
            candidates=_keys(relation),
        )


def _is_late(relation: Relation, key: Sequence[str]) -> bool:
    """PostgreSQL goes by all keys over the columns, so one that it can go by does not help."""
    return not all(each.arbiter for each in _alike(relation, key))


def _alike(relation: Relation, key: Sequence[str]) -> list[UniqueKey]:
    return [each for each in relation.unique_keys if set(each.columns) == set(key)]


def _keys(relation: Relation) -> list[list[str]] | None:
    """Give the keys that may be named, if there are any."""
    keys = [each.columns for each in relation.unique_keys]
    return [list(key) for key in keys if not _is_late(relation, key)] or None


def _exactly(scope: Scope, column: Column) -> Type:
    """Give a column's type with its modifiers: a key is compared as it will be stored."""
    return replace(scope.catalog.type(column.type), sql=column.declared)


def _kept(
    scope: Scope, rows: Rows, key: tuple[str, ...], name: str
) -> tuple[tuple[Bound, ...], ...]:
    """Give the keys of the rows that say nothing of a column; those without a key are new."""
    found = []
    for row in rows if key else ():
        operands = {each.column: each.operand for each in row}
        values = [operands.get(part) for part in key]
        if name in operands or None in values:
            continue
        types = [_exactly(scope, scope.relation.columns[part]) for part in key]
        found.append(
            tuple(
                scope.bound(operand, type)
                for operand, type in zip(values, types, strict=True)
                if operand is not None
            )
        )
    return tuple(found)
