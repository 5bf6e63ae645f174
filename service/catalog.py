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

from service.errors import InvalidArgument, NoSuchProcedure, UnknownName, nearest
from service.functions import Function, unknown
from service.objects import (
    NOWHERE,
    Column,
    ForeignKey,
    Relation,
    RelationKind,
    Spelled,
    Type,
    TypeKind,
    UniqueIndex,
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
        operators: Those that types of extensions and of one's own bring, by name and both types'
            oids: their schema. Whoever can put another one there could do worse.
        aggregates: The same of functions over rows, by name and type.
        policies: Whether policies hide rows of anything in the database from our role.
    """

    version: int
    schemas: tuple[str, ...]
    relations: Mapping[tuple[str, str], Relation]
    types: Mapping[int, Type]
    functions: Mapping[tuple[str, str], tuple[Function, ...]] = field(default_factory=dict)
    seals: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)
    operators: Mapping[tuple[str, int, int], str] = field(default_factory=dict)
    aggregates: Mapping[tuple[str, int], str] = field(default_factory=dict)
    policies: bool = False

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
    def castable(self) -> Mapping[str, Type]:
        """Types that a caller may cast to, by each of their spellings."""
        return {word: each for word, each in self.types_by_name.items() if self._is_castable(each)}

    def _is_castable(self, type: Type) -> bool:
        """
        Return whether a cast to a type tells nothing but the value.

        PostgreSQL looks names up for `regclass` and its kin, the row type of a relation has the
        relation's name, and what such types are parts of does the same.
        """
        if type.schema == "information_schema":
            return False
        if type.kind == "base":
            return type.schema != "pg_catalog" or type.name in PLAIN
        if type.row and (type.schema, type.name) not in self.relations:
            return False
        return all(self._is_castable(self.type(oid)) for oid in type.parts)

    def looks_up(self, type: Type) -> bool:
        """Return whether PostgreSQL looks names up to read the text of a type."""
        if type.schema == "pg_catalog" and type.kind == "base":
            return type.name.startswith("reg") or type.name == "aclitem"
        return any(self.looks_up(self.type(oid)) for oid in type.parts)

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
            InvalidArgument: No type that may be cast to is called so.
        """
        word = " ".join(name.lower().split())
        base, array = (word[:-2].strip(), True) if word.endswith("[]") else (word, False)
        known = self.castable
        found = known.get(base) or known.get(base.replace('"', ""))
        if found and array:
            found = self.array_of(found)
        if found is not None:
            return found
        own = self.types_by_name.get(base)
        if own is not None and own.schema == "pg_catalog":
            raise InvalidArgument(
                f"no value is cast to {own.sql}",
                path=path,
                hint="a cast is to a plain type, or to one of the served schemas or an extension",
            )
        raise UnknownName("type", name, known, path=path)

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

_PLAIN = """
    bool int2 int4 int8 numeric float4 float8 money text varchar bpchar date time timetz timestamp
    timestamptz interval uuid json jsonb jsonpath xml bytea bit varbit inet cidr macaddr macaddr8
    point line lseg box path polygon circle tsvector tsquery
"""
PLAIN = frozenset(_PLAIN.split())
"""PostgreSQL's own types that may be cast to, beside ranges and arrays of them."""

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
    "Spelled",
    "Type",
    "TypeKind",
    "UniqueIndex",
    "UniqueKey",
    "WriteKind",
]
