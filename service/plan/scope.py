"""
Resolve names in a relation: its columns, steps into their JSON, and relationships.

A composite value may have hidden fields. The codec removes them from results. Any other use of the value (a
cast, a comparison, a sort key) would reveal them, so all other uses are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from service.catalog import NOWHERE, Catalog, Column, Function, Relation, Type, cached_per_catalog
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument, UnknownName, clip, nearest
from service.plan.joins import Pairs, computed_columns, is_related, related, resolve_computed
from service.plan.plans import (
    PG_CATALOG,
    Applied,
    Bound,
    Equals,
    Expression,
    JunctionJoin,
    Link,
    Operator,
    Output,
    PlannedArgument,
    PlannedEmbed,
    PlannedMeasure,
    PlannedStep,
)
from service.request.filters import OPERATORS
from service.request.requests import Embed, Form, Operand, Reference
from service.request.select_list import unquoted_hint
from service.request.synonyms import column_hint


@cached_per_catalog
def has_hidden_field(catalog: Catalog, oid: int) -> bool:
    """Return whether values of a type have a hidden field, at any depth."""
    type = catalog.type(oid)
    # The catalog has a hidden field at its position, with an empty name.
    if any(not name for name, _ in type.fields):
        return True
    return any(has_hidden_field(catalog, part) for part in type.parts)


def without_hidden_fields(catalog: Catalog, value: Expression) -> Expression:
    """Return a value for uses beyond returning it; raise InvalidArgument if it has a hidden field."""
    if has_hidden_field(catalog, value.type.oid):
        raise _hidden(value.column.name, value.path)
    return value


def check_steps(catalog: Catalog, type: Type, reference: Reference) -> None:
    """Check steps into a value: refuse unknown and hidden fields, as far as the type is known."""
    for step in reference.steps:
        type = catalog.plain(type)
        if type.kind == "array":
            if step.index:  # an element, or a dimension of the array
                continue
            type = catalog.plain(catalog.type(type.element))
        if type.kind != "composite":
            return
        fields = {name: oid for name, oid in type.fields if name}
        if step.index or step.key not in fields:
            known = [name for name in fields if name not in type.unreadable_fields]
            raise UnknownName("field", step.key, known, f"type {type.name}", reference.path)
        type = catalog.type(fields[step.key])
    if has_hidden_field(catalog, type.oid):
        raise _hidden(reference.name, reference.path)


def refuse_hidden_fields(
    catalog: Catalog, outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = ()
) -> None:
    """Refuse hidden fields in outputs that are not just returned, or that the codec does not decode."""
    for output in outputs:
        without_hidden_fields(catalog, output.expression)
    for embed in embeds:
        refuse_hidden_fields(catalog, embed.outputs, embed.embeds)


def as_json(
    catalog: Catalog, form: Form, outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = ()
) -> bool:
    """Return whether the form is JSON text; refuse hidden fields then, since no codec removes them."""
    if form == "json":
        refuse_hidden_fields(catalog, outputs, embeds)
    return form == "json"


def _hidden(column: str, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'"{column}" has fields that are hidden, so that it can be selected, and no more',
        path=path or None,
        column=column,
        hint=f'a field of it goes anywhere, as in "{column}->field"',
    )


TIMES = frozenset(["date", "timestamp", "timestamptz", "interval"])
"""Types that `trunc` applies to."""


class Scope:
    """
    The namespace of one relation in a call.

    Args:
        catalog: Source of types and relationships.
        relation: Source of columns.
        embeds: Embeds of the call, which names in filters and sort keys may mean.
        source: Alias of the relation.
        aliases: Numbers for further aliases of the statement.
    """

    def __init__(
        self,
        catalog: Catalog,
        relation: Relation,
        embeds: Iterable[Embed] = (),
        source: str = "t",
        aliases: Iterator[int] | None = None,
    ) -> None:
        self.catalog = catalog
        self.relation = relation
        self.source = source
        self._embeds = {embed.name: embed for embed in embeds}
        self._aliases = aliases or count(1)

    def embed(self, name: str, path: str) -> Embed:
        """Return the call's embed of a name, or the default one if the call has none."""
        return self._embeds.get(name) or Embed(name, path)

    def link(self, embed: Embed) -> tuple[Link, Scope, bool]:
        """
        Return the link to an embed's related rows, their scope, and whether there may be several rows.

        Raises:
            InvalidArgument: There is no such relationship, or more than one.
        """
        found = related(self.catalog, self.relation, embed)
        source, junction = f"t{next(self._aliases)}", None
        if found.junction is not None:
            between = found.junction.relation
            junction = JunctionJoin(
                between,
                f"t{next(self._aliases)}",
                self._equals(self.relation, between, found.junction.outer_pairs),
                self._equals(between, found.target, found.junction.related_pairs),
            )
        scope = Scope(self.catalog, found.target, embed.embeds, source, self._aliases)
        pairs = self._equals(self.relation, found.target, found.pairs)
        link = Link(found.target, source, self.source, pairs, junction, found.function)
        return link, scope, found.many

    def _equals(self, left: Relation, right: Relation, pairs: Pairs) -> Equals:
        """Return pairs of columns of two relations with the operators that compare them."""
        types = self.catalog.type
        return tuple(
            (
                one,
                other,
                self.operator("=", types(left.columns[one].type), types(right.columns[other].type)),
            )
            for one, other in pairs
        )

    def operator(self, name: str, left: Type, right: Type) -> Operator:
        """Return an operator between types, in the schema of their extension or in pg_catalog."""
        plain = self.catalog.plain
        key = (name, plain(left).oid, plain(right).oid)
        return Operator(name, self.catalog.operators.get(key, PG_CATALOG))

    def has_column(self, name: str) -> bool:
        """Return whether a name is a column's or a computed column's."""
        relation = self.relation
        return name in relation.columns or name in computed_columns(self.catalog, relation)

    def has_relationship(self, name: str) -> bool:
        """Return whether a name that is not a column's is a relationship's."""
        return is_related(self.catalog, self.relation, self.embed(name, ""))

    def bound(self, operand: Operand, type: Type, raw: bool = False) -> Bound:
        """Return a parameter of a type."""
        return Bound(operand.slot, type, operand.path, raw=raw)

    def number(self, operand: Operand | None) -> Bound | None:
        """Return the parameter of a limit or an offset; None without one."""
        return self.bound(operand, self.builtin("int8")) if operand else None

    def equals(self, names: Iterable[str]) -> tuple[Operator, ...]:
        """Return the equality operator of each column."""
        types = [self.catalog.type(self.relation.columns[name].type) for name in names]
        return tuple(self.operator("=", type, type) for type in types)

    def builtin(self, name: str) -> Type:
        """Return a built-in type."""
        return self.catalog.types_by_name[name]

    def expression(self, reference: Reference) -> Expression:
        """Return a column of the row itself, for any use."""
        return without_hidden_fields(self.catalog, self.value(reference))

    def value(self, reference: Reference) -> Expression:
        """Return a column of the row itself, to be returned as it is; it may have hidden fields."""
        column, function = self._column(reference)
        arguments = () if function is None else self._arguments(function, reference)
        if reference.steps:
            found = self._stepped(column, reference)
        else:
            found = self.of_column(column, reference.path)
        if function is not None:
            found = replace(found, function=function, arguments=arguments)
        if reference.cast:
            found = self._cast(found, reference, reference.cast)
        if reference.trunc:
            found = self._date_trunc(found, reference, reference.trunc)
        return self._length(found, reference) if reference.length else found

    def _date_trunc(self, value: Expression, reference: Reference, unit: str) -> Expression:
        type, zone = value.type, reference.zone
        if type.name not in TIMES or type.schema != PG_CATALOG:
            raise InvalidArgument(
                f'"{value.column.name}" is {type.sql}: dates, timestamps and intervals are cut',
                path=reference.path,
                column=value.column.name,
            )
        if type.name == "timestamptz":
            # Explicitly in UTC: the session's time zone is unrelated to the caller.
            name, operand = (zone.name, zone.operand) if zone else ("UTC", None)
            bound = self.bound(operand, self.builtin("text")) if operand else None
            return value.apply(Applied("date_trunc", unit, name, bound), type)
        if zone is not None:
            raise InvalidArgument(
                f"a {type.sql} is in no time zone", path=zone.operand.path, column=value.column.name
            )
        if type.name == "date":
            timestamp = value.cast(self.builtin("timestamp"))
            return timestamp.apply(Applied("date_trunc", unit), timestamp.type).cast(type)
        return value.apply(Applied("date_trunc", unit), type)

    def _length(self, value: Expression, reference: Reference) -> Expression:
        if value.type.kind == "array":
            without_hidden_fields(self.catalog, value)
            return value.apply(Applied("cardinality"), self.builtin("int4"))
        if value.type.category == "S":
            # bpchar is padded with blanks, and citext has no length().
            if value.type.name != "text":
                value = value.cast(self.builtin("text"))
            return value.apply(Applied("length"), self.builtin("int4"))
        raise InvalidArgument(
            f'"{value.column.name}" is {value.type.sql}: text and arrays have a length',
            path=reference.path,
            column=value.column.name,
        )

    def _cast(self, value: Expression, reference: Reference, name: str) -> Expression:
        without_hidden_fields(self.catalog, value)
        place = reference.place or reference.path
        type = self.catalog.type_named(name, place)
        # Nullable: JSON's null is a value, but cast to another type it becomes NULL.
        return replace(value.cast(type, self.catalog.plain(type)), nullable=True, path=place)

    def _column(self, reference: Reference) -> tuple[Column, Function | None]:
        """Return a column, and its function if it is a computed column."""
        name = reference.name
        if name in self.relation.columns:
            if reference.args:
                raise InvalidArgument(
                    f'"{name}" is a column, and takes no arguments', path=reference.args[0][1].path
                )
            return self.relation.columns[name], None
        computed = computed_columns(self.catalog, self.relation)
        if name in computed:
            found = resolve_computed(self.catalog, computed[name], reference)
            return found.column, found.function
        known = [*self.relation.columns, *computed]
        kind, of = "column", f'relation "{self.relation.name}"'
        hint = column_hint(name, known, OPERATORS) or unquoted_hint(name, known)
        if self.relation.kind == "groups":
            kind, of = "measure or group", self.relation.name
            hint = hint or nearest(name, known) or f"one of {', '.join(map(clip, known))}"
        raise UnknownName(kind, name, known, of, reference.path, hint)

    def _arguments(self, function: Function, reference: Reference) -> tuple[PlannedArgument, ...]:
        types = {each.name: self.catalog.type(each.type) for each in function.inputs[1:]}
        return tuple(
            PlannedArgument(name, self.bound(operand, types[name]))
            for name, operand in reference.args
        )

    def of_column(self, column: Column, path: str = "") -> Expression:
        """Return a column as an expression."""
        return Expression(
            column,
            self.catalog.plain(self.catalog.type(column.type)),
            nullable=column.nullable,
            path=path,
            source=self.source,
        )

    def _stepped(self, column: Column, reference: Reference) -> Expression:
        type = self.catalog.plain(self.catalog.type(column.type))
        if not (type.form in DOCUMENTS or type.kind in {"array", "composite"}):
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}: "->" steps into json, jsonb, arrays'
                " and composites",
                path=reference.path,
                column=column.name,
            )
        check_steps(self.catalog, type, reference)
        key_types = {True: self.builtin("int4"), False: self.builtin("text")}
        steps = tuple(
            PlannedStep(self.bound(step.operand, key_types[step.index]), step.key, step.text)
            for step in reference.steps
        )
        return replace(
            self.of_column(column, reference.path),
            type=self.builtin("text" if steps[-1].text else "jsonb"),
            as_json=type.name != "jsonb",
            steps=steps,
            nullable=True,
        )


class MeasuredScope(Scope):
    """
    The namespace of an embed's measures over related rows, which are values of the outer row.

    Args:
        outer: Scope of the outer row.
        link: Link to the related rows.
        measures: The measures, by name.
    """

    def __init__(self, outer: Scope, link: Link, measures: Mapping[str, PlannedMeasure]) -> None:
        types = {name: measure.type for name, measure in measures.items()}
        super().__init__(outer.catalog, groups_of(link.relation, types), source=outer.source)
        self._link = link
        self._measures = measures

    def of_column(self, column: Column, path: str = "") -> Expression:
        """Return a measure as an expression."""
        found = super().of_column(column, path)
        return replace(found, links=(self._link,), measure=self._measures[column.name])


def groups_of(relation: Relation, types: Mapping[str, Type]) -> Relation:
    """Return a relation that stands for groups of rows, with columns of these names and types."""
    columns = {name: Column(name, type.oid, type.sql) for name, type in types.items()}
    # In no schema, so that nothing about it is cached: it is another relation in each call.
    return Relation(NOWHERE, f'the aggregate of "{relation.name}"', "groups", columns)
