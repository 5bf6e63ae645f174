"""
The catalog: relations, columns, keys, types and functions of the database as frozen values, with look-ups.

`db/introspect` reads it; all other code looks names up here. Hidden relations and columns are not part of
it, so no code can reach them by mistake. A look-up of an unknown name raises, with the nearest known name
as the hint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Literal, TypeVar, TypeVarTuple, Unpack

from service.datatypes import ALIASES, DataType, FormName, data_type
from service.errors import InvalidArgument, NoSuchProcedure, UnknownName, nearest

NOWHERE = ""
"""The schema of rows that are treated as a relation but are none, such as those of a function."""
TEXT = 25
"""The oid of `text`, the same in every PostgreSQL (pg_type.dat)."""
QualifiedName = tuple[str, str]
"""A schema and a name in it."""

TypeKind = Literal["base", "enum", "composite", "domain", "range", "multirange", "array", "pseudo"]
RelationKind = Literal["table", "view", "materialized view", "foreign table", "groups"]
WriteKind = Literal["insert", "update", "delete"]
Mode = Literal["in", "out", "inout", "variadic", "table"]
Volatility = Literal["immutable", "stable", "volatile"]


@dataclass(frozen=True, slots=True)
class Type:
    """
    A data type.

    Args:
        oid: Its oid in this database.
        schema: The schema that contains it.
        name: Its `typname`, as in "int4".
        sql: Its name in a cast, without modifiers, as in "integer" or 'app."Mood"'.
        kind: The kind of type.
        category: PostgreSQL's one-letter category, as "N" for numbers.
        element: The oid of an array's element type, else 0.
        base: The oid of the type under a domain, or of the subtype of a range or multirange, else 0.
        labels: The values of an enum, in order.
        fields: The names and type oids of a composite's attributes. A hidden attribute keeps its place under
            the name "", which no attribute can have.
        unreadable_fields: The attributes of a relation's row type that the role has no right to read.
        delimiter: Separates the elements of an array of this type.
        comparable: Whether values can be sorted, by a default btree operator class.
        pattern: The oid of the right operand of the type's own operator `~`, as in ltree; 0 if it has none.
        row: Whether it is the row type of a relation.
        pure: Whether to read or write its values certainly leaves the session's state unchanged.
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
        """The oids of the types that it consists of."""
        return tuple(filter(None, (self.element, self.base, *(oid for _, oid in self.fields))))

    @property
    def data_type(self) -> DataType:
        """The row of the table of data types; for a domain use that of the type under it."""
        if self.kind in ("base", "pseudo"):
            return data_type(self.schema, self.name, self.category)
        return data_type("", "")

    @property
    def form(self) -> FormName:
        """The form of its values on the wire, unless they consist of other values."""
        return self.data_type.form


@dataclass(frozen=True, slots=True)
class Column:
    """
    A column of a relation.

    Args:
        name: Its name.
        type: The oid of its type.
        declared: The type with modifiers, as in "character varying(255)".
        nullable: Whether it and its domain allow NULL.
        default: The SQL expression of its default, or of its domain's; None if there is none.
        identity: "a" for ALWAYS, "d" for BY DEFAULT, "" for no identity column.
        generated: "s" for STORED, "v" for VIRTUAL, "" for no generated column.
        comment: Its comment, without the lines that are directives for the service.
        max_length: Maximum length in characters; None if the type has no limit.
        selectable, insertable, updatable: Whether the role may, and a view can, do that.
        loose: Whether its collation is nondeterministic, so that different texts can be equal.
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
        """Whether only the database sets the value, so that a write can only use DEFAULT."""
        return bool(self.generated) or self.identity == "a"

    @property
    def logged(self) -> bool:
        """Whether the log of changes of its relation has its values; virtual ones are null there."""
        return self.generated != "v"

    @property
    def has_default(self) -> bool:
        """Whether the database sets it in a row that is created without it."""
        return bool(self.default or self.identity or self.generated)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """
    A foreign key, or one that a view has through the columns of a table that it shows.

    Args:
        name: The name of the constraint.
        columns: The referencing columns.
        target: The referenced relation, as schema and name.
        target_columns: The referenced columns.
        unique: Whether at most one row is known to refer to another one.
        names_embeds: Whether an embed may be named by the constraint or its columns.
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
    A primary key, a unique constraint, or a unique index on columns of all rows.

    Args:
        name: The name of the constraint or index.
        columns: The columns in the order of the key.
        arbiter: Whether it can be the conflict target of ON CONFLICT: not if it is deferrable, or WITHOUT
            OVERLAPS.
        nulls: Whether it is NULLS NOT DISTINCT.
        required: For a view, whether the key belongs to its only table, and is never null.
    """

    name: str
    columns: tuple[str, ...]
    arbiter: bool = True
    nulls: bool = False
    required: bool = False


@dataclass(frozen=True, slots=True)
class CatalogSQL:
    """SQL text that PostgreSQL has generated from its catalog; only introspection creates it."""

    text: str


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """
    A uniqueness rule that is no key: a partial unique index, one on expressions, an exclusion constraint, or
    an index that is not valid yet.

    Args:
        name: The name of the constraint or index.
        columns: The columns that are index columns by themselves.
        all_columns: Those columns, and the columns in its expressions.
        target: The conflict target in ON CONFLICT.
        partial: Whether the index is partial.
        nulls: Whether rows that are null in those columns can conflict (NULLS NOT DISTINCT).
        only_ignores: Whether ON CONFLICT can only DO NOTHING.
        fault: Why it cannot be the conflict target; "" if it can.
    """

    name: str
    columns: tuple[str, ...]
    all_columns: tuple[str, ...]
    target: CatalogSQL
    partial: bool = False
    nulls: bool = False
    only_ignores: bool = False
    fault: str = ""


# Hashed by identity, because mappings have no hash and relations and functions are cache keys.
@dataclass(frozen=True, eq=False)
class Relation:
    """
    A served table, view, materialized view or foreign table.

    Args:
        schema: Its schema.
        name: Its name.
        kind: The kind of relation; "groups" stands for the groups of an aggregate, which no schema has.
        columns: The columns by name, in the order of the table.
        primary_key: The columns of its primary key, or of a view's key; empty if there is none.
        unique_keys: All keys, the primary key first.
        foreign_keys: Its foreign keys.
        view_foreign_keys: Further ones, derived from the columns that views show: of views, or to views.
        view_keys: The unique keys of tables that a view shows completely; a join may repeat their values.
        claimed_key: The names after `@key` in a view's comment, even if it has no such columns.
        unique_indexes: Further uniqueness rules.
        constraints: The columns of constraints and unique indexes, by name; only of served columns.
        comment: Its comment, without the lines that are directives for the service.
        row_security: Whether row-level security is enabled.
        estimable: Whether the role may see the planner's estimate of its rows.
        before_triggers: The kinds of writes with triggers that may change rows before they are checked.
        changed_by_triggers: The kinds of writes after which triggers, of the relation or of a view's table,
            may have changed the written rows.
        cascading_columns: The columns whose changes cascade to other rows through foreign keys.
        has_children: Whether tables inherit from it. Their rows belong to it as well, and their keys can
            repeat the relation's.
        side_effects: Whether a write can have effects besides the rows that it writes, even if it writes
            none: by triggers, rules, volatile functions in policies, or inside a view or foreign table.
        auto_updatable: Whether PostgreSQL itself writes it, and not the triggers of a view.
        has_rules: Whether it has rules for writes.
        accepted_writes: The kinds of writes that are possible at all; for a view by itself or by a trigger.
        selectable, insertable, updatable, deletable: Whether the role may do that.
        readable: Whether the role may read all columns, including those that are not served.
        pure_reads, pure_writes: Whether a read or a write certainly leaves the session's state unchanged.
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
        The columns of a key that finds one row exactly; empty if there is none.

        PostgreSQL enforces it, it is never null, and the role may read it.
        """
        # Not the key that a comment declares, by which a write could find rows that the call did not name.
        keys: list[tuple[str, ...]] = []
        if self.has_children:
            return ()
        if self.kind == "table":
            unique = (each.columns for each in self.unique_keys)
            never_null = (k for k in unique if not any(self.columns[name].nullable for name in k))
            keys = [self.primary_key, *never_null]
        elif self.auto_updatable:  # other views, such as joins, can show a key several times
            keys = [each.columns for each in self.unique_keys if each.required]
        return next((k for k in keys if k and all(self.columns[n].selectable for n in k)), ())

    def is_unique(self, columns: Collection[str]) -> bool:
        """Return whether PostgreSQL guarantees that a key is of one row; a comment does not count."""
        if self.has_children:  # no index spans a table and those that inherit from it
            return False
        return self.kind == "table" or (
            self.auto_updatable and any({*columns} == {*key} for key in self.view_keys)
        )

    def refers_once(self, key: ForeignKey) -> bool:
        """Return whether at most one row is known to refer to another by a foreign key."""
        # A unique key over some of its columns is enough.
        return key.unique or any(
            set(unique.columns) <= set(key.columns) for unique in self.unique_keys
        )

    def column(self, name: str, path: str | None = None) -> Column:
        """
        Return the column of a name.

        Raises:
            UnknownName: There is no such column, or it is hidden.
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
    An argument of a function, or a column of its result.

    Args:
        name: Its name; "" if it has none.
        type: The oid of its type; for a variadic argument that of the array.
        mode: Its argmode: input, output or both.
        has_default: Whether a call may omit it.
    """

    name: str
    type: int
    mode: Mode = "in"
    has_default: bool = False

    @property
    def given(self) -> bool:
        """Whether it is an input argument."""
        return self.mode in ("in", "inout", "variadic")


@dataclass(frozen=True, eq=False)
class Function:
    """
    A function or procedure that the role may execute.

    Args:
        schema: Its schema.
        name: Its name, which overloads share.
        arguments: All arguments in order, including outputs and the columns of RETURNS TABLE.
        result: The oid of its result type, or of the rows of a set.
        many: Whether it returns a set.
        single: Whether the set is declared to have one row (ROWS 1).
        volatility: Its declared volatility.
        procedure: Whether it is a procedure, which CALL runs.
        definer: Whether it is SECURITY DEFINER.
        comment: Its comment, without the lines that are directives for the service.
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
        """The input arguments."""
        return tuple(each for each in self.arguments if each.given)

    @cached_property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Names and type oids of the output arguments; unnamed ones get PostgreSQL's names."""
        back = [each for each in self.arguments if each.mode in ("out", "inout", "table")]
        return tuple((each.name or f"column{at}", each.type) for at, each in enumerate(back, 1))

    @property
    def names(self) -> frozenset[str]:
        """The names of the input arguments."""
        return frozenset(each.name for each in self.inputs if each.name)

    @property
    def unnamed(self) -> int:
        """The minimum number of arguments that have to be given by position."""
        return max((at for at, each in enumerate(self.inputs, 1) if not each.name), default=0)

    @property
    def reads(self) -> bool:
        """Whether it is declared not to write: STABLE or IMMUTABLE."""
        return self.volatility != "volatile" and not self.procedure


@dataclass(frozen=True, eq=False)
class Catalog:
    """
    Everything that is served, as the database had it at one point in time.

    Args:
        version: The number of the load; plans are cached by it.
        schemas: The served schemas; URIs omit the first one.
        relations: The relations by schema and name.
        types: The types by oid.
        functions: The overloads of each function by schema and name.
        hidden_fields: For composite types with hidden fields, whether each field is shown, by the hash of
            the names of all fields (`db/codec`).
        operators: The schemas of operators of extensions and user-defined types, by name and both types'
            oids. Whoever may create operators in such a schema could do worse.
        aggregates: The schemas of such aggregate functions, by name and type.
        partitions: The schema and name of the served table of each partition.
        constraint_copies: The declared name of each constraint or index that PostgreSQL has created for a
            partition, by schema, table and name.
        policies: Whether row-level security policies apply to the role anywhere in the database.
        merge_returns: Whether MERGE supports RETURNING (PostgreSQL 17).

    Attributes:
        answers: The cache of `cached_per_catalog` look-ups.
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
        """Types by each of their names: the SQL name, and lower-case names, as in "int4"."""
        found: dict[str, Type] = {}
        named = [each for each in self.types.values() if each.kind != "pseudo"]
        # Exact names first, since app."Mood" and app.mood are equal in lower case.
        for each in named:
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
        """Types that a caller may cast to, by each of their names."""
        return {word: each for word, each in self.types_by_name.items() if self._is_castable(each)}

    def _is_castable(self, type: Type) -> bool:
        """
        Return whether a cast to a type reveals nothing but the value.

        To cast to `regclass` and similar types PostgreSQL looks names up, and a row type has the name of its
        relation. The same holds for types that contain such types.
        """
        if type.schema == "information_schema":
            return False
        if type.kind == "base":
            return type.schema != "pg_catalog" or type.data_type.castable
        if type.row and (type.schema, type.name) not in self.relations:
            return False
        return all(self._is_castable(self.type(oid)) for oid in type.parts)

    def looks_up(self, type: Type) -> bool:
        """Return whether the input function of a type looks names up in the catalog."""
        # `regclass` and similar types take names of objects, `aclitem` takes names of roles.
        if type.schema == "pg_catalog" and type.kind == "base":
            return type.name.startswith("reg") or type.name == "aclitem"
        return any(self.looks_up(self.type(oid)) for oid in type.parts)

    @cached_property
    def _arrays(self) -> Mapping[int, Type]:
        return {each.element: each for each in self.types.values() if each.kind == "array"}

    @cached_property
    def referrers(self) -> Mapping[tuple[str, str], Sequence[tuple[Relation, ForeignKey]]]:
        """The foreign keys that refer to a relation, each with the relation that has it."""
        # Built for all relations at once, because they are all looked up sooner or later.
        found: dict[tuple[str, str], list[tuple[Relation, ForeignKey]]] = {}
        for relation in self.relations.values():
            for key in (*relation.foreign_keys, *relation.view_foreign_keys):
                found.setdefault(key.target, []).append((relation, key))
        return found

    @property
    def empty_schemas(self) -> tuple[str, ...]:
        """The schemas without any served object: empty, forbidden or misspelled ones."""
        filled = {home for home, _ in (*self.relations, *self.functions)}
        return tuple(schema for schema in self.schemas if schema not in filled)

    def relation(self, schema: str, name: str) -> Relation:
        """
        Return the relation of a name.

        Raises:
            NoSuchProcedure: There is no such relation, or it is not served or hidden.
        """
        try:
            return self.relations[schema, name]
        except KeyError:
            elsewhere = [home for home in self.schemas if (home, name) in self.relations]
            beside = [each for home, each in self.relations if home == schema]
            homes = [] if schema in self.schemas else sorted({home for home, _ in self.relations})
            hint = nearest(name, beside) or nearest(schema, homes)
            if elsewhere:
                hint = f'did you mean "{elsewhere[0]}.{name}"?'
            raise NoSuchProcedure(f'no relation "{name[:80]}" is served', hint=hint) from None

    def function(self, schema: str, name: str) -> tuple[Function, ...]:
        """
        Return all overloads of a function.

        Raises:
            NoSuchProcedure: There is no such function, or the role may not execute it.
        """
        try:
            return self.functions[schema, name]
        except KeyError:
            raise unknown_function(
                name, [each for home, each in self.functions if home == schema]
            ) from None

    def type(self, oid: int) -> Type:
        """Return the type of an oid; `text` if the oid is unknown."""
        return self.types.get(oid) or self.types[TEXT]

    def type_named(self, name: str, path: str | None = None) -> Type:
        """
        Return a type by its name in a cast; "[]" after the name means its array.

        Raises:
            InvalidArgument: No type with that name may be cast to.
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
        """Return the array type of an element type; None if the database has none."""
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


Key = TypeVarTuple("Key")
Found = TypeVar("Found")


def cached_per_catalog(
    find: Callable[[Catalog, Unpack[Key]], Found],
) -> Callable[[Catalog, Unpack[Key]], Found]:
    """Return a lookup that computes each answer once for each catalog."""

    @wraps(find)
    def found(catalog: Catalog, *key: *Key) -> Found:
        # Cached in the catalog, so that it is freed with it. An answer must not refer to the catalog: the
        # cycle would never be freed, because objects from the start are frozen out of garbage collection.
        if (find, key) not in catalog.answers:
            catalog.answers[find, key] = find(catalog, *key)
        answer: Found = catalog.answers[find, key]
        return answer

    return found
