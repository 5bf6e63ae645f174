"""
How well a value on the wire goes with a type: what tells overloads of the same names apart.

Each value has types whose wire form it is (wire contract, section 9), some closer than others;
as PostgreSQL takes `5` for an integer rather than for a numeric, and `'x'` for a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog import Catalog
from service.objects import Type

TEXTS = ("text", "varchar", "bpchar", "name", "citext")
INTEGERS = ("int4", "int8", "int2", "oid")
NUMBERS = ("numeric", "float8", "float4")
FLOATS = ("float8", "numeric", "float4")
DOCUMENTS = ("jsonb", "json")

SPELLED, GENERIC, DOCUMENT, FAR = 10, 20, 30, 99
"""A string, which may spell a value of any type; what takes anything; JSON; all others."""


def distance(value: Any, type: Type, catalog: Catalog) -> int:
    """Tell how far a value is from a type: 0 is its own, `FAR` one that has other forms."""
    if value is None:
        return 0
    type = catalog.plain(type)
    if type.kind == "pseudo":
        return GENERIC
    if type.kind == "array":
        return _of_items(value, catalog.type(type.element), catalog)
    if type.kind == "composite":
        return 0 if isinstance(value, Mapping) else FAR
    if isinstance(value, str):
        return TEXTS.index(type.name) if type.name in TEXTS else SPELLED
    own = _own(value)
    if type.name in own:
        return own.index(type.name)
    if type.name in DOCUMENTS and not isinstance(value, bytes | bytearray | memoryview):
        return 1 if isinstance(value, Mapping) else DOCUMENT
    return FAR


def _of_items(value: Any, element: Type, catalog: Catalog) -> int:
    """Take the farthest of a list's items, a list among them for a further dimension."""
    if not isinstance(value, list | tuple):
        return FAR
    plain = (each for each in value if not isinstance(each, list | tuple))
    return max((distance(each, element, catalog) for each in plain), default=0)


def _own(value: Any) -> tuple[str, ...]:
    """Name the types that a value is a form of, the closest first."""
    if isinstance(value, bool):
        return ("bool",)
    if isinstance(value, int):
        return (*(INTEGERS if -(2**31) <= value < 2**31 else INTEGERS[1:2]), *NUMBERS)
    if isinstance(value, float):
        return (*FLOATS, *(INTEGERS if value.is_integer() else ()))
    if isinstance(value, bytes | bytearray | memoryview):
        return ("bytea",)
    return ("hstore",) if isinstance(value, Mapping) else ()
