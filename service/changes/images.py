"""
Images of the log → rows in the form in which `find` answers them.

The log has rows as PostgreSQL's `row_to_json` wrote them, under settings that the triggers pin
(schema/triggers.py: PINNED). That differs from the wire form: a numeric is a JSON number, bytea is a string.
If an image does not determine a value exactly, the value is not guessed: the event says that the row has to
be read by its key.

Changes are encoded as CBOR by a function that is compiled once per relation and set of columns: to build
dicts of a change and its rows, and encode these, would take longer than everything else that `changes` does
with it. The bytes are those that cbor2 makes of `Shown.event`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

import cbor2

from service.catalog import Catalog, Relation, Type, cached_per_catalog
from service.changes.net import Change, Image
from service.datatypes import FormName
from service.db import pack
from service.db.json import LEAST, MAX_DEPTH, MOST, sendable_document
from service.db.pack import COMMON_INTEGERS, MAP, head, text

ReadImage = Callable[[Any], Any]
"""Converts a value of an image, which is not null, to its wire form."""

LONGEST = 200_000
"""Limit on the digits of a numeric on either side of its point; PostgreSQL has at most 131,072 before it."""

DIMENSIONS = 6
"""Maximum number of dimensions of an array in PostgreSQL."""

LONGEST_INTEGER = 21
"""One more than the characters of a 64-bit integer."""


_LACKING = object()
_SAME = frozenset([str, int, bool, type(None)])
"""Types whose equality in Python is exact; Decimal("1.0") and Decimal("1.00") are equal, but differ."""


def differs(one: Any, other: Any) -> bool:
    """Return whether two values of a column differ on the wire: True and 1 do, and 1 and 1.0."""
    if one != other or type(one) is not type(other):
        return True
    # Likewise for values nested in a document, which Python's equality does not tell apart.
    return isinstance(one, list | dict) and repr(one) != repr(other)


class UnconvertibleValue(Exception):
    """
    An image has a value in a form that cannot be converted exactly.

    The column's type has changed since, or the type has its own cast to json (hstore's is known), or its text
    depends on the session's `search_path` (regclass), or the value is a document nested too deep.
    """


@dataclass(frozen=True, slots=True)
class ImageReader:
    """
    Converts the images of a relation to rows.

    Args:
        columns: Converter of each column that is shown.
        levels: How deep lists and dicts can be nested in a value.
    """

    columns: Mapping[str, ReadImage]
    levels: int

    def row(self, image: Image) -> dict[str, Any]:
        """
        Return the row of an image, with those of the shown columns that the image has.

        A column that it lacks was added or renamed since.

        Raises:
            UnconvertibleValue: A value cannot be converted exactly.
        """
        found = {}
        for name, read in self.columns.items():
            value = image.get(name, _LACKING)
            if value is not _LACKING:
                found[name] = None if value is None else read(value)
        return found

    def before(self, image: Image, later: Image, row: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the old values of the columns that have changed.

        Args:
            image: Old image.
            later: New image.
            row: The row of the new image.

        Raises:
            UnconvertibleValue: A value cannot be converted exactly.
        """
        found = {}
        for name, read in self.columns.items():
            value = image.get(name, _LACKING)
            if value is _LACKING:
                continue
            now = later.get(name, _LACKING)
            if value == now and (type(value) is type(now) in _SAME or repr(value) == repr(now)):
                continue
            value = None if value is None else read(value)
            if differs(value, row.get(name)):
                found[name] = value
        return found

    def value(self, column: str, value: Any) -> Any:
        """
        Return the wire form of a value of one column.

        Raises:
            UnconvertibleValue: The value cannot be converted exactly.
        """
        return None if value is None else self.columns[column](value)


@cached_per_catalog
def image_reader(
    catalog: Catalog, relation: Relation, columns: frozenset[tuple[str, int]]
) -> ImageReader:
    """
    Return the reader of a relation's images.

    Args:
        catalog: Catalog that has the relation.
        relation: The relation.
        columns: Names and types of the columns that are shown. Virtual generated columns are left out,
            since images have null for them. A column that the catalog lacks, or has with another type,
            raises `UnconvertibleValue`.
    """
    shown = dict(columns)
    known = {
        name: _reader(catalog, catalog.type(column.type))
        for name, column in relation.columns.items()
        if shown.get(name) == column.type
    }
    every = {name: known.get(name, _nothing) for name in [*known, *(shown.keys() - known.keys())]}
    virtual = {name for name, column in relation.columns.items() if column.generated == "v"}
    levels = max((_levels(catalog, catalog.type(type)) for type in shown.values()), default=0)
    return ImageReader({name: read for name, read in every.items() if name not in virtual}, levels)


def key_reader(catalog: Catalog, type: Type) -> ReadImage | None:
    """Return the converter of a key value; None if images have it in its wire form."""
    form = catalog.plain(type).form
    return BY_FORM[form] if form in ("binary", "decimal", "interval", "timestamptz") else None


def _levels(catalog: Catalog, type: Type) -> int:
    """Return how deep lists and dicts can be nested in a value of a type."""
    plain = catalog.plain(type)
    if plain.kind == "array":
        return DIMENSIONS + _levels(catalog, catalog.type(plain.element))
    if plain.kind == "composite":
        return 1 + max((_levels(catalog, catalog.type(oid)) for _, oid in plain.fields), default=0)
    return {"json": MAX_DEPTH, "hstore": 1}.get(plain.form, 0)


def _reader(catalog: Catalog, type: Type) -> ReadImage:
    plain = catalog.plain(type)
    if catalog.looks_up(plain):
        return _nothing
    if plain.kind == "array":
        return _list_reader(catalog, plain)
    if plain.kind == "composite":
        return _record_reader(
            {name: _reader(catalog, catalog.type(oid)) for name, oid in plain.fields}
        )
    return BY_FORM.get(plain.form, read_string)


def _list_reader(catalog: Catalog, type: Type) -> ReadImage:
    """Build the converter of arrays; nested lists are dimensions, or elements that are arrays (domains)."""
    element = catalog.plain(catalog.type(type.element))
    while element.kind == "array":
        element = catalog.plain(catalog.type(element.element))
    # A list in an array of json may also be an element; its items are converted in the same way.
    of = _reader(catalog, element)

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise UnconvertibleValue
        return [
            None if each is None else read(each) if isinstance(each, list) else of(each)
            for each in value
        ]

    return read


def _record_reader(fields: Mapping[str, ReadImage]) -> ReadImage:
    """Build the converter of composites; hidden fields have an empty name."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(name in value for name in fields if name):
            raise UnconvertibleValue
        return {
            name: None if value[name] is None else of(value[name])
            for name, of in fields.items()
            if name
        }

    return read


def _nothing(value: Any) -> Any:
    raise UnconvertibleValue


def _unchanged(kind: type) -> ReadImage:
    """Build the converter of values that are the same in images and on the wire."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise UnconvertibleValue
        return value

    return read


read_string = _unchanged(str)
"""Converts the values of most types: strings in images and on the wire."""


def _integer(value: Any) -> int:
    if type(value) is int and LEAST <= value <= MOST:
        return value
    # An oid is a string in JSON. And all integers of an image are Decimal if one is too long for int().
    if isinstance(value, str | Decimal):
        text = str(value)
        value = (
            int(text)
            if text.removeprefix("-").isdecimal() and len(text) < LONGEST_INTEGER
            else None
        )
    found = _whole(value)
    if not LEAST <= found <= MOST:
        raise UnconvertibleValue
    return found


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise UnconvertibleValue
    return value


def _decimal(value: Any) -> str:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise UnconvertibleValue
        return value
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < LONGEST:
        return format(value, "f")
    return str(_whole(value))


def _float(value: Any) -> float | str:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise UnconvertibleValue
        return value
    try:
        found = float(value if isinstance(value, Decimal) else _whole(value))
    except OverflowError:
        raise UnconvertibleValue from None
    if found - found != 0.0:
        raise UnconvertibleValue
    return found


def _timestamptz(value: Any) -> str:
    # Not a suffix: " BC" follows the offset in years before 1.
    return read_string(value).replace("+00:00", "Z")


def _interval(value: Any) -> str:
    text = read_string(value)
    if not text.startswith("P") and text.lstrip("-") != "infinity":
        raise UnconvertibleValue  # logged by older triggers, which did not pin intervalstyle to iso_8601
    return text


def _binary(value: Any) -> bytes:
    text = read_string(value)
    if not text.startswith("\\x"):
        raise UnconvertibleValue
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise UnconvertibleValue from None


def _json(value: Any) -> Any:
    try:
        return sendable_document(value)
    except ValueError:
        raise UnconvertibleValue from None


BY_FORM: Mapping[FormName, ReadImage] = {
    "binary": _binary,
    "boolean": _unchanged(bool),
    "decimal": _decimal,
    "float": _float,
    "hstore": _unchanged(dict),
    "integer": _integer,
    "interval": _interval,
    "json": _json,
    "timestamptz": _timestamptz,
}
"""Converters by wire form (service/datatypes.py); other forms are strings (`read_string`)."""


Packer = Callable[[Change, bool], str]
"""
Encode a change as CBOR, one character per byte; the second argument is the event's `last`.

Raises:
    KeyError, UnconvertibleValue: An image lacks a shown column, or a value cannot be converted exactly.
"""

OPS = ("insert", "update", "delete", "truncate", "touch", "reset")

_INTEGER = (
    f"({COMMON_INTEGERS} integer({{read}}({{v}}))) if {{v}}.__class__ is int"
    " else integer({read}({v}))"
)
_STRING = (
    "TEXTS[len({v})] + {v} if {v}.__class__ is str and len({v}) < SMALL and {v}.isascii()"
    " else text({read}({v}))"
)
WAYS: Mapping[ReadImage, str] = {
    BY_FORM["integer"]: _INTEGER,
    read_string: _STRING,
    BY_FORM["decimal"]: "text({read}({v}))",
    BY_FORM["timestamptz"]: "text({read}({v}))",
    BY_FORM["interval"]: "text({read}({v}))",
    BY_FORM["float"]: "number({read}({v}))",
    BY_FORM["boolean"]: "BOOLEANS[{read}({v})]",
}
"""By converter, the Python expression that encodes a value of an image as CBOR."""
_ANY = "encoded({read}({v}))"

_EXACT = {BY_FORM["integer"], read_string}
"""Converters of values whose equality in Python is exact; 1.0 and 1.00 are equal, but differ."""


def encoded(value: object) -> str:
    """Encode any value as CBOR."""
    return cbor2.dumps(value).decode("latin-1")


@lru_cache(256)
def event_packer(
    schema: str, relation: str, key: tuple[str, ...], columns: tuple[tuple[str, ReadImage], ...]
) -> Packer:
    """
    Compile the function that encodes the changes of a relation as CBOR.

    Args:
        schema: Schema of the relation.
        relation: Name of the relation.
        key: Columns of its primary key; empty if one of them is not shown.
        columns: Columns that are shown, each with its converter.
    """
    names = {name: at for at, (name, _) in enumerate(columns)}
    ways = [
        f"NULL if {{v}} is None else {WAYS.get(read, _ANY).replace('{read}', f'r{at}')}"
        for at, (_, read) in enumerate(columns)
    ]

    def joined(start: str, parts: list[tuple[str, str]]) -> str:
        """Return the expression that encodes a dict: names are constants, values expressions."""
        return " + ".join([repr(start), *(f"{text(name)!r} + {value}" for name, value in parts)])

    # Names are inserted by repr, so no column name can inject code.
    lines = [
        "def packer(change, last):",
        "    _, op, key, old, new, tx, at, tick, place, _, _ = change",
        "    row = before = keyed = NULL",
        "    image = old if new is None else new",
        "    if image is not None:",
    ]
    for at, (name, _) in enumerate(columns):
        lines += [f"        v = image[{name!r}]", f"        c{at} = {ways[at].format(v='v')}"]
    shown = joined(head(MAP, len(columns)), [(name, f"c{at}") for name, at in names.items()])
    lines += [
        f"        row = {shown}",
        "        if new is None:",
        "            row, before = NULL, row",
        "        elif old is not None:",
        "            before, many = '', 0",
    ]
    for at, (name, read) in enumerate(columns):
        unlike = "o != n" if read in _EXACT else "o != n or repr(o) != repr(n)"
        lines += [
            f"            o, n = old[{name!r}], new[{name!r}]",
            f"            if {unlike}:",
            f"                o = {ways[at].format(v='o')}",
            f"                if o != c{at}:",
            f"                    before += {text(name)!r} + o",
            "                    many += 1",
        ]
    lines += ["            before = head(MAP, many) + before"]
    if key:
        lines += [f"    if key is not None and len(key) == {len(key)}:"]
        for at, name in enumerate(key):
            lines += [
                f"        v = key[{at}]",
                f"        k{at} = {ways[names[name]].format(v='v')}",
            ]
        made = joined(head(MAP, len(key)), [(name, f"k{at}") for at, name in enumerate(key)])
        lines += [f"        keyed = {made}"]
    words = {name: repr(text(name)) for name in ("row", "old", "position", "tx", "last", "at")}
    lines += [
        "    position = f'{tick.epoch}.{tick.number}.{place}'",
        f"    return HEADS[op] + keyed + {words['row']} + row + {words['old']} + before"
        f" + {words['position']} + TEXTS[len(position)] + position + {words['tx']} + TEXTS[len(tx)]"
        f" + tx + {words['last']} + BOOLEANS[last] + {words['at']} + TEXTS[len(at)] + at",
    ]
    heads = {
        op: head(MAP, 10)
        + "".join(
            text(name) + text(value)
            for name, value in (("op", op), ("schema", schema), ("relation", relation))
        )
        + text("key")
        for op in OPS
    }
    given = {**vars(pack), "HEADS": heads, "encoded": encoded}
    given |= {f"r{at}": read for at, (_, read) in enumerate(columns)}
    exec("\n".join(lines), given)
    made_packer: Packer = given["packer"]
    return made_packer
