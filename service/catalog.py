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

from service.errors import NoSuchProcedure, UnknownName, nearest
from service.functions import Function, unknown
from service.objects import (
    NOWHERE,
    Column,
    ForeignKey,
    Relation,
    RelationKind,
    Type,
    TypeKind,
    UniqueKey,
    WriteKind,
)


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
        seals: Composite types with hidden fields, by what stands for the names of all their
            fields: whether each field is shown.
    """

    version: int
    schemas: tuple[str, ...]
    relations: Mapping[tuple[str, str], Relation]
    types: Mapping[int, Type]
    functions: Mapping[tuple[str, str], tuple[Function, ...]] = field(default_factory=dict)
    seals: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)

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
            for key in (*relation.foreign_keys, *relation.links):
                found.setdefault(key.target, []).append((relation, key))
        return found

    @property
    def bare(self) -> tuple[str, ...]:
        """The schemas of which nothing is served: empty, forbidden or misspelled."""
        filled = {home for home, _ in (*self.relations, *self.functions)}
        return tuple(schema for schema in self.schemas if schema not in filled)

    def relation(self, schema: str, name: str) -> Relation:
        """
        Look a relation up.

        Raises:
            NoSuchProcedure: It does not exist, is not served or is hidden.
        """
        try:
            return self.relations[schema, name]
        except KeyError:
            elsewhere = [home for home in self.schemas if (home, name) in self.relations]
            hint = (
                f'did you mean "{elsewhere[0]}.{name}"?'
                if elsewhere
                else nearest(name, self._names(schema))
            )
            raise NoSuchProcedure(f'no relation "{name[:80]}" is served', hint=hint) from None

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
        known = self.types_by_name
        found = known.get(base) or known.get(base.replace('"', ""))
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

__all__ = [
    "NOWHERE",
    "TEXT",
    "TYPE_ALIASES",
    "Catalog",
    "Column",
    "ForeignKey",
    "Relation",
    "RelationKind",
    "Type",
    "TypeKind",
    "UniqueKey",
    "WriteKind",
]
