"""
What the database holds, as frozen values.

`db/introspect` reads it, everything else looks things up here. Hidden relations and
columns are not in it at all, so nothing can reach them by mistake. A look-up that finds
nothing refuses, with the nearest known name as its hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from service.errors import NoSuchProcedure, UnknownName, nearest
from service.functions import Function, unknown

TypeKind = Literal["base", "enum", "composite", "domain", "range", "multirange", "array", "pseudo"]
RelationKind = Literal["table", "view", "materialized view", "foreign table"]


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
        delimiter: Between the elements of an array of this type.
        comparable: Whether values can be sorted (it has a default btree operator class).
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
    delimiter: str = ","
    comparable: bool = True


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
    def has_default(self) -> bool:
        """Whether the database fills it in when a row is created without it."""
        return bool(self.default or self.identity or self.generated)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key: `columns` here are `target_columns` of `target` (schema, name)."""

    name: str
    columns: tuple[str, ...]
    target: tuple[str, str]
    target_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """
    A unique constraint or whole-table unique index, primary key included.

    Args:
        name: The constraint's name, which ON CONFLICT ON CONSTRAINT takes.
        columns: In the order of the key.
        constraint: False for a unique index that is no constraint.
    """

    name: str
    columns: tuple[str, ...]
    constraint: bool = True


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
        checks: Check and exclusion constraints: name to the columns that it speaks of.
        comment: From COMMENT ON, less the lines that speak to the service.
        row_security: Whether row-level security is on.
        filled: Whether a trigger may fill in what a new row lacks, before it is checked.
        selectable, insertable, updatable, deletable: What our role may do.
    """

    schema: str
    name: str
    kind: RelationKind
    columns: Mapping[str, Column]
    primary_key: tuple[str, ...] = ()
    unique_keys: tuple[UniqueKey, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    comment: str | None = None
    row_security: bool = False
    filled: bool = False
    selectable: bool = True
    insertable: bool = True
    updatable: bool = True
    deletable: bool = True

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


@dataclass(frozen=True, eq=False)
class Catalog:
    """
    Everything served, at one moment.

    Args:
        version: Another number for each load; plans are cached by it.
        schemas: The served schemas, the first one without a prefix in URIs.
        relations: By schema and name.
        types: By oid.
        functions: By schema and name; several if they differ in their arguments.
    """

    version: int
    schemas: tuple[str, ...]
    relations: Mapping[tuple[str, str], Relation]
    types: Mapping[int, Type]
    functions: Mapping[tuple[str, str], tuple[Function, ...]] = field(default_factory=dict)

    @cached_property
    def types_by_name(self) -> Mapping[str, Type]:
        """Types by each of their spellings, lower case: "int4", "integer", "app.mood"."""
        found: dict[str, Type] = {}
        for each in self.types.values():
            if each.kind == "pseudo":
                continue
            if each.schema == "pg_catalog" or each.schema in self.schemas:
                found.setdefault(each.name.lower(), each)
            found.setdefault(each.sql.lower(), each)
            found.setdefault(f"{each.schema}.{each.name}".lower(), each)
        for alias, name in TYPE_ALIASES.items():
            if name in found:
                found.setdefault(alias, found[name])
        return found

    @cached_property
    def _arrays(self) -> Mapping[int, Type]:
        return {each.element: each for each in self.types.values() if each.kind == "array"}

    @cached_property
    def referrers(self) -> Mapping[tuple[str, str], Sequence[tuple[Relation, ForeignKey]]]:
        """The foreign keys that refer to a relation, each with the relation that has it."""
        found: dict[tuple[str, str], list[tuple[Relation, ForeignKey]]] = {}
        for relation in self.relations.values():
            for key in relation.foreign_keys:
                found.setdefault(key.target, []).append((relation, key))
        return found

    def relation(self, schema: str, name: str) -> Relation:
        """
        Look a relation up.

        Raises:
            NoSuchProcedure: It does not exist, is not served or is hidden.
        """
        try:
            return self.relations[schema, name]
        except KeyError:
            raise NoSuchProcedure(
                f'no relation "{name[:80]}" is served', hint=nearest(name, self._names(schema))
            ) from None

    def function(self, schema: str, name: str) -> tuple[Function, ...]:
        """
        Look the functions of a name up.

        Raises:
            NoSuchProcedure: There is none, or our role may not execute it.
        """
        try:
            return self.functions[schema, name]
        except KeyError:
            raise unknown(name, [each for home, each in self.functions if home == schema]) from None

    def type(self, oid: int) -> Type:
        """Look a type up; an unknown one is taken as text."""
        return self.types.get(oid) or self.types[TEXT]

    def type_named(self, name: str, path: str | None = None) -> Type:
        """
        Look a type up by name, as a cast spells it; "[]" after it means its array.

        Raises:
            UnknownName: No type that may be used here is called so.
        """
        word = " ".join(name.lower().split())
        base, array = (word[:-2].strip(), True) if word.endswith("[]") else (word, False)
        found = self.types_by_name.get(base)
        if found and array:
            found = self.array_of(found)
        if found is None:
            raise UnknownName("type", name, self.types_by_name, path=path)
        return found

    def array_of(self, element: Type) -> Type | None:
        """Give the array type over a type, if the database has one."""
        return self._arrays.get(element.oid)

    def plain(self, type: Type) -> Type:
        """Give the type under a domain, or the type itself."""
        while type.kind == "domain":
            type = self.type(type.base)
        return type

    def key_of(self, relation: Relation, columns: Iterable[str]) -> UniqueKey | None:
        """Find the unique key over exactly these columns, in any order."""
        wanted = frozenset(columns)
        return next((k for k in relation.unique_keys if frozenset(k.columns) == wanted), None)

    def _names(self, schema: str) -> list[str]:
        return [name for home, name in self.relations if home == schema]


TEXT = 25
"""The oid of `text`, the same in every PostgreSQL (pg_type.dat)."""

TYPE_ALIASES = {
    "int": "int4",
    "bigint": "int8",
    "smallint": "int2",
    "real": "float4",
    "float": "float8",
    "double": "float8",
    "decimal": "numeric",
    "boolean": "bool",
    "string": "text",
    "char": "bpchar",
    "character": "bpchar",
    "datetime": "timestamp",
}
"""Spellings of types that `pg_type` itself does not list."""
