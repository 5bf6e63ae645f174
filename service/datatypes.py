"""
The table of PostgreSQL's data types: one row for each.

Values of a type without a row are sent and received as PostgreSQL's text. To add a type, add its row to
`_ROWS`: describe, the typed clients, casts, sums, overloads and the codec use it. If its values have a form
that no other type has, add the form to `FormName`, its schemas to `FORMS`, and a function under the name of
the form to `READERS` of db/codec (from PostgreSQL's text), `WRITERS` of db/encode (to it), `BY_FORM` of
changes/images (from the JSON of the log) and, unless the form is in `SAME_IN_PYTHON` of models/meta,
`PYTHON_READERS` of db/codec (from text to the values that models see). If one is missing, the value is text there.
Rows with a form that `ENCODERS` of db/pack lacks are encoded more slowly.

Live queries read rows again by keys of the types in `KEY_TYPES` of plan/watch_plan, and match a changed row
with filters over the types in `FORMS` of changes/match; for other types they read more rows than necessary.

Arrays, composites, enums, ranges and domains have no rows; the types that they consist of have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FormName = Literal[
    "binary",
    "boolean",
    "date",
    "decimal",
    "float",
    "hstore",
    "integer",
    "interval",
    "json",
    "number",
    "record",
    "string",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "void",
]
Schema = Mapping[str, Any]
"""JSON Schema, 2020-12."""


@dataclass(frozen=True, slots=True)
class Form:
    """
    A form of values on the wire.

    Args:
        read: The schema of values in answers.
        given: The schema of values in calls, besides null.
    """

    read: Schema
    given: Schema


_STRING: Schema = {"type": "string"}
_TEXT_OR_NUMBER: Schema = {"type": ["string", "number"]}
_NUMBER_OR_WORD: Schema = {
    "anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
}
_PAIRS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
_ANY_BUT_NULL: Schema = {"not": {"type": "null"}}
_BINARY: Schema = {"type": "string", "format": "binary"}

FORMS: Mapping[FormName, Form] = {
    "boolean": Form({"type": "boolean"}, {"type": ["boolean", "string"]}),
    "integer": Form({"type": "integer"}, {"type": ["integer", "string"]}),
    "float": Form(_NUMBER_OR_WORD, {"type": ["number", "string"]}),
    # A string, to be exact: a double has 15 digits, and JSON has no NaN.
    "decimal": Form(
        {"type": "string", "pattern": r"^-?([0-9]+(\.[0-9]+)?|Infinity)$|^NaN$"}, _TEXT_OR_NUMBER
    ),
    "number": Form(_STRING, _TEXT_OR_NUMBER),
    "string": Form(_STRING, _TEXT_OR_NUMBER),
    "text": Form(_STRING, _STRING),
    "date": Form({"type": "string", "format": "date"}, _STRING),
    "time": Form({"type": "string", "format": "time"}, _STRING),
    "timestamp": Form(_STRING, _STRING),  # JSON Schema's "date-time" requires an offset
    "timestamptz": Form({"type": "string", "format": "date-time"}, _STRING),
    "interval": Form({"type": "string", "format": "duration"}, _STRING),
    "binary": Form(_BINARY, _BINARY),
    "json": Form({}, _ANY_BUT_NULL),
    "hstore": Form(_PAIRS, {"anyOf": [_PAIRS, _STRING]}),
    "record": Form({}, _ANY_BUT_NULL),
    "void": Form({}, _ANY_BUT_NULL),
}

UNPLAIN = frozenset[FormName](["json", "hstore", "record", "void"])
"""Forms of values that contain other values."""

DOCUMENTS = frozenset[FormName](["json", "hstore"])
"""Forms of values that contain other values by key, which a path ("->") leads to."""

TYPESCRIPT: Mapping[str, str] = {
    "integer": "number",
    "number": "number",
    "string": "string",
    "boolean": "boolean",
    "null": "null",
    "object": "Record<string, unknown>",
    "array": "unknown[]",
    "binary": "Uint8Array",
    "any": "unknown",
}
"""TypeScript types by the `type` of a schema; "binary" is a format, "any" the empty schema."""

PYTHON: Mapping[str, str] = {
    "integer": "int",
    "number": "float",
    "string": "str",
    "boolean": "bool",
    "null": "None",
    "object": "dict[str, Any]",
    "array": "list[Any]",
    "binary": "bytes",
    "any": "Any",
}
"""Python types, in the same way."""


@dataclass(frozen=True, slots=True)
class DataType:
    """
    A row of the table.

    Args:
        name: Its `typname`, as in "int4".
        form: The form of its values on the wire.
        aliases: Further names in casts, which `pg_type` does not have.
        limits: Minimum and maximum of an integer.
        format: The schema's format, if the form has none.
        extension: Whether it belongs to an extension, and so may be in any schema.
        castable: Whether callers may cast to it.
        short: Whether no value is longer than some 50 bytes.
        native_json: Whether PostgreSQL's JSON of a value is its wire form; otherwise it is text inside JSON.
        compared_as: The type that it is cast to for comparisons, because it has no equality operator.
        sum, average: The types of its sum and average, if they differ from its own (`pg_aggregate`).
        added, factor: The types that can be added to it, and that it can be multiplied by.
        max_length: Whether its type modifier is a length in characters, plus 4.
    """

    name: str
    form: FormName = "text"
    aliases: tuple[str, ...] = ()
    limits: tuple[int, int] | None = None
    format: str = ""
    extension: bool = False
    castable: bool = True
    short: bool = False
    native_json: bool = True
    compared_as: str = ""
    sum: str = ""
    average: str = ""
    added: str = ""
    factor: str = ""
    max_length: bool = False
    schema: Schema = field(init=False)
    given: Schema = field(init=False)

    def __post_init__(self) -> None:
        of = FORMS[self.form]
        limits = dict(zip(("minimum", "maximum"), self.limits or (), strict=False))
        format = {"format": self.format} if self.format else {}
        object.__setattr__(self, "schema", {**of.read, **limits, **format})
        object.__setattr__(self, "given", {**of.given, **limits})


_ROWS = (
    # Of several types with one form, the first one is tried first for a value.
    DataType("bool", "boolean", aliases=("boolean",), short=True),
    DataType(
        "int4",
        "integer",
        aliases=("int",),
        limits=(-(2**31), 2**31 - 1),
        short=True,
        sum="int8",
        average="numeric",
        added="int4",
        factor="int4",
    ),
    DataType(
        "int8",
        "integer",
        aliases=("bigint",),
        limits=(-(2**63), 2**63 - 1),
        short=True,
        sum="numeric",
        average="numeric",
        added="int8",
        factor="int8",
    ),
    DataType(
        "int2",
        "integer",
        aliases=("smallint",),
        limits=(-(2**15), 2**15 - 1),
        short=True,
        sum="int8",
        average="numeric",
        added="int2",
        factor="int2",
    ),
    # to_json writes an oid as a string.
    DataType(
        "oid", "integer", limits=(0, 2**32 - 1), castable=False, short=True, native_json=False
    ),
    DataType(
        "numeric",
        "decimal",
        aliases=("decimal",),
        native_json=False,
        added="numeric",
        factor="numeric",
    ),
    # to_json writes 1.0 as 1, which would be read as an integer.
    DataType(
        "float8",
        "float",
        aliases=("float", "double"),
        short=True,
        native_json=False,
        added="float8",
        factor="float8",
    ),
    DataType(
        "float4",
        "float",
        aliases=("real",),
        short=True,
        native_json=False,
        average="float8",
        added="float4",
        factor="float4",
    ),
    DataType("money", "number", short=True, added="money", factor="float8"),
    DataType("text", "string", aliases=("string",)),
    DataType("varchar", "string", max_length=True),
    DataType("bpchar", "string", aliases=("char", "character"), max_length=True),
    DataType("name", "string", castable=False),
    DataType("citext", "string", extension=True),
    DataType("uuid", format="uuid", short=True),
    DataType("date", "date", short=True, added="interval"),
    DataType("time", "time", short=True, added="interval"),
    DataType("timetz", format="time", short=True, added="interval"),
    DataType("timestamp", "timestamp", aliases=("datetime",), short=True, added="interval"),
    # to_json writes the offset "+00:00" instead of "Z".
    DataType("timestamptz", "timestamptz", short=True, native_json=False, added="interval"),
    DataType("interval", "interval", short=True, added="interval", factor="float8"),
    DataType("bytea", "binary", native_json=False),
    DataType("jsonb", "json"),
    DataType("json", "json", compared_as="jsonb"),
    DataType("hstore", "hstore", extension=True),
    DataType("jsonpath"),
    DataType("xml"),
    DataType("bit"),
    DataType("varbit"),
    DataType("inet", format="ip-address", short=True),
    DataType("cidr", short=True),
    DataType("macaddr", short=True),
    DataType("macaddr8", short=True),
    DataType("point", short=True),
    DataType("line"),
    DataType("lseg"),
    DataType("box"),
    DataType("path"),
    DataType("polygon"),
    DataType("circle"),
    DataType("tsvector"),
    DataType("tsquery"),
    DataType("ltree", extension=True),
    DataType("record", "record", castable=False),
    DataType("void", "void", castable=False),
)

TYPES: Mapping[str, DataType] = {each.name: each for each in _ROWS}
"""The table by type name."""

ALIASES: Mapping[str, str] = {alias: each.name for each in _ROWS for alias in each.aliases}

_OTHERS: Mapping[str, DataType] = {
    "S": DataType("", "string", castable=False, native_json=False),
    "N": DataType("", "number", castable=False, native_json=False),
    # A type may have its own cast to json, which to_json would use.
    "": DataType("", castable=False, native_json=False),
}
"""The rows for types without one, by category: strings, numbers, all others."""


def data_type(schema: str, name: str, category: str = "") -> DataType:
    """
    Return the row of a base type or pseudo-type.

    Args:
        schema: Its schema.
        name: Its `typname`.
        category: Its `typcategory`, for a type without a row.
    """
    found = TYPES.get(name)
    # A user-defined type may be called json as well; an extension may be in any schema.
    if found is not None and (found.extension or schema == "pg_catalog"):
        return found
    return _OTHERS.get(category) or _OTHERS[""]


def with_form(*forms: FormName) -> tuple[str, ...]:
    """Return the names of the types with these forms, in the order of the table."""
    return tuple(each.name for each in _ROWS if each.form in forms)
