"""
The database as frozen values: relations, columns, keys, types, functions; and look-ups in them.

`db/introspect` reads it, everything else looks things up here. Hidden relations and
columns are not in it at all, so nothing can reach them by mistake. A look-up that finds
nothing refuses, with the nearest known name as its hint.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from service.datatypes import ALIASES, DataType, FormName, data_type
from service.errors import InvalidArgument, NoSuchProcedure, UnknownName, nearest

NOWHERE = ""
"""The schema of what is like a relation, and is none: nothing can be called like it."""
TEXT = 25
"""The oid of `text`, the same in every PostgreSQL (pg_type.dat)."""
QualifiedName = tuple[str, str]
"""A schema, and a name in it."""

TypeKind = Literal["base", "enum", "composite", "domain", "range", "multirange", "array", "pseudo"]
RelationKind = Literal["table", "view", "materialized view", "foreign table"]
WriteKind = Literal["insert", "update", "delete"]
Mode = Literal["in", "out", "inout", "variadic", "table"]
Volatility = Literal["immutable", "stable", "volatile"]


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
        unreadable_fields: Those of them, in the row of a relation, on which our role has no right.
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
    unreadable_fields: frozenset[str] = frozenset()
    delimiter: str = ","
    comparable: bool = True
    pattern: int = 0
    row: bool = False
    pure: bool = False

    @property
    def parts(self) -> tuple[int, ...]:
        """The oids of the types that it is made of."""
        return tuple(filter(None, (self.element, self.base, *(oid for _, oid in self.fields))))

    @property
    def data_type(self) -> DataType:
        """What is known of such values; of a domain ask the type under it."""
        if self.kind in ("base", "pseudo"):
            return data_type(self.schema, self.name, self.category)
        return data_type("", "")

    @property
    def form(self) -> FormName:
        """How such values look on the wire, unless they are made of others."""
        return self.data_type.form


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
        loose: Whether texts may be equal that do not look alike, by its collation.
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
    loose: bool = False

    @property
    def generated_always(self) -> bool:
        """Whether the value is the database's to make, so that it can be the default alone."""
        return bool(self.generated) or self.identity == "a"

    @property
    def logged(self) -> bool:
        """Whether its values are in the log of changes, where the relation is; virtual ones are null."""
        return self.generated != "v"

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
        names_embeds: Whether an embed may be called by its name or its columns.
    """

    name: str
    columns: tuple[str, ...]
    target: tuple[str, str]
    target_columns: tuple[str, ...]
    unique: bool = False
    names_embeds: bool = True


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
        required: Of a view's, whether it is one of its one table, and is never null.
    """

    name: str
    columns: tuple[str, ...]
    arbiter: bool = True
    nulls: bool = False
    required: bool = False


@dataclass(frozen=True, slots=True)
class CatalogSQL:
    """SQL that PostgreSQL has spelled out of its own catalog; nobody else makes any."""

    text: str


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """
    What keeps rows apart without being a key: a unique index on a part of the rows or on
    expressions, an exclusion constraint, an index that is not usable yet.

    Args:
        name: Of the constraint, or of the index.
        columns: Those that stand in the index by themselves.
        all_columns: Those columns, and the ones in its expressions.
        target: What ON CONFLICT says to go by it.
        partial: Whether it is on a part of the rows.
        nulls: Whether rows without a value in those columns may be alike.
        only_ignores: Whether rows that are there can only be left alone.
        fault: Why ON CONFLICT cannot go by it; empty if it can.
    """

    name: str
    columns: tuple[str, ...]
    all_columns: tuple[str, ...]
    target: CatalogSQL
    partial: bool = False
    nulls: bool = False
    only_ignores: bool = False
    fault: str = ""


# Hashed by identity, since mappings have no hash: relations and functions are keys of caches.
@dataclass(frozen=True, eq=False)
class Relation:
    """
    A served table, view, materialized view or foreign table.

    Args:
        schema: Of the relation.
        name: Of the relation.
        kind: What it is.
        columns: By name, in the order of the table.
        primary_key: Its columns; empty if there is none. Of a view, what tells its rows apart.
        unique_keys: All keys, the primary key first.
        foreign_keys: Of this relation.
        view_foreign_keys: Further ones, which it has or which refer to views, through what views show.
        view_keys: Of a view, the unique keys of tables that it shows whole; joins may repeat them.
        claimed_key: Of a view, the names after `@key` in its comment, whether it has such columns or not.
        unique_indexes: What else keeps rows apart.
        constraints: Constraints and unique indexes of served columns alone: name to columns.
        comment: From COMMENT ON, less the lines that speak to the service.
        row_security: Whether row-level security is on.
        estimable: Whether our role may know how many rows the planner expects.
        before_triggers: The kinds of writes whose rows triggers may change, before they are checked.
        changed_by_triggers: The kinds of writes after which the rows may be others than they were
            written, by triggers, or by those of a view's table.
        cascading_columns: Columns whose changes foreign keys carry on to other rows.
        has_children: Whether tables inherit from it: their rows are its rows, too, and their keys
            may be those of others.
        side_effects: Whether a write can do more than write rows, even when it writes none: triggers,
            rules, volatile functions in policies, whatever a view or foreign table does.
        auto_updatable: Whether PostgreSQL writes it by itself; not a view that has triggers do it.
        has_rules: Whether it has rules for writes.
        accepted_writes: The kinds of writes that it can take at all: a view by itself or through a
            trigger.
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
    view_foreign_keys: tuple[ForeignKey, ...] = ()
    view_keys: tuple[tuple[str, ...], ...] = ()
    claimed_key: tuple[str, ...] = ()
    unique_indexes: tuple[UniqueIndex, ...] = ()
    constraints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    comment: str | None = None
    row_security: bool = False
    estimable: bool = True
    before_triggers: frozenset[WriteKind] = frozenset()
    changed_by_triggers: frozenset[WriteKind] = frozenset()
    cascading_columns: frozenset[str] = frozenset()
    has_children: bool = False
    side_effects: bool = False
    auto_updatable: bool = True
    has_rules: bool = False
    accepted_writes: frozenset[WriteKind] = frozenset({"insert", "update", "delete"})
    selectable: bool = True
    insertable: bool = True
    updatable: bool = True
    deletable: bool = True
    readable: bool = True
    pure_reads: bool = False
    pure_writes: bool = False

    @cached_property
    def known_key(self) -> tuple[str, ...]:
        """
        The columns by which each row is found again, and no other one: a key that PostgreSQL
        knows, that is never null and that our role may read; empty if there is none.
        """
        keys: list[tuple[str, ...]] = []
        if self.has_children:
            return ()
        if self.kind == "table":
            unique = (each.columns for each in self.unique_keys)
            whole = (k for k in unique if not any(self.columns[name].nullable for name in k))
            keys = [self.primary_key, *whole]
        elif self.auto_updatable:  # a join, say, shows the same key many times
            keys = [each.columns for each in self.unique_keys if each.required]
        return next((k for k in keys if k and all(self.columns[n].selectable for n in k)), ())

    def is_unique(self, columns: Collection[str]) -> bool:
        """Return whether a key is of one row by what PostgreSQL knows, not by a comment alone."""
        if self.has_children:
            return False
        return self.kind == "table" or (
            self.auto_updatable and any({*columns} == {*key} for key in self.view_keys)
        )

    def refers_once(self, key: ForeignKey) -> bool:
        """Return whether at most one row is known to refer to another by a foreign key."""
        return key.unique or any(
            set(unique.columns) <= set(key.columns) for unique in self.unique_keys
        )

    def column(self, name: str, path: str | None = None) -> Column:
        """
        Return the column of a name.

        Raises:
            UnknownName: There is none of that name, or it is hidden.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise UnknownName(
                "column", name, self.columns, f'relation "{self.name}"', path
            ) from None


@dataclass(frozen=True, slots=True)
class Argument:
    """
    An argument of a function, or a column of what it returns.

    Args:
        name: Empty if it has none.
        type: Its type's oid; of a variadic one that of the array.
        mode: Whether it is given, or comes back, or both.
        has_default: Whether a call may leave it out.
    """

    name: str
    type: int
    mode: Mode = "in"
    has_default: bool = False

    @property
    def given(self) -> bool:
        """Whether a caller gives it."""
        return self.mode in ("in", "inout", "variadic")


@dataclass(frozen=True, eq=False)
class Function:
    """
    A function or procedure that our role may execute.

    Args:
        schema: Of the function.
        name: Of the function; others may have the same one, with other arguments.
        arguments: In order, those that come back and the columns of a TABLE among them.
        result: The oid of the type of its result, or of each of them.
        many: Whether it returns a set.
        single: Whether its author expects one row of the set (ROWS 1).
        volatility: What it promises.
        procedure: Whether it is run by CALL.
        definer: Whether it runs with the rights of its owner.
        comment: From COMMENT ON, less the lines that speak to the service.
    """

    schema: str
    name: str
    arguments: tuple[Argument, ...]
    result: int
    many: bool = False
    single: bool = False
    volatility: Volatility = "volatile"
    procedure: bool = False
    definer: bool = False
    comment: str | None = None

    @cached_property
    def inputs(self) -> tuple[Argument, ...]:
        """What a caller gives."""
        return tuple(each for each in self.arguments if each.given)

    @cached_property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Names and type oids of the arguments that come back, named as PostgreSQL would."""
        back = [each for each in self.arguments if each.mode in ("out", "inout", "table")]
        return tuple((each.name or f"column{at}", each.type) for at, each in enumerate(back, 1))

    @property
    def names(self) -> frozenset[str]:
        """The names by which a caller can give arguments."""
        return frozenset(each.name for each in self.inputs if each.name)

    @property
    def unnamed(self) -> int:
        """How many arguments at least have to be given by position."""
        return max((at for at, each in enumerate(self.inputs, 1) if not each.name), default=0)

    @property
    def reads(self) -> bool:
        """Whether it promises to write nothing."""
        return self.volatility != "volatile" and not self.procedure


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
        hidden_fields: Composite types with hidden fields, by what stands for the names of all their
            fields: whether each field is shown.
        operators: Those that types of extensions and of one's own bring, by name and both types'
            oids: their schema. Whoever can put another one there could do worse.
        aggregates: The same of functions over rows, by name and type.
        partitions: Of each partition the schema and name of the table that is served.
        constraint_copies: Constraints and indexes that PostgreSQL has made for partitions, by
            schema, table and name: the name of what was declared.
        policies: Whether policies hide rows of anything in the database from our role.
        merge_returns: Whether MERGE gives back what it has written (PostgreSQL 17).

    Attributes:
        answers: Of look-ups that are `cached_per_catalog` (plan/cached_lookups).
    """

    version: int
    schemas: tuple[str, ...]
    relations: Mapping[QualifiedName, Relation]
    types: Mapping[int, Type]
    functions: Mapping[QualifiedName, tuple[Function, ...]] = field(default_factory=dict)
    hidden_fields: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)
    operators: Mapping[tuple[str, int, int], str] = field(default_factory=dict)
    aggregates: Mapping[tuple[str, int], str] = field(default_factory=dict)
    partitions: Mapping[QualifiedName, QualifiedName] = field(default_factory=dict)
    constraint_copies: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    policies: bool = False
    merge_returns: bool = False
    answers: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def types_by_name(self) -> Mapping[str, Type]:
        """Types by each of their spellings: as SQL has it, and in lower case, as in "int4"."""
        found: dict[str, Type] = {}
        named = [each for each in self.types.values() if each.kind != "pseudo"]
        for each in named:  # first, since app."Mood" and app.mood are one in lower case
            found.setdefault(each.sql, each)
        for each in named:
            if each.schema == "pg_catalog" or each.schema in self.schemas:
                found.setdefault(each.name.lower(), each)
            found.setdefault(each.sql.lower(), each)
            found.setdefault(f"{each.schema}.{each.name}".lower(), each)
        for alias, name in ALIASES.items():
            if name in found:
                found.setdefault(alias, found[name])
        return found

    @cached_property
    def castable(self) -> Mapping[str, Type]:
        """Types that a caller may cast to, by each of their spellings."""
        return {word: each for word, each in self.types_by_name.items() if self._is_castable(each)}

    def _is_castable(self, type: Type) -> bool:
        """
        Return whether a cast to a type reveals nothing but the value.

        PostgreSQL looks names up for `regclass` and its kin, the row type of a relation has the
        relation's name, and what such types are parts of does the same.
        """
        if type.schema == "information_schema":
            return False
        if type.kind == "base":
            return type.schema != "pg_catalog" or type.data_type.castable
        if type.row and (type.schema, type.name) not in self.relations:
            return False
        return all(self._is_castable(self.type(oid)) for oid in type.parts)

    def looks_up(self, type: Type) -> bool:
        """Return whether PostgreSQL looks names up to read the text of a type."""
        # `regclass` and its kin are read from names of objects, `aclitem` from names of roles.
        if type.schema == "pg_catalog" and type.kind == "base":
            return type.name.startswith("reg") or type.name == "aclitem"
        return any(self.looks_up(self.type(oid)) for oid in type.parts)

    @cached_property
    def _arrays(self) -> Mapping[int, Type]:
        return {each.element: each for each in self.types.values() if each.kind == "array"}

    @cached_property
    def referrers(self) -> Mapping[tuple[str, str], Sequence[tuple[Relation, ForeignKey]]]:
        """The foreign keys that refer to a relation, each with the relation that has it."""
        # Of all at once: who asks for one relation asks for the others, too.
        found: dict[tuple[str, str], list[tuple[Relation, ForeignKey]]] = {}
        for relation in self.relations.values():
            for key in (*relation.foreign_keys, *relation.view_foreign_keys):
                found.setdefault(key.target, []).append((relation, key))
        return found

    @property
    def empty_schemas(self) -> tuple[str, ...]:
        """The schemas of which nothing is served: empty, forbidden or misspelled."""
        filled = {home for home, _ in (*self.relations, *self.functions)}
        return tuple(schema for schema in self.schemas if schema not in filled)

    def relation(self, schema: str, name: str) -> Relation:
        """
        Return the relation of a name.

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
                else nearest(name, [each for home, each in self.relations if home == schema])
            )
            raise NoSuchProcedure(f'no relation "{name[:80]}" is served', hint=hint) from None

    def function(self, schema: str, name: str) -> tuple[Function, ...]:
        """
        Return the functions of a name, all overloads.

        Raises:
            NoSuchProcedure: There is none, or our role may not execute it.
        """
        try:
            return self.functions[schema, name]
        except KeyError:
            raise unknown_function(
                name, [each for home, each in self.functions if home == schema]
            ) from None

    def type(self, oid: int) -> Type:
        """Return the type of an oid; an unknown one is taken as text."""
        return self.types.get(oid) or self.types[TEXT]

    def type_named(self, name: str, path: str | None = None) -> Type:
        """
        Return a type by name, as a cast spells it; "[]" after it means its array.

        Raises:
            InvalidArgument: No type that may be cast to is called so.
        """
        word = " ".join(name.split())
        exact, array = (word[:-2].strip(), True) if word.endswith("[]") else (word, False)
        base, known = exact.lower(), self.castable
        found = known.get(exact) or known.get(base) or known.get(base.replace('"', ""))
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
        """Return the array type over a type, or None if the database has none."""
        return self._arrays.get(element.oid)

    def plain(self, type: Type) -> Type:
        """Return the type under a domain, or the type itself."""
        while type.kind == "domain":
            type = self.type(type.base)
        return type

    def key_of(self, relation: Relation, columns: Iterable[str]) -> UniqueKey | None:
        """Return the unique key over exactly these columns, in any order, or None."""
        wanted = frozenset(columns)
        return next((k for k in relation.unique_keys if frozenset(k.columns) == wanted), None)


def unknown_function(name: str, known: Iterable[str]) -> NoSuchProcedure:
    """Build the refusal of a function that does not exist."""
    return NoSuchProcedure(f'no function "{name[:80]}" is served', hint=nearest(name, list(known)))
