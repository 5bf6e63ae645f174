"""
Writing requests and the catalog to plans: INSERT, UPDATE, DELETE, ON CONFLICT, COPY.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from service.catalog import Catalog, Column, Relation, UniqueIndex, UniqueKey, WriteKind
from service.errors import InvalidArgument, UnknownName
from service.plan.conditions import Bound, Condition, Expression, Operator, SortKey
from service.plan.hidden import as_json, has_hidden_field, without_hidden_fields
from service.plan.operators import as_jsonb, compare, plan_computed
from service.plan.plans import (
    Computed,
    ConflictUpdate,
    DeletePlan,
    InsertPlan,
    Joined,
    Lock,
    Picked,
    PlannedConflict,
    PlannedReturning,
    ReadPlan,
    Setting,
    UpdatePlan,
)
from service.plan.predicates import both, inner_conditions, plan_filter, sort_keys
from service.plan.read_plan import plan_key, plan_rows
from service.plan.reread import reread
from service.plan.scope import Scope
from service.request.assignments import LINK, LITERAL
from service.request.requests import (
    NEVER,
    Assignment,
    CreateRequest,
    DeleteRequest,
    OnConflict,
    Operand,
    Pick,
    Reference,
    Returning,
    Target,
    UpdateRequest,
)

Rows = Sequence[Sequence[Assignment]]


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """
    Rows on their way into a relation.

    Args:
        relation: Where they go.
        columns: What they are made of, in their order.
        csv: Whether they come as CSV, or as COPY's own text.
        header: Whether the CSV has a header.
        conflict: What becomes of those that are there already; None if that is an error.
        staged: Whether they go through a temporary table, because COPY cannot do it.
    """

    relation: Relation
    columns: tuple[Column, ...]
    csv: bool
    header: bool
    conflict: PlannedConflict | None
    staged: bool


def plan_create(catalog: Catalog, relation: Relation, request: CreateRequest) -> InsertPlan:
    """
    Plan `create` and `upsert`.

    A column that a new row leaves out, but another gives, takes its default.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    columns, rows = plan_new_rows(scope, request.rows)
    conflict = plan_conflict(scope, request.conflict, request.rows) if request.conflict else None
    kinds: list[WriteKind] = ["insert", "update"] if conflict else ["insert"]
    settable = [each.column for each in conflict.updates] if conflict else []
    one = not request.many and conflict is None
    planned = reread(scope, plan_returning(scope, request.returning), kinds, settable, one)
    name = f"{relation.name}.{'upsert' if conflict else 'create'}"
    return InsertPlan(name, relation, columns, rows, planned, conflict)


def plan_new_rows(
    scope: Scope, rows: Rows
) -> tuple[tuple[Column, ...], tuple[tuple[Bound | None, ...], ...]]:
    """Plan new rows: the columns that any of them gives, and what each has for them."""
    columns: dict[str, Column] = {}
    for row in rows:
        for each in row:
            columns.setdefault(each.column, assigned(scope.relation, each))
    return tuple(columns.values()), tuple(
        tuple(_value(scope, columns[name], given.get(name)) for name in columns)
        for given in ({each.column: each for each in row} for row in rows)
    )


def plan_update(
    catalog: Catalog, relation: Relation, request: UpdateRequest, many: bool = False
) -> UpdatePlan:
    """
    Plan `update`.

    Args:
        catalog: For types.
        relation: Whose rows.
        request: The update.
        many: Whether it is a part of one for many rows, of which some may be left out.

    Raises:
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    settings = plan_settings(scope, request.changes)
    settable = [each.column for each in settings]
    one = request.target.key is not None and not many
    planned = reread(scope, plan_returning(scope, request.returning), ["update"], settable, one)
    where = plan_target(scope, request.target, "update")
    name = f"{relation.name}.update"
    if request.pick is None:
        return UpdatePlan(name, relation, settings, where, planned)
    keys = {column for key in relation.unique_keys for column in key.columns}
    lock = Lock(not keys.isdisjoint(each.name for each in settable), request.pick.skip_locked)
    order = sort_keys(scope, request.returning.order)  # also where nothing is returned
    joined = _picked(scope, request.pick, where, order, lock)
    return UpdatePlan(name, relation, settings, None, planned, joined)


def _picked(
    scope: Scope, pick: Pick, where: Condition | None, order: tuple[SortKey, ...], lock: Lock
) -> Joined:
    """
    Plan the rows that are taken: they are found again by their key.

    Raises:
        InvalidArgument: PostgreSQL knows of none.
    """
    relation, key = scope.relation, scope.relation.known_key
    if not key:
        raise no_known_key(
            relation, "rows that are taken", "limit" if pick.limit else "skip_locked"
        )
    read = ReadPlan(
        name=f"{relation.name}.update",
        relation=relation,
        outputs=(),
        where=where,
        order=order,
        limit=scope.number(pick.limit),
        lock=lock,
        keys=_values_of(scope, key),
    )
    return Joined(Picked(read), key, scope.equals(key))


def no_known_key(relation: Relation, what: str, path: str) -> InvalidArgument:
    """Return the refusal of a write that finds rows again, where no key is sure to."""
    hint = "what its comment claims may be the key of several rows, or null: show the primary key"
    if relation.has_children:
        hint = "tables inherit from it, and have keys of their own: write to each of them"
    return InvalidArgument(
        f'PostgreSQL knows no key of "{relation.name}", and {what} are found by one',
        path=path,
        hint=hint if relation.primary_key else None,
    )


def _values_of(scope: Scope, key: Sequence[str]) -> tuple[Expression, ...]:
    return tuple(scope.expression(Reference(name, "key")) for name in key)


def plan_settings(scope: Scope, changes: Sequence[Assignment]) -> tuple[Setting, ...]:
    """Plan new values of columns; paths into one column make one value of it."""
    given: dict[str, list[Assignment]] = {}
    for each in changes:
        given.setdefault(each.column, []).append(each)
    settings = []
    for parts in given.values():
        first = parts[0]
        column = assigned(scope.relation, first)
        value = (
            plan_computed(scope, column, parts) if first.computes else _value(scope, column, first)
        )
        settings.append(Setting(column, value))
    return tuple(settings)


def plan_delete(catalog: Catalog, relation: Relation, request: DeleteRequest) -> DeletePlan:
    """
    Plan `delete`.

    Raises:
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    one = request.target.key is not None
    planned = reread(scope, plan_returning(scope, request.returning), ["delete"], one=one)
    where = plan_target(scope, request.target, "delete")
    return DeletePlan(f"{relation.name}.delete", relation, where, planned)


def plan_current(
    catalog: Catalog,
    relation: Relation,
    target: Target,
    returning: Returning,
    lock: Lock | None = None,
    limit: Operand | None = None,
    changes: Sequence[Assignment] = (),
    key: Sequence[str] = (),
) -> ReadPlan:
    """
    Plan to read the rows that a write is for, as they are.

    Args:
        catalog: For types.
        relation: Whose rows.
        target: Which rows.
        returning: What of them.
        lock: How they are to stay as they are until the transaction ends, if they are.
        limit: How many at most.
        changes: Of them, of which those that are computed are read, too.
        key: Columns that are read behind theirs.
    """
    scope = Scope(catalog, relation, returning.embeds)
    settings = plan_settings(scope, [each for each in changes if each.computes])
    planned = plan_returning(scope, returning)
    where = plan_target(scope, target, "update")
    return ReadPlan(
        name=f"{relation.name}.update",
        relation=relation,
        outputs=planned.outputs,
        where=where,
        order=planned.order,
        embeds=planned.embeds,
        limit=scope.number(limit),
        lock=lock,
        json=planned.json,
        keys=_values_of(scope, key),
        computed=tuple(each.value for each in settings if isinstance(each.value, Computed)),
    )


def plan_import(
    catalog: Catalog,
    relation: Relation,
    names: Sequence[tuple[str, str]],
    csv: bool,
    header: bool,
    on_conflict: OnConflict | None,
) -> ImportPlan:
    """
    Plan `import`.

    Args:
        catalog: For keys and types.
        relation: Where the rows go.
        names: Of the columns, each with the path to where it is named.
        csv: Whether the rows come as CSV.
        header: Whether it has a header.
        on_conflict: What becomes of those that are there already.
    """
    named: dict[str, Column] = {}
    for name, path in names:
        if name in named:
            raise InvalidArgument(f'"{name}" is named twice', path=path, column=name)
        named[name] = column = writable(relation, name, path)
        if csv and has_hidden_field(catalog, column.type):
            raise InvalidArgument(
                f'"{name}" has fields that are hidden, so that it cannot be given as text',
                path=path,
                column=name,
                hint="import rows, with dicts for such values",
            )
        if csv and catalog.looks_up(catalog.type(column.type)):
            raise InvalidArgument(
                f'"{name}" holds names that PostgreSQL looks up, so that it cannot be given as text',
                path=path,
                column=name,
                hint="import rows",
            )
    conflict = None
    if on_conflict is not None:
        row = tuple(Assignment(name, None, name) for name in named)
        conflict = plan_conflict(Scope(catalog, relation), on_conflict, [row])
    # COPY has no ON CONFLICT, cannot tell what a policy would say, and knows no view's rules
    staged = conflict is not None or relation.row_security or relation.kind == "view"
    return ImportPlan(relation, tuple(named.values()), csv, header, conflict, staged)


def plan_target(scope: Scope, target: Target, verb: str) -> Condition | None:
    """
    Plan the condition that picks the rows of a write, with what is expected of them.

    Raises:
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    if target.key is None:
        return plan_filter(scope, target.where)
    expected = [_expected(scope, each) for each in target.expect]
    return both(plan_key(scope, target.key, verb), *expected)


def plan_conflict(scope: Scope, conflict: OnConflict, rows: Rows) -> PlannedConflict:
    """
    Plan what becomes of new rows whose key is there already.

    A row there takes over what its new row gives, less the key; when that is nothing, the
    key itself, so that the row still comes back.
    """
    relation = scope.relation
    index = _index(relation, conflict)
    if index is not None:
        key, stays, nulls, target = index.all_columns, index.columns, index.nulls, index.target
    else:
        key = stays = _key(scope, conflict.key)
        if _is_late(relation, key):
            why = "that key is deferrable, or of periods"
            if relation.kind != "table":
                why = "what is under the view has no such key"
            raise InvalidArgument(
                f"no row can be upserted by {', '.join(key)}: {why}",
                path="on_conflict",
                hint="name the columns of another unique key" if _keys(relation) else None,
                candidates=_keys(relation),
            )
        # With NULLS NOT DISTINCT a row whose key is null may be there already.
        nulls, target = any(each.nulls for each in _alike(relation, key)), None
    where = plan_filter(scope, conflict.where)
    settings = plan_settings(scope, conflict.changes)
    # PostgreSQL asks policies before it computes, but writes through a view what that leaves out.
    computes = relation.kind == "view" and any(each.computes for each in settings)
    # A condition that never holds asks nothing of the row there, and has nothing computed.
    guarded = (where is not None or computes) and conflict.where != NEVER
    guard = _guard(scope, key, index) if guarded else None
    planned = PlannedConflict(key, (), scope.equals(key), nulls, target, where, guard)
    if settings:
        return replace(planned, updates=_guardable(settings) if guard else settings)
    if conflict.update is not None:
        columns = [
            writable(relation, name, f"update.{at}") for at, name in enumerate(conflict.update)
        ]
        return replace(planned, updates=tuple(map(ConflictUpdate, columns)))
    given = dict.fromkeys(each.column for row in rows for each in row)
    settable = {name for name, column in relation.columns.items() if not column.generated_always}
    updates = [
        ConflictUpdate(relation.columns[name], _kept(scope, rows, key, name))
        for name in given
        if name in settable and name not in stays
    ]
    if not updates:
        # DO NOTHING would return no row for one that is there.
        updates = [ConflictUpdate(relation.columns[name]) for name in key if name in settable][:1]
    return replace(planned, updates=tuple(updates))


def _guardable(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """
    Return settings with one first that is an expression, which can hold the guard.

    DEFAULT holds none; and to set a column that the caller does not speak of, to itself, takes the right to
    update it, and has its triggers fire.

    Raises:
        InvalidArgument: All are defaults.
    """
    first, *others = sorted(settings, key=lambda each: each.value is None)
    if first.value is None:
        raise InvalidArgument(
            "rows that may be hidden do not change to defaults alone",
            path="update",
            hint="set another column to a value, too",
        )
    if isinstance(first.value, Bound):
        first = replace(first, value=replace(first.value, cast=True))
    return (first, *others)


def _guard(
    scope: Scope, key: tuple[str, ...], index: UniqueIndex | None
) -> tuple[tuple[str, Operator], ...] | None:
    """
    Return by what a row is looked for among those that the caller sees, if some may be hidden.

    Raises:
        InvalidArgument: The columns of an index do not tell rows apart, and nothing else is there.
    """
    relation = scope.relation
    if not (relation.row_security or relation.kind == "view"):
        return None
    if index is not None:
        key = relation.primary_key
        if not key or not all(relation.columns[name].selectable for name in key):
            raise InvalidArgument(
                f'a row found by "{index.name}" cannot be told from those that are hidden',
                path="where",
                hint="this takes the right to read the primary key",
            )
    return tuple(zip(key, scope.equals(key), strict=True))


def writable(relation: Relation, name: str, path: str) -> Column:
    """
    Return a column that is to be given a value.

    Raises:
        InvalidArgument: It is unknown, or the database alone gives it values.
    """
    column = relation.column(name, path)
    if column.generated_always:
        raise _made(column, path)
    return column


def assigned(relation: Relation, each: Assignment) -> Column:
    """
    Return a column that is given a value, or is to take its default.

    Raises:
        InvalidArgument: It is unknown, or the database alone gives it values; in a view, an
            expression has no default either. Or it is linked, as rows are.
    """
    if each.computing == LINK:
        relation.column(each.column, each.path)
        raise InvalidArgument(
            f'"{each.column}" is a column: rows are linked by relationships',
            path=each.path,
            hint=LITERAL,
        )
    if each.operand is not None:
        return writable(relation, each.column, each.path)
    column = relation.column(each.column, each.path)
    if column.generated_always and relation.kind == "view":
        raise _made(column, each.path)
    return column


def refuse_names(relation: Relation, rows: Iterable[Sequence[Assignment]]) -> None:
    """Refuse columns that rows cannot give; each name is looked up once."""
    known: set[tuple[str, bool, bool]] = set()
    for row in rows:
        for each in row:
            key = each.column, each.operand is None, each.computing == LINK
            if key not in known:
                assigned(relation, each)
                known.add(key)


def _expected(scope: Scope, each: Assignment) -> Condition:
    left = scope.of_column(scope.relation.column(each.column, each.path), each.path)
    without_hidden_fields(scope.catalog, left)
    if each.operand is None:
        raise TypeError("a default cannot be expected")
    left = as_jsonb(scope, left)
    test = compare(scope, left, "=", scope.bound(each.operand, left.type))
    # Null may be expected as well, and equals nothing.
    return replace(test, not_distinct=True)


def _value(scope: Scope, column: Column, given: Assignment | None) -> Bound | None:
    if given is None or given.operand is None:
        return None
    type = scope.catalog.type(column.type)
    return Bound(given.operand.slot, type, given.operand.path, cast=False)


def plan_returning(scope: Scope, returning: Returning) -> PlannedReturning:
    """Plan what comes back of rows that are written."""
    if not returning.rows:
        return PlannedReturning(receipt=returning.receipt)
    outputs, embeds = plan_rows(scope, returning.select, returning.embeds)
    inner = inner_conditions(scope, returning.embeds)
    json = as_json(scope.catalog, returning.form, outputs, embeds)
    order = sort_keys(scope, returning.order)
    receipt = returning.receipt
    return PlannedReturning(outputs, order, embeds, inner, json=json, receipt=receipt)


def _index(relation: Relation, conflict: OnConflict) -> UniqueIndex | None:
    """Return the index that is named, if it is no key."""
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
    if found.only_ignores and conflict.update != ():
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


def _is_late(relation: Relation, key: Sequence[str]) -> bool:
    """Return whether PostgreSQL cannot go by a key: it goes by all keys over its columns."""
    return not all(each.arbiter for each in _alike(relation, key))


def _alike(relation: Relation, key: Sequence[str]) -> list[UniqueKey]:
    return [each for each in relation.unique_keys if set(each.columns) == set(key)]


def _keys(relation: Relation) -> list[list[str]] | None:
    """Return the keys that may be named, or None if there are none."""
    keys = [each.columns for each in relation.unique_keys]
    return [list(key) for key in keys if not _is_late(relation, key)] or None


def _kept(
    scope: Scope, rows: Rows, key: tuple[str, ...], name: str
) -> tuple[tuple[Bound, ...], ...]:
    """Return the keys of the rows that leave a column out; those without a key are new."""
    found = []
    for row in rows if key else ():
        operands = {each.column: each.operand for each in row}
        values = [operands.get(part) for part in key]
        if name in operands or None in values:
            continue
        # with modifiers, as in char(2): a key is compared as it will be stored
        columns = [scope.relation.columns[part] for part in key]
        types = [replace(scope.catalog.type(each.type), sql=each.declared) for each in columns]
        found.append(
            tuple(
                scope.bound(operand, type)
                for operand, type in zip(values, types, strict=True)
                if operand is not None
            )
        )
    return tuple(found)


def _made(column: Column, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'"{column.name}" is made by the database and cannot be written',
        path=path,
        column=column.name,
    )
