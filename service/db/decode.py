"""
PostgreSQL's text → wire values, by type.

Where a caster written in C gives the wire form, psycopg2 calls it without a step through
Python: for integers, booleans and all that goes out as PostgreSQL's text. The rest are
functions here. A composite or array is read by its parts' own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from service.db.literals import read_array, read_composite, read_hstore, without_bounds
from service.errors import Unavailable

Read = Callable[[str], Any]
Caster = Any
"""What psycopg2 calls with the server's text and a cursor; its own type has no name."""


def read_float(text: str) -> float | str:
    """Read a float; the words NaN and Infinity stay words, since JSON has no form for them."""
    return text if text[-1] > "9" else float(text)


def read_timestamp(text: str) -> str:
    """Put the T of ISO 8601 between date and time."""
    return text.replace(" ", "T", 1)


def read_timestamptz(text: str) -> str:
    """Put T and Z into a moment, which sessions in UTC write with "+00"."""
    if text.endswith("+00"):
        return text[:-3].replace(" ", "T", 1) + "Z"
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


def read_record(text: str) -> list[str | None]:
    """Read a row of no known type, whose fields stay texts."""
    return read_composite(text)


READERS: Mapping[FormName, Read] = {
    "binary": read_bytes,
    "boolean": read_boolean,
    "float": read_float,
    "hstore": read_hstore,
    "integer": int,
    "json": read_json,
    "record": read_record,
    "timestamp": read_timestamp,
    "timestamptz": read_timestamptz,
    "void": read_nothing,
}
"""By form (service/datatypes), where it is not the text itself."""

IN_C: Mapping[FormName, Caster] = {"integer": LONGINTEGER, "boolean": BOOLEAN}


class Casters:
    """
    The typecasters of one catalog.

    Args:
        catalog: Whose types are met.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._readers: dict[int, Read] = {}
        self._casters: dict[int, Caster] = {}
        for each in catalog.types.values():
            if each.kind != "domain":  # the server names a domain's base type with its rows
                self._casters[each.oid] = self._caster(each)

    def install(self, cursor: cursor) -> None:
        """Register the typecasters on a cursor."""
        register_type(UNICODE, cursor)  # gives the cursor a map of its own
        own: dict[int, Caster] = cursor.string_types or {}
        own.update(self._casters)

    def reader(self, type: Type) -> Read:
        """Return the reader of a type's text; a domain is read as its base type."""
        found = self._readers.get(type.oid)
        if found is None:
            found = self._readers[type.oid] = self._reader(self._catalog.plain(type))
        return found

    def _caster(self, type: Type) -> Caster:
        name = f"{type.schema}.{type.name}"
        if type.kind == "array":
            element = self._catalog.plain(self._catalog.type(type.element))
            if element.delimiter == "," and element.kind != "array":
                parse = new_array_type((type.oid,), name, self._caster(element))
                return new_type((type.oid,), name, _array_cast(parse))
        elif type.form in IN_C:
            return IN_C[type.form]
        elif type.kind != "composite" and type.form not in READERS:
            return UNICODE
        return new_type((type.oid,), name, self._called(type))

    def _called(self, type: Type) -> Callable[[Any, Any], Any]:
        known = READERS.get(type.form)
        # others late: a catalog has many types, a session meets few
        read: Read = known or (lambda text: self.reader(type)(text))

        def cast(text: Any, _cursor: Any) -> Any:
            return None if text is None else read(text)

        return cast

    def _reader(self, type: Type) -> Read:
        if type.kind == "array":
            element = self._catalog.type(type.element)
            read, delimiter = self.reader(element), self._catalog.plain(element).delimiter
            return lambda text: read_array(text, read, delimiter)
        if type.kind == "composite":
            return self._row_reader(type)
        return READERS.get(type.form, str)

    def _row_reader(self, type: Type) -> Read:
        fields = [(name, self.reader(self._catalog.type(oid))) for name, oid in type.fields]

        def read(text: str) -> dict[str, Any]:
            texts = read_composite(text) if fields else []
            if len(texts) != len(fields):
                raise Unavailable("the database's schema has just changed")
            return {
                name: None if field is None else read_field(field)
                for (name, read_field), field in zip(fields, texts, strict=True)
                if name  # a hidden field has none
            }

        return read


def _array_cast(parse: Caster) -> Callable[[Any, Any], Any]:
    def cast(text: Any, cursor: Any) -> Any:
        if text is None:
            return None
        # the parser in C stumbles over the bounds of more than one dimension
        return parse(without_bounds(text) if text[0] == "[" else text, cursor)

    return cast
