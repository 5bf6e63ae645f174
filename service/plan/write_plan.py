"""
Plan writes: INSERT, UPDATE, DELETE, ON CONFLICT, COPY.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from service.catalog import Catalog, Column, Relation, UniqueIndex, UniqueKey, WriteKind
from service.errors import InvalidArgument, UnknownName
from service.plan.clauses import both, plan_filter, sort_keys
from service.plan.operators import as_jsonb, compare, plan_computed
from service.plan.plans import (
    Bound,
    Computed,
    Condition,
    ConflictUpdate,
    DeletePlan,
    Expression,
    InsertPlan,
    Lock,
    LockedRows,
    Operator,
    PlannedConflict,
    ReadPlan,
    Setting,
    SortKey,
    UpdateJoin,
    UpdatePlan,
)
from service.plan.read_plan import plan_key
from service.plan.returning import plan_result, plan_returning
from service.plan.scope import Scope, has_hidden_field, without_hidden_fields
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
from service.request.row_values import LINK, LITERAL

Rows = Sequence[Sequence[Assignment]]


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """
    Rows to import by COPY.

    Args:
        relation: The relation.
        columns: Columns of the rows, in order.
        csv: Whether the rows are CSV, rather than COPY's text format.
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

    A column that only some of the new rows give takes its default in the others.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    columns, rows = plan_new_rows(scope, request.rows)
    conflict = plan_conflict(scope, request.conflict, request.rows) if request.conflict else None
    kinds: list[WriteKind] = ["insert", "update"] if conflict else ["insert"]
    settable = [each.column for each in conflict.updates] if conflict else []
    one = not request.many and conflict is None
    planned = plan_returning(scope, request.returning, kinds, settable, one)
    name = f"{relation.name}.{'upsert' if conflict else 'create'}"
    return InsertPlan(name, relation, columns, rows, planned, conflict)


def plan_new_rows(
    scope: Scope, rows: Rows
) -> tuple[tuple[Column, ...], tuple[tuple[Bound | None, ...], ...]]:
    """Return the columns that any of the new rows gives, and each row's values for them."""
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
        catalog: Source of types.
        relation: The relation.
        request: The update.
        many: Whether it is a part of a larger write, so that a missing row is not an error here.

    Raises:
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    scope = Scope(catalog, relation, request.returning.embeds)
    settings = plan_settings(scope, request.changes)
    settable = [each.column for each in settings]
    one = request.target.key is not None and not many
    planned = plan_returning(scope, request.returning, ["update"], settable, one)
    where = plan_target(scope, request.target, "update")
    name = f"{relation.name}.update"
    if request.pick is None:
        return UpdatePlan(name, relation, settings, where, planned)
    keys = {column for key in relation.unique_keys for column in key.columns}
    # As strong as the lock of the UPDATE itself, and no stronger: FOR UPDATE would also wait for inserts of rows
    # that refer to these.
    lock = Lock(not keys.isdisjoint(each.name for each in settable), request.pick.skip_locked)
    order = sort_keys(scope, request.returning.order)  # also where nothing is returned
    joined = _picked(scope, request.pick, where, order, lock)
    return UpdatePlan(name, relation, settings, None, planned, joined)


def _picked(
    scope: Scope, pick: Pick, where: Condition | None, order: tuple[SortKey, ...], lock: Lock
) -> UpdateJoin:
    """
    Plan an update with `limit` or `skip_locked`: a subquery locks the rows, joined to by key.

    Raises:
        InvalidArgument: The relation has no key that PostgreSQL enforces.
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
    return UpdateJoin(LockedRows(read), key, scope.equals(key))


def no_known_key(relation: Relation, what: str, path: str) -> InvalidArgument:
    """Build the refusal of a write that has to find rows again, on a relation without an enforced key."""
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
    """Plan new values of columns; several paths into one column become one value."""
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
    planned = plan_returning(scope, request.returning, ["delete"], one=one)
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
    Plan a read of the rows that a write is going to change.

    Args:
        catalog: Source of types.
        relation: The relation.
        target: The rows.
        returning: What to read of them.
        lock: How they are to stay as they are until the transaction ends, if they are.
        limit: How many at most.
        changes: Of them, of which those that are computed are read, too.
        key: Columns that are read behind theirs.
    """
    scope = Scope(catalog, relation, returning.embeds)
    settings = plan_settings(scope, [each for each in changes if each.computes])
    planned = plan_result(scope, returning)
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
        catalog: Source of keys and types.
        relation: The relation.
        names: Names of the columns, each with its path in the call.
        csv: Whether the rows are CSV.
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
    # Staged in a temporary table where COPY alone does not do: it has no ON CONFLICT, is not supported with
    # row-level security, and does not apply a view's rules.
    staged = conflict is not None or relation.row_security or relation.kind == "view"
    return ImportPlan(relation, tuple(named.values()), csv, header, conflict, staged)


def plan_target(scope: Scope, target: Target, verb: str) -> Condition | None:
    """
    Plan the condition of the rows to write, `expect` included.

    Raises:
        NoSuchProcedure: By key, on a relation without a primary key.
    """
    if target.key is None:
        return plan_filter(scope, target.where)
    expected = [_expected(scope, each) for each in target.expect]
    return both(plan_key(scope, target.key, verb), *expected)


def plan_conflict(scope: Scope, conflict: OnConflict, rows: Rows) -> PlannedConflict:
    """
    Plan ON CONFLICT.

    By default the existing row is overwritten with the columns that the new row gives, except the key. If
    there are none, the key is set to itself, so that RETURNING has the row.
    """
    relation = scope.relation
    index = _conflict_index(relation, conflict)
    if index is not None:
        key, stays, nulls, target = index.all_columns, index.columns, index.nulls, index.target
    else:
        key = stays = _conflict_key(scope, conflict.key)
        if _is_late(relation, key):
            keys, why = _candidate_keys(relation), "that key is deferrable, or of periods"
            if relation.kind != "table":
                why = "what is under the view has no such key"
            raise InvalidArgument(
                f"no row can be upserted by {', '.join(key)}: {why}",
                path="on_conflict",
                hint="name the columns of another unique key" if keys else None,
                candidates=keys,
            )
        # With NULLS NOT DISTINCT a row with a null key may exist already.
        nulls, target = any(each.nulls for each in _keys_over(relation, key)), None
    where = plan_filter(scope, conflict.where)
    settings = plan_settings(scope, conflict.changes)
    # PostgreSQL checks policies before it computes new values; but a view's own condition is not checked,
    # and through it hidden rows would be written.
    computes = relation.kind == "view" and any(each.computes for each in settings)
    # PostgreSQL evaluates the WHERE of ON CONFLICT before the policies: whether a hidden row is refused or left
    # alone would tell whether the condition is true for it. One that is always false reads nothing of the row.
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
        # DO NOTHING would return no row for an existing one.
        updates = [ConflictUpdate(relation.columns[name]) for name in key if name in settable][:1]
    return replace(planned, updates=tuple(updates))


def _guardable(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """
    Return settings with one first that is an expression, into which the guard can be built.

    DEFAULT is not an expression. Setting another column to itself instead would need the right to update
    that column, and would fire its triggers.

    Raises:
        InvalidArgument: All settings are defaults.
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
    Return the columns by which the existing row is looked up among the visible ones, if some may be hidden.

    Raises:
        InvalidArgument: Rows cannot be identified: the index has expressions, and there is no primary key.
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
    Return a column that a write gives a value.

    Raises:
        InvalidArgument: It is unknown or generated.
    """
    column = relation.column(name, path)
    if column.generated_always:
        raise _generated(column, path)
    return column


def assigned(relation: Relation, each: Assignment) -> Column:
    """
    Return the column of an assignment.

    Raises:
        InvalidArgument: It is unknown or generated; or the assignment is `$link`, or a default of a
            view's expression.
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
        raise _generated(column, each.path)
    return column


def refuse_names(relation: Relation, rows: Iterable[Sequence[Assignment]]) -> None:
    """Check that rows may give their columns; each name is looked up once."""
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
    # Null may be expected, too, and equals only itself.
    return replace(test, not_distinct=True)


def _value(scope: Scope, column: Column, given: Assignment | None) -> Bound | None:
    if given is None or given.operand is None:
        return None
    type = scope.catalog.type(column.type)
    return Bound(given.operand.slot, type, given.operand.path, cast=False)


def _conflict_index(relation: Relation, conflict: OnConflict) -> UniqueIndex | None:
    """Return the unique index that `on_conflict` names; None if it names a key or columns."""
    found = next((each for each in relation.unique_indexes if each.name == conflict.key), None)
    if found is None:
        return None
    if found.fault:
        raise InvalidArgument(
            f'no row can be upserted by "{found.name}": it {found.fault}',
            path="on_conflict",
            hint="name another unique key or index",
            candidates=_candidate_keys(relation),
        )
    if found.only_ignores and conflict.update != ():
        raise InvalidArgument(
            f'by "{found.name}", an exclusion constraint, rows that are there can be left alone only',
            path="on_conflict",
            hint="update: [] does so",
        )
    return found


def _conflict_key(scope: Scope, key: str | tuple[str, ...] | None) -> tuple[str, ...]:
    relation = scope.relation
    named = {each.name: each.columns for each in relation.unique_keys}
    if key is None:
        if not relation.primary_key:
            raise _no_such_key(relation, f'"{relation.name}" has no primary key')
        return relation.primary_key
    if isinstance(key, str):
        if key in named:
            return named[key]
        if key not in relation.columns:
            of = f'relation "{relation.name}"'
            known = [*named, *(each.name for each in relation.unique_indexes)]
            found = UnknownName("unique key", key, known, of, "on_conflict")
            found.details.setdefault("hint", _no_such_key(relation, "").details["hint"])
            raise found
        key = (key,)
    for at, name in enumerate(key):
        relation.column(name, f"on_conflict.{at}")
    # Keys of a view are those of its tables, which PostgreSQL infers by itself.
    if relation.kind == "table" and scope.catalog.key_of(relation, key) is None:
        raise _no_such_key(relation, f"no unique key over {', '.join(key)}", key)
    return key


def _no_such_key(relation: Relation, message: str, key: Sequence[str] = ()) -> InvalidArgument:
    """Build the refusal of an upsert without a matching key; the hint names an index, or a key that exists."""
    keys = _candidate_keys(relation)
    usable = [each for each in relation.unique_indexes if not each.fault]
    indexes = [each.name for each in usable]
    over = next((each for each in usable if key and set(each.all_columns) == set(key)), None)
    if over is not None:
        kind = "partial" if over.partial else "on expressions"
        if over.only_ignores:
            kind = "an exclusion constraint, and takes update: [] alone"
        hint = f"on_conflict: {json.dumps(over.name)} names the index over them, which is {kind}"
    elif keys or indexes:
        example = json.dumps(keys[0] if keys else indexes[0])
        hint = f"on_conflict names a unique key or index, as in {example}"
    else:
        hint = f'"{relation.name}" has no unique key at all: "{relation.name}.create" adds rows'
    return InvalidArgument(message, path="on_conflict", hint=hint, candidates=keys)


def _is_late(relation: Relation, key: Sequence[str]) -> bool:
    """Return whether a key cannot be a conflict target; PostgreSQL uses all keys over its columns."""
    return not all(each.arbiter for each in _keys_over(relation, key))


def _keys_over(relation: Relation, key: Sequence[str]) -> list[UniqueKey]:
    return [each for each in relation.unique_keys if set(each.columns) == set(key)]


def _candidate_keys(relation: Relation) -> list[list[str]] | None:
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


def _generated(column: Column, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'"{column.name}" is made by the database and cannot be written',
        path=path,
        column=column.name,
    )
