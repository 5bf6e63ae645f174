"""
What relationships share.

Asked without conditions, a row that was found with others asks for them as well: `together`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from twistar.exceptions import ReferenceNotSavedError
from twistar.registry import Registry
from twisted.internet.defer import Deferred

from service.catalog import Type
from service.models.ends import Ends
from service.models.finding import affected_txn
from service.models.way import Way


class Relationship(ABC):
    """
    What all four share.

    Attributes:
        one: Whether there is one other at most.
    """

    one: ClassVar[bool] = True

    def __init__(self, inst: Any, ends: Ends) -> None:
        self.inst = inst
        self.ends = ends

    @property
    def otherklass(self) -> Any:
        """The other model."""
        other = self.ends.other
        return other() if callable(other) else Registry.getClass(other)

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns of this row that say what is related to it."""
        return self.ends.key or self.inst.made_with.key

    @property
    def types(self) -> list[Type]:
        """The types of these columns."""
        return [self.inst.made_with.types[name] for name in self.mine]

    @property
    def as_read(self) -> bool:
        """Whether this row is there, with these columns as they were read."""
        return self.inst.persisted and not set(self.mine) & set(self.inst.dirty())

    @abstractmethod
    def way(self) -> Way | None:
        """Give the way from rows to what is related to them; None if nothing can be."""

    @abstractmethod
    def alone(self) -> Deferred[Any]:
        """Find what is related to this row, and to no other."""

    def get(self) -> Deferred[Any]:
        """Give the one object, or None."""
        group = self.inst._together
        return self.alone() if group is None else group.get(self)

    def values(self, subject: Any = None) -> list[Any]:
        """Give what this row, or another one, has in the columns that say what is related."""
        subject = self.inst if subject is None else subject
        if not subject.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        attributes = subject.made_with.attributes
        return [getattr(subject, attributes[name]) for name in self.mine]

    def _run(self, sql: str, *params: Any) -> Deferred[int]:
        return self.inst.database().run(affected_txn, self.inst.meta().codec, sql, list(params))


def key_of(subject: Any) -> tuple[Any, ...]:
    """
    Give the key of an object that is to be related to another.

    Raises:
        ReferenceNotSavedError: It has none yet.
    """
    if not subject.persisted:
        raise ReferenceNotSavedError("save an object before it is related to others")
    key: tuple[Any, ...] = subject.key
    return key
