"""
What a catalog is made of: types, columns, keys, relations, as frozen values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from service.errors import UnknownName

NOWHERE = ""
"""The schema of what is like a relation, and is none: nothing can be called like it."""

TypeKind = Literal["base", "enum", "composite", "domain", "range", "multirange", "array", "pseudo"]
RelationKind = Literal["table", "view", "materialized view", "foreign table"]
WriteKind = Literal["insert", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Type:
    """
    A data type.

    Args:
        oid: Its number in this database.
        schema: The schema that holds it.
        name: Its `typname`, as in "int4".
        sql: Spelled for a cast without modifiers, as in "integer" or 'app."Mood"'.
        kind: What sort of type it is.
        category: PostgreSQL's one-letter category, as "N" for numbers.
        element: Of an array: its element's oid, else 0.
        base: Of a domain: the oid of the type under it; of a range or multirange: of its
            subtype; else 0.
        labels: Of an enum: its values in order.
        fields: Of a composite: the names and type oids of its attributes; a hidden one keeps
            its place under the name "", which no attribute can have.
        withheld: Those of them, in the row of a relation, on which our role has no right.
        delimiter: Between the elements of an array of this type.
        comparable: Whether values can be sorted (it has a default btree operator class).
        pattern: The oid of what an operator `~` of its own takes, as ltree's; 0: it has none.
        row: Whether it is the type of a relation's rows.
        pure: Whether it is certain that its values leave nothing behind in a session.
    """

    oid: int
    schema: str
    name: str
    sql: str
    kind: TypeKind
    category: str = "U"
    element: int = 0
    base: int = 0
    labels: tuple[str, ...] = ()
    fields: tuple[tuple[str, int], ...] = ()
    withheld: frozenset[str] = frozenset()
    delimiter: str = ","
    comparable: bool = True
    pattern: int = 0
    row: bool = False
    pure: bool = False

    @property
    def parts(self) -> tuple[int, ...]:
        """The oids of the types that it is made of."""
        return tuple(filter(None, (self.element, self.base, *(oid for _, oid in self.fields))))


@dataclass(frozen=True, slots=True)
class Column:
    """
    A column of a relation.

    Args:
        name: As the catalog has it.
        type: Its type's oid.
        declared: The type with modifiers, as in "character varying(255)".
        nullable: Whether NULL is allowed (domains included).
        default: The default's SQL expression, or None; also that of a domain.
        identity: "a" always, "d" by default, "" none.
        generated: "s" stored, "v" virtual, "" none.
        comment: From COMMENT ON, less the lines that speak to the service.
        max_length: In characters, where the type has such a limit.
        selectable, insertable, updatable: What our role may do with it, and a view can.
    """

    name: str
    type: int
    declared: str
    nullable: bool = True
    default: str | None = None
    identity: str = ""
    generated: str = ""
    comment: str | None = None
    max_length: int | None = None
    selectable: bool = True
    insertable: bool = True
    updatable: bool = True

    @property
    def made(self) -> bool:
        """Whether the value is the database's to make, so that it can be the default alone."""
        return bool(self.generated) or self.identity == "a"

    @property
    def has_default(self) -> bool:
        """Whether the database fills it in when a row is created without it."""
        return bool(self.default or self.identity or self.generated)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """
    A foreign key, or what a view has of one through the columns that it shows.

    Args:
        name: Of the constraint.
        columns: Of this relation.
        target: The other relation, as schema and name.
        target_columns: Of the other relation.
        unique: Whether it is known that one row at most refers to another by it.
        called: Whether an embed may be called by its name or its columns.
    """

    name: str
    columns: tuple[str, ...]
    target: tuple[str, str]
    target_columns: tuple[str, ...]
    unique: bool = False
    called: bool = True


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """
    A unique constraint or whole-table unique index, primary key included.

    Args:
        name: Of the constraint, or of the index.
        columns: In the order of the key.
        arbiter: Whether ON CONFLICT may go by it: not if it is deferrable, or of periods that
            may not overlap.
        nulls: Whether NULL is a value like others (NULLS NOT DISTINCT).
    """

    name: str
    columns: tuple[str, ...]
    arbiter: bool = True
    nulls: bool = False


@dataclass(frozen=True, slots=True)
class Spelled:
    """SQL that PostgreSQL has spelled out of its own catalog; nobody else makes any."""

    text: str


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """
    What tells rows apart without being a key: a unique index on a part of the rows or on
    expressions, an exclusion constraint, an index that is not usable yet.

    Args:
        name: Of the constraint, or of the index.
        columns: Those that stand in the index by themselves.
        used: Those columns, and the ones in its expressions.
        target: What ON CONFLICT says to go by it.
        partial: Whether it is on a part of the rows.
        nulls: Whether rows without a value in those columns may be alike.
        skips: Whether rows that are there can only be left alone.
        fault: Why ON CONFLICT cannot go by it; empty if it can.
    """

    name: str
    columns: tuple[str, ...]
    used: tuple[str, ...]
    target: Spelled
    partial: bool = False
    nulls: bool = False
    skips: bool = False
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Relation:
    """
    A served table, view, materialized view or foreign table.

    Args:
        schema: Of the relation.
        name: Of the relation.
        kind: What it is.
        columns: By name, in the order of the table.
        primary_key: Its columns; empty if there is none.
        unique_keys: All keys, the primary key first.
        foreign_keys: Of this relation.
        links: Further ones, which it has or which refer to views, through what views show.
        shown_keys: Of a view, the unique keys of tables that it shows whole; joins may repeat them.
        unique_indexes: What else tells rows apart.
        constraints: Constraints and unique indexes of served columns alone: name to columns.
        comment: From COMMENT ON, less the lines that speak to the service.
        row_security: Whether row-level security is on.
        estimable: Whether our role may know how many rows the planner expects.
        filled: Whether a trigger may fill in what a new row lacks, before it is checked.
        after: The kinds of writes after which the rows may be others than they were written, by
            triggers, or by those of a view's table.
        cascading: Columns whose changes foreign keys carry on to other rows.
        stirs: Whether a write can do more than write rows, even when it writes none: triggers,
            rules, volatile functions in policies, whatever a view or foreign table does.
        direct: Whether PostgreSQL writes it by itself; not a view that has triggers do it.
        ruled: Whether it has rules for writes.
        takes: The kinds of writes that it can take at all: a view by itself or through a trigger.
        selectable, insertable, updatable, deletable: What our role may do.
        readable: Whether that is to read whole rows, with the columns that are not served.
        pure_reads, pure_writes: Whether it is certain that a read of it, or a write to it, leaves
            nothing behind in a session.
    """

    schema: str
    name: str
    kind: RelationKind
    columns: Mapping[str, Column]
    primary_key: tuple[str, ...] = ()
    unique_keys: tuple[UniqueKey, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    links: tuple[ForeignKey, ...] = ()
    shown_keys: tuple[tuple[str, ...], ...] = ()
    unique_indexes: tuple[UniqueIndex, ...] = ()
    constraints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    comment: str | None = None
    row_security: bool = False
    estimable: bool = True
    filled: bool = False
    after: frozenset[WriteKind] = frozenset()
    cascading: frozenset[str] = frozenset()
    stirs: bool = False
    direct: bool = True
    ruled: bool = False
    takes: frozenset[WriteKind] = frozenset({"insert", "update", "delete"})
    selectable: bool = True
    insertable: bool = True
    updatable: bool = True
    deletable: bool = True
    readable: bool = True
    pure_reads: bool = False
    pure_writes: bool = False

    def refers_once(self, key: ForeignKey) -> bool:
        """Tell whether it is known that one row at most refers to another by a foreign key."""
        return key.unique or any(
            set(unique.columns) <= set(key.columns) for unique in self.unique_keys
        )

    def column(self, name: str, path: str | None = None) -> Column:
        """
        Look a column up.

        Raises:
            UnknownName: There is none of that name, or it is hidden.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownName(
                "column", name, self.columns, f'relation "{self.name}"', path
            ) from None
