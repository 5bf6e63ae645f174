"""
New rows with related rows inside, as steps in the order in which they are made.

Rows that are linked are looked up before anything is made, so that none of them is a new one. What
a row refers to is made before it, what refers to it after it. A step makes all rows of one place in
the tree at once. The values of a key that the database makes are not known yet: each has a slot
among the values of the call, which the step that makes the row fills.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.catalog import Relation
from service.request.requests import Assignment, Embed, KeyMatch

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
