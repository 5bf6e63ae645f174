"""
New rows with related rows inside, as steps in the order in which they are made.

Rows that are linked are looked up before anything is made, so that none of them is a new one. What
a row refers to is made before it, what refers to it after it. A step makes all rows of one place in
the tree at once. The values of a key that the database makes are not known yet: each has a slot
among the values of the call, which the step that makes the row fills.

As many steps as can go in one message to PostgreSQL. A value that a step makes of one row is handed to
the statements behind it by PostgreSQL itself, so that they need not wait for it. They do wait for the
values of several rows, and for those that are looked at before a row is written: that none is null, that
two are the same, or what its model says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, groupby

from service.catalog import Catalog, Relation
from service.plan.hidden import as_json
from service.plan.plans import (
    InsertPlan,
    Lock,
    Output,
    PlannedReturning,
    ReadPlan,
    Reread,
    UpdatePlan,
)
from service.plan.predicates import inner_conditions, sort_keys
from service.plan.read_plan import plan_get, plan_rows
from service.plan.reread import saved_columns
from service.plan.scope import Scope
from service.plan.write_plan import plan_new_rows, plan_update
from service.request.requests import (
    EVERYTHING,
    Assignment,
    Embed,
    GetRequest,
    Item,
    KeyMatch,
    Reference,
    Returning,
    Target,
    UpdateRequest,
)

PENDING = object()
"""Stands for a value that an earlier step makes; it is no null."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """
    New rows of one relation, made at once.

    Args:
        relation: Whose rows.
        rows: Each a tuple of assignments.
        paths: Where each stands in the call.
        columns: What later steps use of each.
        slots: For each row, where the values of those go.
        texts: Columns whose values are wanted as PostgreSQL's text, too; their slots stand behind.
        alike: Slots of values that have to be the same, as two relationships set one column, with
            where the second stands.
        related: What relationships set of them, none of which may be null.
        seen: Whether a model sees them before they are written.
    """

    relation: Relation
    rows: tuple[tuple[Assignment, ...], ...]
    paths: tuple[str, ...]
    columns: tuple[str, ...] = ()
    slots: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()
    alike: tuple[tuple[int, int, str], ...] = ()
    related: tuple[Assignment, ...] = ()
    seen: bool = False

    def each(self) -> list[NewRows]:
        """Return a step for each of the rows."""
        rows = zip(self.rows, self.paths, self.slots, strict=True)
        return [
            replace(self, rows=(row,), paths=(path,), slots=(slots,)) for row, path, slots in rows
        ]


@dataclass(frozen=True, slots=True)
class LinkedKey:
    """
    A row that is there and is looked up: it is referred to by other columns than those of the key
    that is given, or shall refer to a new row.

    Args:
        relation: Whose row.
        key: What names it.
        path: Where that stands in the call.
        columns: What is referred to, or tells the row from others.
        slots: Where the values of those go.
        parent: Slots of what it shall refer to, if it shall.
        parents: The slot of the parents of all rows that are linked by the same foreign key.
        locked: Whether it is to stay as it is until the transaction ends.
    """

    relation: Relation
    key: KeyMatch
    path: str
    columns: tuple[str, ...]
    slots: tuple[int, ...]
    parent: tuple[int, ...] = ()
    parents: int = 0
    locked: bool = False


@dataclass(frozen=True, slots=True)
class LinkedRow:
    """
    A row that is there and shall refer to a new one.

    Args:
        relation: Whose row.
        key: What names it.
        path: Where that stands in the call.
        changes: What is written.
        related: Its columns that refer to the new row, none of which may be null.
        alike: Of those that are of its primary key, the slots of the value that is there and of the
            new one, with where the link stands.
        row: What reads all of it for its model, which sees it before it is written.
    """

    relation: Relation
    key: KeyMatch
    path: str
    changes: tuple[Assignment, ...]
    related: tuple[Assignment, ...]
    alike: tuple[tuple[int, int, str], ...] = ()
    row: LinkedKey | None = None

    @property
    def seen(self) -> bool:
        """Whether a model sees it before it is written."""
        return self.row is not None


TreeStep = NewRows | LinkedKey | LinkedRow


@dataclass(frozen=True, slots=True)
class Tree:
    """
    Args:
        steps: In their order.
        root: The number of the one that makes the rows of the call.
        written: How many rows all of them write.
        embeds: What shows all of that in the answer.
        root_answers: Whether the root is the last of them, and answers the call.
        key: Slots of the key of the one row of the call, if it is read again by that.
    """

    steps: tuple[TreeStep, ...]
    root: int
    written: int
    embeds: tuple[Embed, ...]
    root_answers: bool
    key: tuple[int, ...] = ()

    @property
    def made(self) -> NewRows:
        """The step that makes the rows of the call."""
        step = self.steps[self.root]
        assert isinstance(step, NewRows)
        return step


@dataclass(frozen=True, slots=True)
class Messages:
    """
    Args:
        steps: Those of each message; of the last one, those that travel with the answer, if any do.
        passed: Slots of values that PostgreSQL hands on.
        kept: Slots of values that come back.
    """

    steps: tuple[tuple[TreeStep, ...], ...]
    passed: frozenset[int]
    kept: frozenset[int]


@dataclass
class _Made:
    """At which stage each value is made, and how it is used: what is of one stage can go together."""

    stages: dict[int, int] = field(default_factory=dict)
    passable: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)

    def stage(self, used: Sequence[int], looked_at: Sequence[int]) -> int:
        """Return the first stage at which values can be used, some of which are looked at before."""
        here = self.stages.keys() & {*used, *looked_at}
        known = here - self.passable | here.intersection(looked_at)
        self.passed |= here - known
        self.kept |= known
        return max((self.stages[slot] + (slot in known) for slot in here), default=0)


def messages(
    steps: Sequence[TreeStep], used: Sequence[int] = (), looked_at: Sequence[int] = ()
) -> Messages:
    """
    Return steps by messages, as few as can be: at most one for each level of the tree.

    Args:
        steps: In their order.
        used: Slots that the answer goes by, which stands in the last message.
        looked_at: Slots whose values are to come back before it.
    """
    made = _Made()
    staged: list[tuple[int, TreeStep]] = []
    read: list[tuple[int, TreeStep]] = []
    for step in steps:
        stage = made.stage(*needed_by(step))
        if isinstance(step, LinkedRow):
            stage = max(stage, 1)  # whether it is linked twice was seen when it was looked up
            if step.row is not None:
                read.append((stage - 1, step.row))
                made.kept.update(step.row.slots)
        elif isinstance(step, LinkedKey) and step.parent:
            made.kept.update(step.slots)
        certain = _passable(step)
        for slots in slots_of(step):
            made.stages |= dict.fromkeys(slots, stage)
            made.passable.update(compress(slots, certain))
        staged.append((stage, step))
    last = made.stage(used, looked_at)
    # what a model sees is read behind all that is written before it
    staged = sorted([*staged, *read], key=lambda each: each[0])
    found = [
        part
        for _, group in groupby(staged, key=lambda each: each[0])
        for part in _apart([step for _, step in group])
    ]
    if not staged or last > staged[-1][0] or needs_own_message(staged[-1][1]):
        found.append(())
    return Messages(tuple(found), frozenset(made.passed), frozenset(made.kept))


def needs_own_message(step: TreeStep) -> bool:
    """
    Return whether a step shares no message with others.

    There a statement counts its rows in a WITH, where PostgreSQL takes few rules of tables. By itself it
    is counted by what PostgreSQL says of it.
    """
    return step.relation.has_rules and not isinstance(step, LinkedKey)


def _apart(steps: Sequence[TreeStep]) -> Iterator[tuple[TreeStep, ...]]:
    for apart, group in groupby(steps, key=needs_own_message):
        some = tuple(group)
        yield from ((step,) for step in some) if apart else (some,)


def is_seen(step: TreeStep) -> bool:
    """Return whether a model sees the rows of a step before they are written."""
    return not isinstance(step, LinkedKey) and step.seen


def needed_by(step: TreeStep) -> tuple[list[int], list[int]]:
    """Return the slots of values that can be handed on to a step, and of those that come back first."""
    handed, before = used_by(step), looked_at_by(step)
    # A statement with a message of its own is handed nothing, and a model sees values.
    if needs_own_message(step) or is_seen(step):
        return [], [*handed, *before]
    return handed, before


def used_by(step: TreeStep) -> list[int]:
    """Return the slots that the statement of a step is made of."""
    if isinstance(step, NewRows):
        return [each.operand.slot for row in step.rows for each in row if each.operand is not None]
    slots = [each.slot for each in step.key.operands]
    if isinstance(step, LinkedRow):
        slots += [each.operand.slot for each in step.changes if each.operand is not None]
    return slots


def looked_at_by(step: TreeStep) -> list[int]:
    """Return the slots of values that are looked at before a step."""
    if isinstance(step, LinkedKey):
        return []
    return [slot for one, other, _ in step.alike for slot in (one, other)]


def slots_of(step: TreeStep) -> tuple[tuple[int, ...], ...]:
    """Return for each row of a step the slots that it fills."""
    if isinstance(step, NewRows):
        return step.slots
    return (step.slots if isinstance(step, LinkedKey) else (),)


def _passable(step: TreeStep) -> list[bool]:
    """Return of which columns that a step gives the value can be handed on: it is one, and no null."""
    if isinstance(step, LinkedRow) or needs_own_message(step) or len(slots_of(step)) > 1:
        return []
    return [not step.relation.columns[name].nullable for name in step.columns]


def plan_step(catalog: Catalog, step: TreeStep) -> InsertPlan | UpdatePlan | ReadPlan:
    """Plan a step; what comes back of it are the values that later steps use."""
    if isinstance(step, NewRows):
        return _new_rows(catalog, step)
    if isinstance(step, LinkedRow):
        target = Target(step.key, (), EVERYTHING)
        request = UpdateRequest(target, step.changes, Returning(rows=False))
        # That it writes none is found by the number of rows: nothing is kept then.
        return plan_update(catalog, step.relation, request, many=True)
    return _linked_key(catalog, step)


def plan_answer(
    catalog: Catalog, relation: Relation, returning: Returning, key: tuple[str, ...]
) -> PlannedReturning:
    """Plan what comes back of the rows of the call: they are read by their keys, at the end."""
    scope = Scope(catalog, relation, returning.embeds)
    reread = Reread(scope.equals(key), saved_columns(relation, key), "", fallback=False)
    if not returning.rows:
        return PlannedReturning(reread=reread, receipt=returning.receipt)
    outputs, embeds = plan_rows(scope, returning.select, returning.embeds)
    return PlannedReturning(
        outputs,
        sort_keys(scope, returning.order),
        embeds,
        inner_conditions(scope, returning.embeds),
        reread,
        json=as_json(catalog, returning.form, outputs, embeds),
        receipt=returning.receipt,
    )


def _new_rows(catalog: Catalog, step: NewRows) -> InsertPlan:
    scope, relation = Scope(catalog, step.relation), step.relation
    columns, rows = plan_new_rows(scope, step.rows)
    values = [scope.of_column(relation.columns[name]) for name in step.columns]
    text = scope.named("text")
    values += [scope.of_column(relation.columns[name]).cast(text) for name in step.texts]
    returning = PlannedReturning(tuple(Output(each, f"c{at}") for at, each in enumerate(values)))
    numbered = bool(values) and len(rows) > 1
    return InsertPlan(
        f"{relation.name}.create", relation, columns, rows, returning, numbered=numbered
    )


def _linked_key(catalog: Catalog, step: LinkedKey) -> ReadPlan:
    select = tuple(Item(Reference(name, step.path)) for name in step.columns)
    plan = plan_get(catalog, step.relation, GetRequest(step.key, select))
    return replace(plan, lock=Lock()) if step.locked else plan
