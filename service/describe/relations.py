"""
Describe relations and functions: columns, keys, parameters, and the arguments and results of each verb.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from service.catalog import Argument, Catalog, Column, Function, Relation, Type
from service.describe.grammar import WHOLE
from service.describe.json_schema import (
    NULL,
    Definitions,
    Schema,
    any_of,
    array,
    changed,
    given,
    limited,
    literal,
    new,
    record,
    reference,
    schema_of,
    value,
)
from service.describe.verb import FORM, TIMEOUT, WRITES, Verb, forms
from service.plan.call_plan import answer_kind, result_columns
from service.plan.joins import ComputedColumn, Join, computed_columns, nested_by, relationships
from service.plan.operators import computing
from service.request.call_request import ARGS
from service.request.names import FN, RESERVED, encode
from service.request.select_list import quoted_item

OPTIONS: dict[str, Schema] = {**TIMEOUT, **FORM, **WRITES, "max_affected": WHOLE}
"""Options of a call of a function."""

Make = Callable[[Definitions, Type, bool], Schema]
"""Builds the schema of what may be sent for a column, given whether it is nullable."""

LONGEST = 1000
"""Characters: a larger length limit is not described by a pattern."""


def served_name(catalog: Catalog, relation: Relation) -> str:
    """Return a relation's name in URIs: short in the first schema, unless it is reserved."""
    name = encode(relation.name)
    if relation.schema == catalog.schemas[0] and relation.name not in RESERVED:
        return name
    return f"{encode(relation.schema)}.{name}"


def function_name(catalog: Catalog, home: tuple[str, str]) -> str:
    """Return a function's name in URIs."""
    schema, name = home
    before = "" if schema == catalog.schemas[0] else f"{encode(schema)}."
    return f"{before}{FN}.{encode(name)}"


def verbs_of(relation: Relation, verbs: Mapping[str, Verb]) -> list[str]:
    """Return the verbs that a relation has and that the role may use."""
    allowed = {
        "select": relation.selectable,
        "insert": relation.insertable,
        "update": relation.updatable,
        "delete": relation.deletable,
    }
    return [
        name
        for name, verb in verbs.items()
        if all(allowed[right] for right in verb.rights) and verb.fits(relation)
    ]


def may_be_described(catalog: Catalog, function: Function) -> bool:
    """Return whether the role may see the row types that a function takes and returns."""
    # EXECUTE is granted to PUBLIC by default, and a described function would reveal the columns of tables
    # that the role may not read. A SECURITY DEFINER function returns such rows to it anyway.
    return function.definer or all(
        _is_known(catalog, oid) for oid in (function.result, *(a.type for a in function.arguments))
    )


def _is_known(catalog: Catalog, oid: int) -> bool:
    """Return whether the role may read some field of a composite type; True for all other types."""
    type = catalog.type(oid)
    while type.element or type.base:
        type = catalog.type(type.element or type.base)
    names = {name for name, _ in type.fields if name}
    return not names or not names <= type.unreadable_fields


def _shown(thing: object, *names: str) -> dict[str, Any]:
    """Return attributes of an object of the catalog by name, tuples as lists."""
    found = {name: getattr(thing, name) for name in names}
    return {name: list(it) if isinstance(it, tuple) else it for name, it in found.items()}


class DescribedRows(ABC):
    """
    Rows of one kind, with their shared parts of the document: `row.<name>`, `rows.<name>`.

    The method of a part's name builds it.

    Args:
        defs: Shared parts of the document.
        name: Name of the relation in URIs, or of the function with its index among the overloads.
    """

    prefix: ClassVar[str] = ""
    """Prefix of a verb's name in the names of parts that all such rows share."""

    def __init__(self, defs: Definitions, name: str) -> None:
        self.defs = defs
        self.catalog = defs.catalog
        self.name = name

    @abstractmethod
    def row(self) -> Schema:
        """Build the schema of a row as it is read."""

    def rows(self) -> Schema:
        """Build the schema of several rows."""
        return array(self.part("row"))

    def got(self) -> Schema:
        """Build the schema of the rows of several keys."""
        return array(any_of(self.part("row"), NULL))

    def part(self, kind: str) -> Any:
        """Return a reference to a part, by its name in the verb table."""
        if kind == "null":
            return NULL
        if kind in ("page", "written"):
            return {**reference(kind), "properties": {"rows": self.part("rows")}}
        return self.defs.refer(f"{kind}.{self.name}", getattr(self, kind))

    def described(
        self, verb: Verb, takes: Mapping[str, Any], required: Iterable[str] = ()
    ) -> dict[str, Any]:
        """
        Describe a verb on these rows: its arguments, result and errors.

        Args:
            verb: The verb.
            takes: Schemas of the arguments that depend on the rows.
            required: Further required arguments.
        """
        # Keywords beside a $ref (allowed since 2019-09) describe what is particular to these rows. The rest
        # of a verb is in the document once, so that the document of a large database fits into one result.
        name = f"{self.prefix}{verb.name}"
        own = {"properties": takes, "required": required}
        shared = verb.result if "$ref" in verb.result else reference(f"result.{verb.name}")
        found = {
            "arguments": {
                **reference(f"arguments.{name}"),
                **{key: each for key, each in own.items() if each},
            },
            "result": self._answer(verb.answers, shared),
            "errors": reference(f"errors.{name}"),
        }
        if verb.progress is not None:
            found["progress"] = self._answer(verb.sends, reference(f"progress.{verb.name}"))
        return found

    def _answer(self, parts: Iterable[str], shared: Schema) -> Schema:
        """Return the schema of a result, with the default form first."""
        usual = [self.part(each) for each in parts]
        return any_of(*usual, shared) if usual else shared


def described_functions(
    defs: Definitions, name: str, overloads: Sequence[Function], verbs: Mapping[str, Verb]
) -> list[dict[str, Any]]:
    """Describe the overloads of a function, which has this name in URIs."""
    # Arguments choose the overload, so the name of any overload's parameter is not an option in others.
    names = frozenset(each for function in overloads for each in function.names)
    return [
        _FunctionRows(defs, function, f"{name}.{at}", names).function(verbs)
        for at, function in enumerate(overloads)
    ]


class _FunctionRows(DescribedRows):
    """
    A function, and the rows that it returns.

    Args:
        defs: Shared parts of the document.
        function: The function.
        name: Its name in URIs, with its index among the overloads.
        names: Names of the parameters of all overloads.
    """

    prefix = "fn."

    def __init__(
        self, defs: Definitions, function: Function, name: str, names: frozenset[str]
    ) -> None:
        super().__init__(defs, name)
        self._function = function
        self._names = names
        self._columns = result_columns(defs.catalog, function)
        self._kind = answer_kind(defs.catalog, function)
        self._by_name = {each.name: self._given(each) for each in function.inputs if each.name}
        first = function.inputs[: function.unnamed]
        needed = [at for at, each in enumerate(first, 1) if not (each.name or each.has_default)]
        self._listed = limited(
            list,
            **({"minItems": needed[-1]} if needed else {}),
            maxItems=len(first),
            **({"prefixItems": [self._given(each) for each in first]} if first else {}),
        )

    def function(self, verbs: Mapping[str, Verb]) -> dict[str, Any]:
        """Describe the function, and the verbs on its rows."""
        function = self._function
        has_verbs = self._columns is not None and not function.procedure
        needed = [] if all(each.has_default for each in function.inputs) else [ARGS]
        args = any_of(self.part("args"), self._listed, *([] if needed else [NULL]))
        return {
            **_shown(function, "schema", "name"),
            "kind": "procedure" if function.procedure else "function",
            **_shown(function, "comment", "volatility"),
            "parameters": [described_parameter(self.catalog, each) for each in function.inputs],
            "returns": {"type": self.catalog.type(function.result).sql, "many": function.many},
            "arguments": self._arguments(),
            "result": self._result(),
            "errors": reference("errors.fn"),
            "verbs": {
                name: self.described(verb, {ARGS: args}, needed)
                for name, verb in verbs.items()
                if has_verbs and verb.on_functions
            },
        }

    def args(self) -> Schema:
        """Build the schema of the arguments by name."""
        inputs = self._function.inputs
        return record(self._by_name, [at.name for at in inputs if at.name and not at.has_default])

    def _given(self, argument: Argument) -> Schema:
        return given(self.defs, self.catalog.type(argument.type), nullable=True)

    def _arguments(self) -> Schema:
        """Return the schema of a call's keywords; parameters without a name are in the list `args`."""
        inputs, unnamed = self._function.inputs, self._function.unnamed
        # Without a result there are no rows to count.
        uncounted = self._function.procedure or self._kind == "nothing"
        options = {**OPTIONS, "max_affected": NULL} if uncounted else OPTIONS
        plain = {name: each for name, each in options.items() if name not in self._names}
        plain |= self._by_name
        needed = [each.name for each in inputs[unnamed:] if not each.has_default]
        if ARGS not in self._names:
            plain[ARGS] = self._listed if unnamed else NULL
            needed += [] if all(each.has_default for each in inputs[:unnamed]) else [ARGS]
        if unnamed:
            return record(plain, needed)
        # With all arguments in `args`, a keyword is an option even if a parameter has the same name.
        return any_of(record(plain, needed), record({**options, ARGS: self.part("args")}, [ARGS]))

    def _result(self) -> Schema:
        """Return the schema of a call's result."""
        if self._kind == "nothing":
            return any_of(NULL, "text")
        if self._columns is None:
            result = value(self.defs, self.catalog.type(self._function.result), nullable=True)
            return any_of(array(result) if self._kind == "values" else result, "text")
        usual = {"rows": ["rows"], "composite": ["row", "null"]}.get(self._kind, ["row"])
        return forms(*map(self.part, usual))

    def row(self) -> Schema:
        """Build the schema of a row of its result."""
        function, withheld = self._function, frozenset[str]()
        if not (function.outputs or function.definer):
            withheld = self.catalog.plain(self.catalog.type(function.result)).unreadable_fields
        columns = {
            name: value(self.defs, self.catalog.type(column.type), nullable=True)
            for name, column in (self._columns or {}).items()
            if name not in withheld
        }
        # Fields that the role may not read may still be in the row, but are not named here.
        return record(columns, columns, closed=not withheld)


def described_parameter(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    """Describe a parameter of a function."""
    type, variadic = catalog.type(argument.type), argument.mode == "variadic"
    schema = schema_of(catalog, type, nullable=not variadic)
    if catalog.plain(type).form == "decimal":  # exact as a string, and taken as a number too
        schema = {"type": ["string", "number", "null"]}
    return {
        "name": argument.name or None,
        "type": type.sql,
        "variadic": variadic,
        "required": not argument.has_default,
        "json_schema": schema,
    }


def _column(catalog: Catalog, column: Column) -> dict[str, Any]:
    type = catalog.type(column.type)
    plain, operators = catalog.plain(type), computing(catalog, type)
    has_limit = column.max_length is not None and plain.category == "S"
    limits = {"maxLength": column.max_length} if has_limit else {}
    identity = {"a": "identity always", "d": "identity by default"}.get(column.identity)
    return {
        "type": column.declared,
        **_shown(column, "nullable", "default"),
        "generated": {"v": "virtual", "": identity}.get(column.generated, "stored"),
        "comment": column.comment,
        "json_schema": limited(schema_of(catalog, type, column.nullable), **limits),
        "readable": column.selectable,
        "writable": (column.insertable or column.updatable) and not column.generated_always,
        **({"enum": list(plain.labels)} if plain.kind == "enum" else {}),
        **({"computing": list(operators)} if operators else {}),
    }


def _computed(catalog: Catalog, overloads: Iterable[ComputedColumn]) -> dict[str, Any]:
    """Describe a computed column, with the overloads of its function."""
    first, *others = [
        {
            "type": each.column.declared,
            "comment": each.column.comment,
            "json_schema": schema_of(catalog, catalog.type(each.column.type), nullable=True),
            "parameters": [described_parameter(catalog, at) for at in each.function.inputs[1:]],
        }
        for each in overloads
    ]
    return {**first, "overloads": others}


def _quoted(name: str) -> str:
    """Return a column's name as a key of changes: quoted if it contains "->", or it would be a path."""
    return quoted_item(name) if "->" in name else name


def _paths_of(name: str) -> str:
    """Return the regular expression of paths into a column."""
    # Not re.escape, which also escapes spaces: an error in ECMA-262 with the u flag.
    bare, quoted = (
        re.sub(r"([\^$\\.*+?()\[\]{}|/])", r"\\\1", each) for each in (name, quoted_item(name))
    )
    return f"^({bare}|{quoted})->"


class RelationRows(DescribedRows):
    """
    Rows of a relation: schemas of a row that is read, created, changed, and of its keys.

    Args:
        defs: Shared parts of the document.
        relation: The relation.
    """

    def __init__(self, defs: Definitions, relation: Relation) -> None:
        super().__init__(defs, served_name(defs.catalog, relation))
        self._relation = relation
        self._columns = relation.columns.values()
        # A trigger may set any column.
        self._set_by_trigger = "insert" in relation.before_triggers

    @cached_property
    def _joins(self) -> list[tuple[Join, list[str]]]:
        """The relationships, each with its unambiguous names."""
        joins = relationships(self.catalog, self._relation)
        names = Counter(name for join in joins for name in join.embed_names)
        return [(join, sorted(at for at in join.embed_names if names[at] == 1)) for join in joins]

    def relation(self, verbs: Mapping[str, Verb], written: Mapping[str, Any]) -> dict[str, Any]:
        """
        Describe the relation.

        Args:
            verbs: All verbs, by name.
            written: Descriptions of hand-written procedures, which replace generated ones.
        """
        relation, catalog = self._relation, self.catalog
        computed = computed_columns(catalog, relation).items()
        return {
            **_shown(relation, "schema", "name", "kind", "comment"),
            "columns": {each.name: _column(catalog, each) for each in self._columns},
            "json_schema": {kind: self.part(kind) for kind in ("row", "insert", "update")},
            "computed": {name: _computed(catalog, overloads) for name, overloads in computed},
            "primary_key": list(relation.primary_key),
            "unique_keys": [_shown(key, "name", "columns") for key in relation.unique_keys],
            "unique_indexes": [
                {"name": index.name, "columns": list(index.all_columns), "partial": index.partial}
                for index in relation.unique_indexes
                if not index.fault
            ],
            "foreign_keys": [
                {
                    **_shown(key, "name", "columns"),
                    "schema": key.target[0],
                    "relation": key.target[1],
                    "target_columns": list(key.target_columns),
                }
                for key in relation.foreign_keys
                # Not even the name of a relation is shown that is hidden or that the role may not read.
                if key.target in catalog.relations
            ],
            "relationships": [
                {
                    "relation": served_name(catalog, join.target),
                    "via": join.label,
                    "many": join.many,
                    "names": names,
                }
                for join, names in self._joins
            ],
            "row_security": relation.row_security,
            "verbs": {
                name: written.get(f"{self.name}.{name}") or self._verb(verbs[name])
                for name in verbs_of(relation, verbs)
            },
        }

    def _verb(self, verb: Verb) -> dict[str, Any]:
        return self.described(verb, {name: self.part(kind) for name, kind in verb.takes.items()})

    def part(self, kind: str) -> Any:
        """Return a part; the schema False for the key of a relation without a primary key."""
        # False allows nothing, so that a verb by key or filter is described with its filter alone.
        if kind in ("key", "keys") and not self._relation.primary_key:
            return False
        if kind == "imported":  # columns are not required, because a model may add them
            return {"items": any_of(self.part("new"), list)}
        return super().part(kind)

    def row(self) -> Schema:
        """Build the schema of a row as it is read."""
        read = {each.name: self._read(each) for each in self._columns if each.selectable}
        return record(read, read)

    def _read(self, column: Column) -> Schema:
        schema = value(self.defs, self.catalog.type(column.type), column.nullable)
        limit = column.max_length
        return schema if limit is None else limited(schema, maxLength=limit)

    def new(self) -> Schema:
        """Build the schema of a new row, none of whose columns is required."""
        columns = (each for each in self._columns if each.insertable)
        return record(
            {each.name: self._written(each, new, self._set_by_trigger) for each in columns}
        )

    def insert(self) -> Schema:
        """Build the schema of a new row."""
        needed = self._needed()
        return limited(self.part("new"), required=needed) if needed else self.part("new")

    def _needed(self) -> list[str]:
        """Return the names of the columns that a new row has to set."""
        return [
            each.name
            for each in self._columns
            if each.insertable and not (each.nullable or each.has_default or self._set_by_trigger)
        ]

    def values(self) -> Schema:
        """Build the schema of one or several new rows."""
        return self._one_or_many("insert")

    def trees(self) -> Schema:
        """Build the schema of one or several new rows with nested rows."""
        return self._one_or_many("tree")

    def _one_or_many(self, kind: str) -> Schema:
        return any_of(self.part(kind), array(self.part(kind)))

    def tree(self) -> Schema:
        """Build the schema of a new row with nested rows."""
        relation = self._relation
        nesting = [each for each in self._joins if nested_by(relation, each[0])]
        found = self.new()["properties"]
        for name, nested in self._nested(nesting).items():
            found[name] = any_of(*([found[name]] if name in found else []), *nested)
        # Not required: columns of foreign keys, which a nested row may provide.
        by_others = {name for key in relation.foreign_keys for name in key.columns}
        schema = record(found, [name for name in self._needed() if name not in by_others])
        if nesting and not any("!" in name for name in found):
            # Names of the form "relation!via", of which there are many; if several relationships lead to one
            # relation, there may be no other name.
            schema["patternProperties"] = {"!": {"type": ["object", "array", "null"]}}
        return schema

    def _nested(self, nesting: Iterable[tuple[Join, list[str]]]) -> dict[str, list[Schema]]:
        """Return the schemas of nested rows, by the unambiguous names of relationships."""
        targets = Counter((join.target.schema, join.target.name) for join, _ in self._joins)
        found: dict[str, list[Schema]] = {}
        for join, names in nesting:
            rows = RelationRows(self.defs, join.target)
            called = set(names)
            if targets[join.target.schema, join.target.name] == 1:
                called |= {rows.name, join.target.name} - self._relation.columns.keys()
            known = rows.name in self.defs.relations
            one = [rows.part("tree") if known else dict, "link"]
            nested = [array(any_of(*one))] if join.many else one
            found |= {name: [*nested, NULL] for name in sorted(called)}
        return found

    def update(self) -> Schema:
        """Build the schema of the changes of a row."""
        columns = [each for each in self._columns if each.updatable]
        found = record({_quoted(each.name): self._written(each, changed) for each in columns})
        types = {each.name: self.catalog.plain(self.catalog.type(each.type)) for each in columns}
        paths = [_paths_of(name) for name, type in types.items() if type.form == "json"]
        if paths:
            found["patternProperties"] = dict.fromkeys(paths, reference("in_json"))
        return found

    def updates(self) -> Schema:
        """Build the schema of the `rows` of an update: keys and changes."""
        update = self.update()
        keys = {name for key in self._relation.unique_keys for name in key.columns}
        # Columns of keys identify the row, so they are allowed even if they cannot be updated.
        for name in (*self._relation.primary_key, *sorted(keys)):
            key, column = self._part_of_key(name), self._relation.columns[name]
            change = [self._written(column, changed)] if column.updatable else []
            update["properties"][_quoted(name)] = any_of(key, literal(key), *change)
        return array(update)

    def taken_over(self) -> Schema:
        """Build the schema of what an upsert changes: columns of the new row, or changes."""
        return any_of("columns", self.part("update"))

    def _written(self, column: Column, make: Make, nullable: bool = False) -> Schema:
        if column.generated_always:
            return reference("default")
        schema = make(self.defs, self.catalog.type(column.type), column.nullable or nullable)
        limit = column.max_length
        if limit is None or limit > LONGEST:
            return schema
        # PostgreSQL truncates excess trailing spaces.
        return limited(schema, pattern=rf"^[\s\S]{{0,{limit}}} *$")

    def key(self) -> Schema:
        """Build the schema of a key: the primary key's values, or a dict of the columns of any key."""
        parts = [self._part_of_key(name) for name in self._relation.primary_key]
        many = len(parts)
        values = limited(list, prefixItems=parts, minItems=many, maxItems=many)
        keys = [list(each.columns) for each in self._relation.unique_keys]
        columns = {name: self._part_of_key(name) for key in keys for name in key}
        named = limited(record(columns), anyOf=[{"required": key} for key in keys])
        return any_of(*(parts if many == 1 else ()), values, named)

    def keys(self) -> Schema:
        """Build the schema of several keys."""
        return array(self.part("key"))

    def _part_of_key(self, name: str) -> Schema:
        type = self.catalog.type(self._relation.columns[name].type)
        return given(self.defs, type, nullable=False)
