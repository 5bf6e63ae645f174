"""
The verb create, whose values may contain related rows: new ones, or links to existing ones.

Everything runs in one transaction. It is one job of a pool thread if none of the models has rules.
Otherwise each message is a job, before which the models validate its rows, which have the keys of the rows
created so far.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from service.api import write
from service.api.call import Call, Snapshot, Step
from service.api.rules import refuse_new_rows, validated_steps
from service.catalog import Catalog, Relation, Type
from service.db.statements import Shape, compute_txn
from service.db.writes import (
    SETTLE,
    Message,
    NoRowWritten,
    Work,
    nested_txn,
    steps_txn,
    too_many_rows,
)
from service.errors import NotChanged, ServiceError
from service.plan.nested_rows import (
    LinkedKey,
    LinkedRow,
    Messages,
    NewRows,
    Tree,
    TreeStep,
    plan_messages,
    plan_tree,
)
from service.plan.plans import Bound
from service.plan.read_plan import plan_get
from service.plan.returning import key_to_reread, plan_answer
from service.plan.write_plan import plan_create, refuse_names
from service.request.arguments import Values, unwrap
from service.request.read_request import Parsed
from service.request.requests import (
    CreateRequest,
    GetRequest,
    KeyMatch,
    Operand,
    Returning,
)
from service.request.row_values import (
    NoShape,
    Placeholder,
    RowsArgument,
    RowsShape,
    fill_placeholders,
    with_placeholders,
)
from service.request.write_request import parse_create, parse_create_options, with_rows
from service.sql.modify import modify
from service.sql.select import select
from service.sql.statement import Statement
from service.sql.step_sql import MessagePart, answer_statement, message_statement, step_statement

MAX_TREES = 256
"""Shapes of nested rows that are cached per catalog."""
MAX_SHAPE = 300
"""
Maximum number of keys and items of a shape that is cached, and of values of its plan. Each takes some 300
bytes.
"""


@dataclass(frozen=True, slots=True)
class Nested:
    """
    A call with its rows as a tree.

    Args:
        relation: The relation of the call.
        tree: The steps that write the rows.
        request: The request; its rows are written by a step of the tree.
        values: The values by slot.
        slot: The slot of the keys of the call's own rows, once they are written.
        timeout: Seconds, if the caller limits the time.
    """

    relation: Relation
    tree: Tree
    request: CreateRequest
    values: tuple[Any, ...]
    slot: int
    timeout: float | None


def create(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `create`: the new row, or the list of new rows, with the rows nested in them.

    Raises:
        InvalidRow: A model or the catalog refuses a row.
    """
    given = RowsArgument(call.args, call.kwargs)
    if not any(write.related(call, given)):
        return write.create(call)
    limits, work = call.backend.limits, None
    # Options are parsed before rows: their request is part of the key of the cached plan.
    options = parse_create_options(call.args, call.kwargs, limits)
    try:
        shaped = given.shaped(call.snapshot.documents, write.MANY)
        cached = _cached_tree(call, options, shaped)
    except NoShape:
        cached = None
    if cached is not None:
        nested, work = cached.filled(options, shaped.values), cached.work
    elif given.size() > write.MANY:
        return _create_many(call)
    else:
        nested = _nested(call, parse_create(call.args, call.kwargs, limits))
    _refuse_faults(call.snapshot, nested)
    if any(step.needs_model for step in nested.tree.steps):
        return _by_models(call, nested, plan_messages(call.snapshot.catalog, nested.tree))
    return _step(
        call, nested, work or _work(call.snapshot.catalog, nested, _ends_transaction(call))
    )


@dataclass(frozen=True, slots=True)
class CachedTree:
    """
    The plan that calls with rows of one shape share.

    Args:
        nested: A call with `Placeholder` objects for its values.
        places: The slots of those, each with the number of its value.
        documents: The slots of dicts and lists that contain placeholders, each with its document.
        work: The messages to send; None if models have rules.
    """

    nested: Nested
    places: tuple[tuple[int, int], ...]
    documents: tuple[tuple[int, Any], ...]
    work: Work | None

    def filled(self, options: Parsed[CreateRequest], values: Sequence[Any]) -> Nested:
        """Return the call with the values of other options and rows."""
        found = [*options.values, *self.nested.values[len(options.values) :]]
        for slot, number in self.places:
            found[slot] = values[number]
        for slot, document in self.documents:
            found[slot] = fill_placeholders(document, values)
        return replace(self.nested, values=tuple(map(unwrap, found)), timeout=options.timeout)


def _cached_tree(
    call: Call, options: Parsed[CreateRequest], shaped: RowsShape
) -> CachedTree | None:
    """Return the plan of a shape, from the cache if it is there; None if it is too large or refused."""
    if shaped.size > MAX_SHAPE:
        return None
    relation, trees = write.relation_of(call), call.snapshot.trees
    key = relation, _ends_transaction(call), options.request, shaped.shape
    # To parse and plan rows with the keys of an earlier call took two thirds of the reactor's time.
    found = trees.get(key)
    if found is None:
        found = _plan_tree(call, options, shaped)
        if found is not None and len(found.nested.values) <= MAX_SHAPE:
            if len(trees) >= MAX_TREES:
                trees.pop(next(iter(trees)))
            trees[key] = found
    return found


def _plan_tree(call: Call, options: Parsed[CreateRequest], shaped: RowsShape) -> CachedTree | None:
    """Plan rows of the shape of a call; None if they are refused, which the call itself will report."""
    snapshot = call.snapshot
    rows = with_placeholders(shaped.shape, count())
    try:
        nested = _nested(call, with_rows(options, rows))
        has_models = any(step.needs_model for step in nested.tree.steps)
        work = None if has_models else _work(snapshot.catalog, nested, _ends_transaction(call))
    except ServiceError:
        return None
    slots = [*enumerate(nested.values)]
    places = [(slot, value.at) for slot, value in slots if isinstance(value, Placeholder)]
    used = {slot for step in nested.tree.steps for slot in step.used}
    documents = [(slot, value) for slot, value in slots
                 if slot in used and isinstance(value, dict | list)]  # fmt: skip
    return CachedTree(nested, tuple(places), tuple(documents), work)


def _ends_transaction(call: Call) -> bool:
    """Return whether the transaction ends with the call."""
    return call.backend.database.level is None


def _nested(call: Call, parsed: Parsed[CreateRequest]) -> Nested:
    """Build the tree of the rows of a call and the rows nested in them."""
    snapshot, relation, limits = call.snapshot, write.relation_of(call), call.backend.limits
    request, values = parsed.request, Values(parsed.values)
    rows = [(path or "values", row) for path, row in zip(request.paths, request.rows, strict=True)]
    returning = request.returning
    key = key_to_reread(relation) if returning.rows or returning.receipt else ()
    # A single row is read by its key, as by `get`: PostgreSQL needs 213 µs for that query, and 400 µs for one
    # of keys that are passed on in a setting.
    more = request.many or returning.receipt or returning.order
    by_key = bool(relation.primary_key) and not more
    slot = values.add(None)
    tree = plan_tree(snapshot.catalog, relation, rows, values, limits.max_embed_depth, key, by_key)
    if request.max_affected is not None and tree.written > request.max_affected:
        raise too_many_rows(tree.written, request.max_affected)
    if request.embeds_nested:
        request = replace(request, returning=replace(returning, embeds=tree.embeds))
    # Names of all rows first, so that a misspelled column is reported before a missing value.
    for step in tree.steps:
        if isinstance(step, NewRows):
            refuse_names(step.relation, step.rows)
    steps = tuple(_with_model(snapshot, step, values) for step in tree.steps)
    tree = replace(tree, steps=steps)
    return Nested(relation, tree, request, values.freeze(), slot, parsed.timeout)


def _with_model(snapshot: Snapshot, step: TreeStep, values: Values) -> TreeStep:
    """Return a step, marked as one that a model validates if its model has rules."""
    if isinstance(step, LinkedKey):
        return step
    relation, creating = step.relation, isinstance(step, NewRows)
    if not snapshot.model(relation).has_rules(creating):
        return step
    if isinstance(step, NewRows):
        return replace(step, needs_model=True)
    # The model validates the entire row that is linked, so the row is read, and locked, before.
    names = tuple(name for name, column in relation.columns.items() if column.selectable)
    slots = tuple(values.add(None) for _ in names)
    row = LinkedKey(relation, step.key, step.path, names, (slots,), locked=relation.updatable)
    return replace(step, row=row)


def _refuse_faults(snapshot: Snapshot, nested: Nested) -> None:
    """
    Check the rows against the catalog.

    Raises:
        InvalidRow: With every failing column of the first failing row.
    """
    for at, step in enumerate(nested.tree.steps):
        if isinstance(step, NewRows):
            only = at == nested.tree.root and not nested.request.many
            paths: Sequence[str | None] = [None] if only else step.paths
            refuse_new_rows(snapshot, step.relation, step.rows, paths, nested.values)


async def _create_many(call: Call) -> Any:
    """Parse and check many rows in a pool thread, then write them."""
    database = call.backend.database
    nested, grouped = await database.run(compute_txn, _parse_many, call, retry=True)
    if grouped is not None:
        return await _by_models(call, nested, grouped)
    return _step(call, nested, None)


def _parse_many(call: Call) -> tuple[Nested, Messages | None]:
    """Parse and check a call; return its messages as well if models validate its rows."""
    nested = _nested(call, parse_create(call.args, call.kwargs, call.backend.limits))
    _refuse_faults(call.snapshot, nested)
    has_models = any(step.needs_model for step in nested.tree.steps)
    return nested, plan_messages(call.snapshot.catalog, nested.tree) if has_models else None


def _step(call: Call, nested: Nested, work: Work | None) -> Step:
    """Return the step that writes all rows; if `work` is None, it is built in the pool thread."""
    request = nested.request
    make = partial(_work, call.snapshot.catalog, nested, _ends_transaction(call))
    args = (
        call.snapshot.codec,
        make if work is None else lambda: work,
        nested.values,
        nested.tree.written,
        _shape(call, request.returning),
    )
    shape = partial(write.answered, returning=request.returning, many=request.many)
    missing = NotChanged(nested.relation.name)
    return Step(nested_txn, args, shape, nested.timeout, "atomic", missing)


def _shape(call: Call, returning: Returning) -> Shape | None:
    return Shape(returning.form, call.backend.max_bytes) if returning.rows else None


def _work(catalog: Catalog, nested: Nested, ends_transaction: bool) -> Work:
    """Return the messages of all steps and of the answer; `ends_transaction` if it ends with them."""
    tree, root = nested.tree, nested.tree.root_step
    answer = _answer_statement(catalog, nested, root, ends_transaction)
    found = _build_messages(catalog, plan_messages(catalog, tree), answer)
    if answer is None:
        return Work(found)
    return _answered(nested, root, found[:-1], found[-1], tree.steps)


def _answered(
    nested: Nested,
    root: NewRows,
    messages: Sequence[Message],
    answer: Message,
    tree: Sequence[TreeStep],
    before: Sequence[TreeStep] = (),
) -> Work:
    """Return the work of messages, of which `answer` is the last and returns the rows of the call."""
    if nested.tree.root_answers:
        return Work(messages, answer, root, tree=tree, before=before)
    return Work(messages, answer, None, root.text_slots, nested.slot, tree, before)


def _answer_statement(
    catalog: Catalog, nested: Nested, root: NewRows, ends_transaction: bool
) -> Statement | None:
    """Return the statement that returns the rows of the call; None if the answer has no rows."""
    relation = nested.relation
    returning, words = nested.request.returning, SETTLE if ends_transaction else ""
    if nested.tree.root_answers:
        own = replace(nested.request, rows=root.rows, max_affected=None)
        statement = modify(plan_create(catalog, relation, own))
        return statement.prefixed(words) if statement.head else statement
    if nested.tree.key:
        key = tuple(Operand(slot, "values") for slot in nested.tree.key)
        match = KeyMatch(key_to_reread(relation), key)
        request = GetRequest(match, returning.select, returning.embeds, returning.form)
        return select(plan_get(catalog, relation, request)).prefixed(words)
    if not root.texts:
        return None
    planned = plan_answer(catalog, relation, returning, root.texts)
    written = Bound(nested.slot, catalog.types_by_name["json"], "values", cast=True)
    return answer_statement(relation, planned, written).prefixed(words)


def _build_messages(
    catalog: Catalog, grouped: Messages, answer: Statement | None = None
) -> list[Message]:
    """Return the messages of steps; `answer`, if given, is the last statement of the last one."""
    found, before = list[Message](), 0
    for number, steps in enumerate(grouped.steps, 1):
        last = answer if number == len(grouped.steps) else None
        if steps or last is not None:
            found.append(_message(catalog, steps, before, grouped, last))
        before += len(steps)
    return found


def _message(
    catalog: Catalog,
    steps: tuple[TreeStep, ...],
    before: int,
    grouped: Messages,
    answer: Statement | None,
) -> Message:
    """
    Return the message of some steps.

    Args:
        catalog: The catalog to plan against.
        steps: The steps.
        before: Number of the steps in earlier messages.
        grouped: All messages of the call.
        answer: The statement that answers the call, if it belongs to this message.
    """
    parts: list[MessagePart] = []
    returned: list[tuple[int, tuple[Type | None, ...]]] = []
    for step in steps:
        plan, places = step.plan(catalog), step.filled
        rows, slots = len(places), places[0]
        is_returned = any(not grouped.returned.isdisjoint(each) for each in places)
        if is_returned and not isinstance(step, LinkedRow):
            columns = step.relation.columns
            types = [catalog.type(columns[name].type) for name in step.columns]
            # The slots behind the columns are read as text.
            returned.append((len(parts), (*types, *[None] * (len(slots) - len(types)))))
        number = before + len(parts)
        table = step.relation.schema, step.relation.name
        partitioned = table in catalog.partitions.values()
        parts.append(MessagePart(plan, number, rows, slots, is_returned, not partitioned))
    if answer is None and len(parts) == 1:
        (part,), (step,) = parts, steps
        if step.needs_own_message or grouped.passed.isdisjoint({*part.slots, *step.used}):
            return Message(steps, step_statement(part.plan))
    return Message(steps, message_statement(parts, grouped.passed, answer), tuple(returned))


async def _by_models(call: Call, nested: Nested, grouped: Messages) -> Any:
    """Write nested rows message by message; before each message the models validate its rows."""
    catalog, codec, database = call.snapshot.catalog, call.snapshot.codec, call.backend.database
    request, tree, last = nested.request, nested.tree, _ends_transaction(call)
    validated = partial(validated_steps, call.snapshot, pause=database.yield_to_reactor)
    *firsts, final = grouped.steps

    async def attempt() -> Any:
        values, done = nested.values, tuple[TreeStep, ...]()
        for each in firsts:
            steps, values = await validated(each, values)
            message = partial(_message, catalog, steps, len(done), grouped, None)
            args = codec, message, values, done
            run = Step(steps_txn, args, timeout=nested.timeout, access="write")
            values, done = tuple(await call.run(run)), (*done, *steps)
        behind = (tree.root_step,) if tree.root_answers else ()
        steps, values = await validated((*final, *behind), values)
        # The last message and COMMIT are one job: each hop to a worker and back costs some 80 µs.
        work = partial(_last_work, catalog, nested, grouped, done, steps, last)
        end = codec, work, values, tree.written, _shape(call, request.returning)
        written = await call.run(Step(nested_txn, end, timeout=nested.timeout, access="last"))
        return write.answered(written, request.returning, request.many)

    async def transaction() -> Any:
        async with database.transaction():
            return await attempt()

    try:
        return await database.again(transaction)
    except NoRowWritten:
        raise NotChanged(nested.relation.name) from None


def _last_work(
    catalog: Catalog,
    nested: Nested,
    grouped: Messages,
    before: Sequence[TreeStep],
    steps: tuple[TreeStep, ...],
    ends_transaction: bool,
) -> Work:
    """Return the last message, of `steps` as their models left them; `before` have been written."""
    root, tree = nested.tree.root_step, (*before, *steps)
    if nested.tree.root_answers:
        assert isinstance(steps[-1], NewRows)
        root, steps = steps[-1], steps[:-1]
    answer = _answer_statement(catalog, nested, root, ends_transaction)
    found = [_message(catalog, steps, len(before), grouped, answer)] if steps or answer else []
    if answer is None:
        return Work(found, before=before)
    return _answered(nested, root, (), found[0], tree, before)
