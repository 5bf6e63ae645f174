"""
PostgreSQL's text → wire values, by type.

Where a caster written in C gives the wire form, psycopg2 calls it without a step through
Python: for integers, booleans and all that goes out as PostgreSQL's text. The rest are
functions here. A composite or array is read by its parts' own rules.
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
"""What psycopg2 calls with the server's text and a cursor; its own type has no name."""


def read_float(text: str) -> float | str:
    """Read a float; the words NaN and Infinity stay words, since JSON has no form for them."""
    # NaN and Infinity end in letters, which stand behind all digits.
    return text if text[-1] > "9" else float(text)


def read_timestamp(text: str) -> str:
    """Return a timestamp with the T of ISO 8601 between date and time."""
    return text.replace(" ", "T", 1)


def read_timestamptz(text: str) -> str:
    """Return a moment with T and Z, which sessions in UTC write with a space and "+00"."""
    if text.endswith("+00"):
        return text[:-3].replace(" ", "T", 1) + "Z"
    # Behind the offset of a year before 1 stands BC.
    return text.replace(" ", "T", 1).replace("+00 BC", "Z BC")


def read_bytes(text: str) -> bytes:
    """Read bytea in either of its forms."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return bytes(BINARY(text, None))


def read_boolean(text: str) -> bool:
    """Read "t" or "f"."""
    return text == "t"


def read_nothing(_text: str) -> None:
    """Read void."""


# No casters of psycopg2's for dates: they make infinity the year 9999, which would be written
# back as such, and raise for years before 1 or beyond 9999, so that the row cannot be read.
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
    "void": read_nothing,
}
"""By form (service/datatypes), where it is not the text itself."""

IN_C: Mapping[FormName, Caster] = {"integer": LONGINTEGER, "boolean": BOOLEAN}


def row_reader(names: Sequence[str], reads: Sequence[Read]) -> Read:
    """Build the reader of rows, given what reads each field; one without a name is hidden."""
    fields = list(zip(names, reads, strict=True))

    def read(text: str) -> dict[str, Any]:
        # "()" is a row without fields as well as a row with one that is null.
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
        catalog: That has the types.
        reader: Returns what reads a type.
    """

    def caster(type: Type) -> Caster:
        name = f"{type.schema}.{type.name}"
        if type.kind == "array":
            element = catalog.plain(catalog.type(type.element))
            # psycopg2's parser of arrays, in C, knows no other delimiter (that of box is ";")
            if element.delimiter == "," and element.kind != "array":
                parse = new_array_type((type.oid,), name, caster(element))
                return new_type((type.oid,), name, _array_cast(parse))
        elif type.kind != "composite" and (type.form in IN_C or type.form not in READERS):
            return IN_C.get(type.form, UNICODE)
        return new_type((type.oid,), name, called(type))

    def called(type: Type) -> Callable[[Any, Any], Any]:
        # others late: a catalog has many types, a session meets few
        read: Read = READERS.get(type.form) or (lambda text: reader(type)(text))
        return lambda text, _cursor: None if text is None else read(text)

    # the server names a domain's base type with its rows
    return {each.oid: caster(each) for each in catalog.types.values() if each.kind != "domain"}


def install(found: Mapping[int, Caster], cursor: cursor) -> None:
    """Register typecasters on a cursor."""
    register_type(UNICODE, cursor)  # gives the cursor a map of its own
    own: dict[int, Caster] = cursor.string_types or {}
    own.update(found)


def _array_cast(parse: Caster) -> Callable[[Any, Any], Any]:
    def cast(text: Any, cursor: Any) -> Any:
        if text is None:
            return None
        # the parser in C stumbles over the bounds of more than one dimension
        return parse(without_bounds(text) if text[0] == "[" else text, cursor)

    return cast
