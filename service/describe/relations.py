"""
Describe relations and functions: columns, keys, parameters, and the arguments and results of each verb.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

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
    literal,
    new,
    record,
    reference,
    schema_of,
    value,
)
from service.describe.verb import FORM, TIMEOUT, WRITES, DescribedRows, Right, Verb, forms
from service.plan.call_plan import answer_kind, result_columns
from service.plan.joins import ComputedColumn, Join, computed_columns, relationships
from service.plan.nested_rows import takes_nested
from service.plan.operators import computing
from service.request.call_request import ARGS
from service.request.names import FN, RESERVED, encode
from service.request.select_list import quoted_item

OPTIONS: dict[str, Schema] = {**TIMEOUT, **FORM, **WRITES, "max_affected": WHOLE}


def function_name(catalog: Catalog, home: tuple[str, str]) -> str:
    """Return a function's name in URIs."""
    schema, name = home
    before = "" if schema == catalog.schemas[0] else f"{encode(schema)}."
    return f"{before}{FN}.{encode(name)}"


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
    names = [name for name, _ in type.fields if name]
    return not names or any(name not in type.unreadable_fields for name in names)


def described_functions(
    defs: Definitions,
    home: tuple[str, str],
    overloads: Sequence[Function],
    verbs: Mapping[str, Verb],
) -> list[dict[str, Any]]:
    """Describe the overloads of a function."""
    name = function_name(defs.catalog, home)
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
        self._by_name = {each.name: self._given(each) for each in function.inputs if each.name}
        first = function.inputs[: function.unnamed]
        needed = [at for at, each in enumerate(first, 1) if not (each.name or each.has_default)]
        items = [self._given(each) for each in first]
        self._listed: Schema = {
            "type": "array",
            **({"minItems": needed[-1]} if needed else {}),
            "maxItems": len(items),
            **({"prefixItems": items} if items else {}),
        }
        required = [each.name for each in function.inputs if each.name and not each.has_default]
        self.makers["args"] = lambda: record(self._by_name, required)

    def function(self, verbs: Mapping[str, Verb]) -> dict[str, Any]:
        """Describe the function, and the verbs on its rows."""
        function, catalog = self._function, self.defs.catalog
        has_verbs = self._columns is not None and not function.procedure
        needed = [ARGS] if any(not each.has_default for each in function.inputs) else []
        args = any_of(self.part("args"), self._listed, *([] if needed else [NULL]))
        return {
            "schema": function.schema,
            "name": function.name,
            "kind": "procedure" if function.procedure else "function",
            "comment": function.comment,
            "volatility": function.volatility,
            "parameters": [described_parameter(catalog, each) for each in function.inputs],
            "returns": {"type": catalog.type(function.result).sql, "many": function.many},
            "arguments": self._arguments(),
            "result": self._result(),
            "errors": reference("errors.fn"),
            "verbs": {
                name: self.described(verb, {ARGS: args}, needed)
                for name, verb in verbs.items()
                if has_verbs and verb.on_functions
            },
        }

    def _given(self, argument: Argument) -> Schema:
        return given(self.defs, self.defs.catalog.type(argument.type), nullable=True)

    def _arguments(self) -> Schema:
        """Return the schema of a call's keywords; parameters without a name are in the list `args`."""
        function = self._function
        nothing = function.procedure or answer_kind(self.defs.catalog, function) == "nothing"
        # Without a result there are no rows to count.
        options = {**OPTIONS, "max_affected": NULL} if nothing else OPTIONS
        others = {name: each for name, each in options.items() if name not in self._names}
        plain = {**others, **self._by_name}
        needed = [each for each in function.inputs if not each.has_default]
        listed = [each for each in function.inputs[: function.unnamed] if not each.has_default]
        by_name = [each.name for each in needed[len(listed) :]]
        if ARGS not in self._names:
            plain[ARGS] = self._listed if function.unnamed else NULL
            by_name += [ARGS] if listed else []
        if function.unnamed:
            return record(plain, by_name)
        # With all arguments in `args`, a keyword is an option even if a parameter has the same name.
        apart = record({**options, ARGS: self.part("args")}, [ARGS])
        return any_of(record(plain, by_name), apart)

    def _result(self) -> Schema:
        """Return the schema of a call's result."""
        catalog, function = self.defs.catalog, self._function
        answer = answer_kind(catalog, function)
        if answer == "nothing":
            return any_of(NULL, reference("text"))
        if self._columns is None:
            result = value(self.defs, catalog.type(function.result), nullable=True)
            return any_of(array(result) if answer == "values" else result, reference("text"))
        usual = {"rows": ("rows",), "composite": ("row", "null")}.get(answer, ("row",))
        return forms(*map(self.part, usual))

    def row(self) -> Schema:
        """Build the schema of a row of its result."""
        catalog, function = self.defs.catalog, self._function
        withheld: Set[str] = set()
        if not (function.outputs or function.definer):
            withheld = catalog.plain(catalog.type(function.result)).unreadable_fields
        columns = {
            name: value(self.defs, catalog.type(column.type), nullable=True)
            for name, column in (self._columns or {}).items()
            if name not in withheld
        }
        # Fields that the role may not read may still be in the row, but are not named here.
        return record(columns, columns, closed=not withheld)


def described_parameter(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    """Describe a parameter of a function."""
    type = catalog.type(argument.type)
    schema = schema_of(catalog, type, nullable=argument.mode != "variadic")
    if catalog.plain(type).form == "decimal":  # exact as a string, and taken as a number too
        schema = {"type": ["string", "number", "null"]}
    return {
        "name": argument.name or None,
        "type": type.sql,
        "variadic": argument.mode == "variadic",
        "required": not argument.has_default,
        "json_schema": schema,
    }


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


def verbs_of(relation: Relation, verbs: Mapping[str, Verb]) -> list[str]:
    """Return the verbs that a relation has and that the role may use."""
    allowed: dict[Right, bool] = {
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


def _column(catalog: Catalog, column: Column) -> dict[str, Any]:
    type = catalog.type(column.type)
    plain = catalog.plain(type)
    schema = schema_of(catalog, type, column.nullable)
    if column.max_length is not None and plain.category == "S":
        schema["maxLength"] = column.max_length
    described: dict[str, Any] = {
        "type": column.declared,
        "nullable": column.nullable,
        "default": column.default,
        "generated": _generated(column),
        "comment": column.comment,
        "json_schema": schema,
        "readable": column.selectable,
        "writable": (column.insertable or column.updatable) and not column.generated_always,
    }
    if plain.kind == "enum":
        described["enum"] = list(plain.labels)
    if operators := computing(catalog, type):
        described["computing"] = list(operators)
    return described


def _generated(column: Column) -> str | None:
    """Return how the database generates the column's value; None if it does not."""
    if column.generated:
        return "virtual" if column.generated == "v" else "stored"
    return {"a": "identity always", "d": "identity by default"}.get(column.identity)


def _computed(catalog: Catalog, computed: ComputedColumn) -> dict[str, Any]:
    column, (_, *others) = computed.column, computed.function.inputs
    return {
        "type": column.declared,
        "comment": column.comment,
        "json_schema": schema_of(catalog, catalog.type(column.type), True),
        "parameters": [described_parameter(catalog, each) for each in others],
    }


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
        self._columns = list(relation.columns.values())
        self.makers |= {
            "new": self._new,
            "insert": self._insert,
            "update": self._update,
            "updates": self._updates,
            "taken_over": lambda: any_of(reference("columns"), self.part("update")),
            "values": lambda: self._one_or_many("insert"),
            "tree": self._tree,
            "trees": lambda: self._one_or_many("tree"),
            "key": self._key,
            "keys": lambda: array(self.part("key")),
        }

    @cached_property
    def _joins(self) -> list[tuple[Join, list[str]]]:
        """The relationships, each with its unambiguous names."""
        joins = relationships(self.defs.catalog, self._relation)
        names = Counter(name for join in joins for name in join.embed_names)
        return [(join, sorted(at for at in join.embed_names if names[at] == 1)) for join in joins]

    def relation(self, verbs: Mapping[str, Verb], written: Mapping[str, Any]) -> dict[str, Any]:
        """
        Describe the relation.

        Args:
            verbs: All verbs, by name.
            written: Descriptions of hand-written procedures, which replace generated ones.
        """
        relation, catalog = self._relation, self.defs.catalog
        return {
            "schema": relation.schema,
            "name": relation.name,
            "kind": relation.kind,
            "comment": relation.comment,
            "columns": {each.name: _column(catalog, each) for each in self._columns},
            "json_schema": {kind: self.part(kind) for kind in ("row", "insert", "update")},
            "computed": {
                name: {
                    **_computed(catalog, overloads[0]),
                    "overloads": [_computed(catalog, each) for each in overloads[1:]],
                }
                for name, overloads in computed_columns(catalog, relation).items()
            },
            "primary_key": list(relation.primary_key),
            "unique_keys": [
                {"name": key.name, "columns": list(key.columns)} for key in relation.unique_keys
            ],
            "unique_indexes": [
                {"name": index.name, "columns": list(index.all_columns), "partial": index.partial}
                for index in relation.unique_indexes
                if not index.fault
            ],
            "foreign_keys": [
                {
                    "name": key.name,
                    "columns": list(key.columns),
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
        schema = value(self.defs, self.defs.catalog.type(column.type), column.nullable)
        limit = column.max_length
        return schema if limit is None else {**schema, "maxLength": limit}

    def _new(self) -> Schema:
        nullable = "insert" in self._relation.before_triggers  # a trigger may set it
        columns = (each for each in self._columns if each.insertable)
        return record({each.name: self._written(each, new, nullable) for each in columns})

    def _insert(self) -> Schema:
        needed = [
            each.name
            for each in self._columns
            if each.insertable
            and not (
                each.nullable or each.has_default or "insert" in self._relation.before_triggers
            )
        ]
        return {**self.part("new"), "required": needed} if needed else self.part("new")

    def _one_or_many(self, kind: str) -> Schema:
        return any_of(self.part(kind), array(self.part(kind)))

    def _tree(self) -> Schema:
        """Build the schema of a new row with nested rows."""
        insert, relation = self._insert(), self._relation
        found = self._new()["properties"]
        for name, nested in self._nested().items():
            found[name] = any_of(*([found[name]] if name in found else []), *nested)
        # Not required: columns of foreign keys, which a nested row may provide.
        by_others = {name for key in relation.foreign_keys for name in key.columns}
        schema = record(found, [at for at in insert.get("required", ()) if at not in by_others])
        joins = relationships(self.defs.catalog, relation)
        nests = any(takes_nested(relation, join) for join in joins)
        if nests and not any("!" in name for name in found):
            # Names of the form "relation!via", of which there are many; if several relationships lead to one
            # relation, there may be no other name.
            schema["patternProperties"] = {"!": {"type": ["object", "array", "null"]}}
        return schema

    def _nested(self) -> dict[str, list[Schema]]:
        """Return the schemas of nested rows, by the unambiguous names of relationships."""
        relation = self._relation
        targets = Counter((join.target.schema, join.target.name) for join, _ in self._joins)
        found: dict[str, list[Schema]] = {}
        for join, names in self._joins:
            if not takes_nested(relation, join):
                continue
            rows = RelationRows(self.defs, join.target)
            called = set(names)
            if targets[join.target.schema, join.target.name] == 1:
                called |= {rows.name, join.target.name} - relation.columns.keys()
            known = rows.name in self.defs.relations
            one = [rows.part("tree") if known else dict, reference("link")]
            for name in sorted(called):
                found[name] = [*([array(any_of(*one))] if join.many else one), NULL]
        return found

    def _update(self) -> Schema:
        columns = [each for each in self._columns if each.updatable]
        found = record({_quoted(each.name): self._written(each, changed) for each in columns})
        catalog = self.defs.catalog
        forms = {each.name: catalog.plain(catalog.type(each.type)).form for each in columns}
        paths = [_paths_of(name) for name, form in forms.items() if form == "json"]
        if paths:
            found["patternProperties"] = dict.fromkeys(paths, reference("in_json"))
        return found

    def _updates(self) -> Schema:
        """Build the schema of the `rows` of an update: keys and changes."""
        update = self._update()
        keys = {name for key in self._relation.unique_keys for name in key.columns}
        # Columns of keys identify the row, so they are allowed even if they cannot be updated.
        for name in (*self._relation.primary_key, *sorted(keys)):
            key, column = self._part_of_key(name), self._relation.columns[name]
            change = [self._written(column, changed)] if column.updatable else []
            update["properties"][_quoted(name)] = any_of(key, literal(key), *change)
        return array(update)

    def _written(self, column: Column, make: Make, nullable: bool = False) -> Schema:
        if column.generated_always:
            return reference("default")
        type = self.defs.catalog.type(column.type)
        schema = make(self.defs, type, column.nullable or nullable)
        limit = column.max_length
        if limit is None or limit > LONGEST:
            return schema
        # PostgreSQL truncates excess trailing spaces.
        return {**schema, "pattern": rf"^[\s\S]{{0,{limit}}} *$"}

    def _key(self) -> Schema:
        parts = [self._part_of_key(name) for name in self._relation.primary_key]
        many = len(parts)
        values = {"type": "array", "prefixItems": parts, "minItems": many, "maxItems": many}
        keys = [list(each.columns) for each in self._relation.unique_keys]
        columns = {name: self._part_of_key(name) for key in keys for name in key}
        named = {**record(columns), "anyOf": [{"required": key} for key in keys]}
        return any_of(*(parts if many == 1 else ()), values, named)

    def _part_of_key(self, name: str) -> Schema:
        type = self.defs.catalog.type(self._relation.columns[name].type)
        return given(self.defs, type, nullable=False)
