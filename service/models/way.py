"""
From many rows to all that are related to them, in one statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.catalog import Type
from service.errors import InvalidArgument
from service.models.meta import Meta
from service.models.text import Where
from service.sql.statement import quoted

Key = tuple[str | None, ...]
"""What a row is related by, as PostgreSQL's text."""

CHECKED = frozenset(["int2", "int4", "int8", "text", "varchar"])
"""Types of which PostgreSQL takes whatever we could write."""


@dataclass(frozen=True)
class Way:
    """
    How related rows are reached from keys.

    Args:
        model: Of the related rows.
        other: What is known of their relation.
        meta: Of the relation whose columns the keys are compared with, or are the key of.
        names: Those columns.
        join: Joins the related rows, as `other`, to the keys, as `asked`.
        params: Of the join.
        repeats: Whether a row may come more than once for a key.
    """

    model: Any
    other: Meta
    meta: Meta
    names: tuple[str, ...]
    join: str
    params: tuple[Any, ...] = ()
    repeats: bool = False

    @classmethod
    def to(cls, model: Any, names: Sequence[str], condition: Where = ()) -> Self:
        """
        Lead to the rows that have the keys in these columns.

        Raises:
            InvalidArgument: There are none: the relation has no primary key.
        """
        meta: Meta = model.meta()
        if not names:
            raise InvalidArgument(f"the key of {meta.relation.name} is missing", path="key")
        terms = [*_equal("other", names, meta, names), *condition[:1]]
        join = f"JOIN {meta.table} AS other ON {' AND '.join(terms)}"
        return cls(model, meta, meta, tuple(names), join, tuple(condition[1:]))

    @classmethod
    def through(
        cls, model: Any, meta: Meta, joined: str, here: Sequence[str], there: Sequence[str]
    ) -> Self:
        """Lead through a join table, from rows of `meta` to the other ones, both by their keys."""
        other: Meta = model.meta()
        ends = " AND ".join(
            f"other.{quoted(key)}{other.equal_sign(key)}joined.{quoted(name)}"
            for key, name in zip(other.key, there, strict=True)
        )
        first = f"JOIN {joined} AS joined ON {' AND '.join(_equal('joined', here, meta, meta.key))}"
        join = f"{first} JOIN {other.table} AS other ON {ends}"
        return cls(model, other, meta, meta.key, join, repeats=True)

    def written(self, values: Sequence[Any]) -> list[str | None]:
        """
        Write a key.

        Raises:
            InvalidArgument: It cannot be one.
        """
        return [
            self.meta.encode(name, value) for name, value in zip(self.names, values, strict=True)
        ]

    def takes(self, types: Sequence[Type]) -> bool:
        """Tell whether no key made of stored values of these types can be one that fails."""
        return all(
            type.oid == self.meta.types[name].oid or self.meta.types[name].name in CHECKED
            for type, name in zip(types, self.names, strict=True)
        )

    def statement(self) -> str:
        """
        Spell the statement: a row for each key and related row, the key's number first.

        Its parameters are a list for each column of the keys, those of the join, and how many
        rows to give at most.
        """
        keys = ", ".join(_key(at) for at in range(len(self.names)))
        columns = ", ".join(f"other.{quoted(name)}" for name in self.other.columns)
        order = ", ".join(["asked.at", *(f"other.{quoted(name)}" for name in self.other.key)])
        once = f"DISTINCT ON ({order}) " if self.repeats else ""
        return (
            f"SELECT {once}asked.at, {columns}"
            f" FROM {self.meta.rows_of(self.names)} WITH ORDINALITY AS asked ({keys}, at)"
            f" {self.join} ORDER BY {order} LIMIT ?"
        )


def _equal(alias: str, names: Sequence[str], meta: Meta, keys: Sequence[str]) -> list[str]:
    """Spell that columns are equal to keys, which have the types of other ones."""
    return [
        f"{alias}.{quoted(name)}{meta.equal_sign(key)}asked.{_key(at)}"
        for at, (name, key) in enumerate(zip(names, keys, strict=True))
    ]


def _key(at: int) -> str:
    return f"key_{at}"
