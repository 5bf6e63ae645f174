"""
The steps of nested new rows in messages to PostgreSQL: as many as can go in one.

A value that a step makes of one row is handed to the statements behind it by PostgreSQL itself, so
that they need not wait for it. They do wait for the values of several rows, and for those that are
looked at before a row is written: that none is null, that two are the same, or what its model says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, groupby

from service.plan.tree import LinkedKey, LinkedRow, NewRows, TreeStep


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
