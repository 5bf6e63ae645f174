"""
Nested creates as steps: what each inserts or looks up, and which steps share a message to PostgreSQL.

Linked rows are looked up before any row is inserted, so that a link never means a new row. A row is
inserted after the rows that it refers to and before those that refer to it. A step inserts all rows of one
place in the tree at once. Keys that the database generates are not known when the steps are planned: each
has a slot among the values of the call, which the step that inserts the row fills.

As many steps as possible share one message. PostgreSQL itself passes a value generated for a single row
to later statements of the same message. Steps have to wait for another message if they need the values of
several rows, or values that are checked before a row is written: not null, equal to another one, or
validated by a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, groupby

from service.catalog import Catalog, Relation
from service.plan.plans import (
    InsertPlan,
    Lock,
    Output,
    PlannedReturning,
    ReadPlan,
    UpdatePlan,
)
from service.plan.read_plan import plan_get
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
"""Placeholder of a value that an earlier step generates."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """
    New rows of one relation, inserted by one statement.

    Args:
        relation: The relation.
        rows: The assignments of each row.
        paths: Path of each row in the call.
        columns: Columns whose values later steps use.
        slots: For each row, the slots that those values fill.
        texts: Columns whose values are needed in PostgreSQL's text format as well; their slots follow.
        equal_slots: Pairs of slots whose values must be equal, because two relationships set one column, with
            the path of the second one.
        related: Assignments that relationships add; none of their values may be null.
        needs_model: Whether a model validates the rows before they are written.
    """

    relation: Relation
    rows: tuple[tuple[Assignment, ...], ...]
    paths: tuple[str, ...]
    columns: tuple[str, ...] = ()
    slots: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()
    equal_slots: tuple[tuple[int, int, str], ...] = ()
    related: tuple[Assignment, ...] = ()
    needs_model: bool = False

    def each(self) -> list[NewRows]:
        """Return one step for each of the rows."""
        rows = zip(self.rows, self.paths, self.slots, strict=True)
        return [
            replace(self, rows=(row,), paths=(path,), slots=(slots,)) for row, path, slots in rows
        ]


@dataclass(frozen=True, slots=True)
class LinkedKey:
    """
    The lookup of an existing, linked row: a foreign key references other columns than those of the given
    key, or the row is going to refer to a new row.

    Args:
        relation: The relation.
        key: The key given in the call.
        path: Path of the link in the call.
        columns: Columns that are referenced, or that identify the row.
        slots: Slots that their values fill.
        parent: Slots of the row that it is going to refer to, if any.
        parents: Slot of the parents of all rows linked by the same foreign key.
        locked: Whether the row is locked until the transaction ends.
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
    The update of an existing, linked row so that it refers to a new one.

    Args:
        relation: The relation.
        key: The key given in the call.
        path: Path of the link in the call.
        changes: The changes to write.
        related: Its foreign key's columns; none of their values may be null.
        equal_slots: For columns of its primary key among them: slots of the current and the new value, which
            must be equal, with the path of the link.
        row: The lookup of the entire row, if a model validates it before it is written.
    """

    relation: Relation
    key: KeyMatch
    path: str
    changes: tuple[Assignment, ...]
    related: tuple[Assignment, ...]
    equal_slots: tuple[tuple[int, int, str], ...] = ()
    row: LinkedKey | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a model validates it before it is written."""
        return self.row is not None


TreeStep = NewRows | LinkedKey | LinkedRow


@dataclass(frozen=True, slots=True)
class Tree:
    """
    The steps of a nested create.

    Args:
        steps: The steps, in order.
        root: Index of the step that inserts the rows of the call itself.
        written: Number of rows that all steps write.
        embeds: Embeds that show the nested rows in the result.
        root_answers: Whether the root is the last step, so that its statement returns the result.
        key: Slots of the key by which the call's single row is read again, if it is.
    """

    steps: tuple[TreeStep, ...]
    root: int
    written: int
    embeds: tuple[Embed, ...]
    root_answers: bool
    key: tuple[int, ...] = ()

    @property
    def root_step(self) -> NewRows:
        """The step that inserts the rows of the call itself."""
        step = self.steps[self.root]
        assert isinstance(step, NewRows)
        return step


@dataclass(frozen=True, slots=True)
class Messages:
    """
    The steps of a nested create by messages.

    Args:
        steps: Steps of each message; the last message also has the statement that returns the result.
        passed: Slots of values that PostgreSQL passes from statement to statement.
        returned: Slots of values that are returned to the service.
    """

    steps: tuple[tuple[TreeStep, ...], ...]
    passed: frozenset[int]
    returned: frozenset[int]


@dataclass
class _Stages:
    """For each slot, the stage at which its value is generated, and how it is used; a stage is a message."""

    stages: dict[int, int] = field(default_factory=dict)
    passable: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)

    def stage(self, used: Sequence[int], checked: Sequence[int]) -> int:
        """Return the earliest stage of a step that uses values and checks others before it is sent."""
        generated = self.stages.keys() & {*used, *checked}
        known = generated - self.passable | generated.intersection(checked)
        self.passed |= generated - known
        self.returned |= known
        return max((self.stages[slot] + (slot in known) for slot in generated), default=0)


def messages(
    steps: Sequence[TreeStep], used: Sequence[int] = (), checked: Sequence[int] = ()
) -> Messages:
    """
    Distribute steps over as few messages as possible: at most one for each level of the tree.

    Args:
        steps: The steps, in order.
        used: Slots that the statement of the result uses, which is in the last message.
        checked: Slots whose values must be returned before that statement.
    """
    values = _Stages()
    staged: list[tuple[int, TreeStep]] = []
    read: list[tuple[int, TreeStep]] = []
    for step in steps:
        stage = values.stage(*needed_by(step))
        if isinstance(step, LinkedRow):
            stage = max(stage, 1)  # after its lookup, which detects a row that is linked twice
            if step.row is not None:
                read.append((stage - 1, step.row))
                values.returned.update(step.row.slots)
        elif isinstance(step, LinkedKey) and step.parent:
            values.returned.update(step.slots)
        certain = _passable(step)
        for slots in slots_of(step):
            values.stages |= dict.fromkeys(slots, stage)
            values.passable.update(compress(slots, certain))
        staged.append((stage, step))
    last = values.stage(used, checked)
    # A row that a model validates is read after all earlier writes.
    staged = sorted([*staged, *read], key=lambda each: each[0])
    found = [
        part
        for _, group in groupby(staged, key=lambda each: each[0])
        for part in _apart([step for _, step in group])
    ]
    if not staged or last > staged[-1][0] or needs_own_message(staged[-1][1]):
        found.append(())
    return Messages(tuple(found), frozenset(values.passed), frozenset(values.returned))


def needs_own_message(step: TreeStep) -> bool:
    """
    Return whether a step needs a message of its own.

    In a shared message a statement is wrapped in WITH, to count its rows, and PostgreSQL does not support
    that for tables with most rules. Alone, the command tag has the count.
    """
    return step.relation.has_rules and not isinstance(step, LinkedKey)


def _apart(steps: Sequence[TreeStep]) -> Iterator[tuple[TreeStep, ...]]:
    for apart, group in groupby(steps, key=needs_own_message):
        some = tuple(group)
        yield from ((step,) for step in some) if apart else (some,)


def needs_model(step: TreeStep) -> bool:
    """Return whether a model validates the rows of a step before they are written."""
    return not isinstance(step, LinkedKey) and step.needs_model


def needed_by(step: TreeStep) -> tuple[list[int], list[int]]:
    """Return the slots that PostgreSQL can pass to a step, and those that must be returned before it."""
    handed, before = used_by(step), checked_by(step)
    # Nothing is passed into a message of its own, and a model needs the values themselves.
    if needs_own_message(step) or needs_model(step):
        return [], [*handed, *before]
    return handed, before


def used_by(step: TreeStep) -> list[int]:
    """Return the slots of the values in the statement of a step."""
    if isinstance(step, NewRows):
        return [each.operand.slot for row in step.rows for each in row if each.operand is not None]
    slots = [each.slot for each in step.key.operands]
    if isinstance(step, LinkedRow):
        slots += [each.operand.slot for each in step.changes if each.operand is not None]
    return slots


def checked_by(step: TreeStep) -> list[int]:
    """Return the slots of the values that are checked before a step."""
    if isinstance(step, LinkedKey):
        return []
    return [slot for one, other, _ in step.equal_slots for slot in (one, other)]


def slots_of(step: TreeStep) -> tuple[tuple[int, ...], ...]:
    """Return, for each row of a step, the slots that it fills."""
    if isinstance(step, NewRows):
        return step.slots
    return (step.slots if isinstance(step, LinkedKey) else (),)


def _passable(step: TreeStep) -> list[bool]:
    """Return for each column of a step whether PostgreSQL can pass its value: of one row, and not null."""
    if isinstance(step, LinkedRow) or needs_own_message(step) or len(slots_of(step)) > 1:
        return []
    return [not step.relation.columns[name].nullable for name in step.columns]


def plan_step(catalog: Catalog, step: TreeStep) -> InsertPlan | UpdatePlan | ReadPlan:
    """Plan a step; its statement returns the values that later steps use."""
    if isinstance(step, NewRows):
        return _new_rows(catalog, step)
    if isinstance(step, LinkedRow):
        target = Target(step.key, (), EVERYTHING)
        request = UpdateRequest(target, step.changes, Returning(rows=False))
        # many=True: a missing row is detected by the row count, and the transaction rolled back.
        return plan_update(catalog, step.relation, request, many=True)
    return _linked_key(catalog, step)


def _new_rows(catalog: Catalog, step: NewRows) -> InsertPlan:
    scope, relation = Scope(catalog, step.relation), step.relation
    columns, rows = plan_new_rows(scope, step.rows)
    values = [scope.of_column(relation.columns[name]) for name in step.columns]
    text = scope.builtin("text")
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
