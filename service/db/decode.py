"""
PostgreSQL's text → wire values, by type.

For integers, booleans and all types whose wire form is PostgreSQL's text, psycopg2 uses typecasters
in C. Those of other types are Python functions. Composites and arrays are decoded by the typecasters of
their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psycopg2 import BINARY
from psycopg2.extensions import (
    BOOLEAN,
    LONGINTEGER,
    UNICODE,
    cursor,
    new_array_type,
    new_type,
    register_type,
)

from service.catalog import Catalog, Type
from service.datatypes import FormName
from service.db.json import read_json
from service.db.literals import read_composite, read_hstore, without_bounds
from service.errors import Unavailable

Read = Callable[[str], Any]
Caster = Any
"""A typecaster, which psycopg2 calls with the server's text and a cursor; its class has no public name."""


def read_float(text: str) -> float | str:
    """Read a float; NaN and Infinity stay strings, because JSON cannot represent them."""
    # NaN and Infinity end in a letter, which is greater than any digit.
    return text if text[-1] > "9" else float(text)


def read_timestamp(text: str) -> str:
    """Return a timestamp with the T of ISO 8601 between date and time."""
    return text.replace(" ", "T", 1)


def read_timestamptz(text: str) -> str:
    """Return a timestamptz with T and Z, which a session in UTC writes with a space and "+00"."""
    if text.endswith("+00"):
        return text[:-3].replace(" ", "T", 1) + "Z"
    # Of years before 1, BC follows the offset.
    return text.replace(" ", "T", 1).replace("+00 BC", "Z BC")


def read_bytes(text: str) -> bytes:
    """Read bytea in hex or escape format."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return bytes(BINARY(text, None))


def read_boolean(text: str) -> bool:
    """Read "t" or "f"."""
    return text == "t"


# Not psycopg2's typecasters for dates: they return the year 9999 for infinity, which would be stored when
# it is written back, and raise for years before 1 or after 9999, so that the row could not be read.
READERS: Mapping[FormName, Read] = {
    "binary": read_bytes,
    "boolean": read_boolean,
    "float": read_float,
    "hstore": read_hstore,
    "integer": int,
    "json": read_json,
    "record": read_composite,
    "timestamp": read_timestamp,
    "timestamptz": read_timestamptz,
    "void": lambda _: None,
}
"""By form (service/datatypes); forms whose wire value is PostgreSQL's text are not listed."""

IN_C: Mapping[FormName, Caster] = {"integer": LONGINTEGER, "boolean": BOOLEAN}


def row_reader(names: Sequence[str], reads: Sequence[Read]) -> Read:
    """Build the reader of rows from the readers of their fields; a field without a name is hidden."""
    fields = list(zip(names, reads, strict=True))

    def read(text: str) -> dict[str, Any]:
        # "()" is a row without fields, but also a row with one null.
        texts = read_composite(text) if fields else []
        if len(texts) != len(fields):
            raise Unavailable("the database's schema has just changed")
        return {
            name: None if field is None else read_field(field)
            for (name, read_field), field in zip(fields, texts, strict=True)
            if name
        }

    return read


def casters(catalog: Catalog, reader: Callable[[Type], Read]) -> dict[int, Caster]:
    """
    Return the typecasters of the types of a catalog, by oid.

    Args:
        catalog: The catalog of the types.
        reader: Returns the reader of a type.
    """

    def caster(type: Type) -> Caster:
        name = f"{type.schema}.{type.name}"
        if type.kind == "array":
            element = catalog.plain(catalog.type(type.element))
            # psycopg2's array parser, in C, knows only this delimiter (box has ";").
            if element.delimiter == "," and element.kind != "array":
                parse = new_array_type((type.oid,), name, caster(element))
                return new_type((type.oid,), name, _array_cast(parse))
        elif type.kind != "composite" and (type.form in IN_C or type.form not in READERS):
            return IN_C.get(type.form, UNICODE)
        return new_type((type.oid,), name, called(type))

    def called(type: Type) -> Callable[[Any, Any], Any]:
        # The reader is looked up when it is used: a catalog has many types, a session uses few.
        read: Read = READERS.get(type.form) or (lambda text: reader(type)(text))
        return lambda text, _cursor: None if text is None else read(text)

    # In results, the server gives the oid of a domain's base type.
    return {each.oid: caster(each) for each in catalog.types.values() if each.kind != "domain"}


def install(found: Mapping[int, Caster], cursor: cursor) -> None:
    """Register typecasters on a cursor."""
    register_type(UNICODE, cursor)  # makes psycopg2 create the cursor's own map of typecasters
    own: dict[int, Caster] = cursor.string_types or {}
    own.update(found)


def _array_cast(parse: Caster) -> Callable[[Any, Any], Any]:
    def cast(text: Any, cursor: Any) -> Any:
        if text is None:
            return None
        # psycopg2's array parser fails for lower bounds of more than one dimension.
        return parse(without_bounds(text) if text[0] == "[" else text, cursor)

    return cast
