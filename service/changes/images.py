"""
Images of the log → rows as `find` answers them.

The log has a row as PostgreSQL's `row_to_json` wrote it, under settings that the triggers pin
(schema/changes.py). That is not the form of the wire: a numeric is a JSON number there, bytea is a
string. What cannot be told from an image exactly is not guessed: such a row is to be read by its
key.

Changes become CBOR by a function that is compiled once for each relation and what is shown of it: to
make a dict of a change, with dicts of its rows, and to encode that takes more than all else that
`changes` does with it. The bytes are those that `Shown.event` gives, as cbor2 encodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

import cbor2

from service.catalog import Catalog, Relation, Type
from service.changes.net import Change, Image
from service.datatypes import FormName
from service.db import pack
from service.db.json import LEAST, MAX_DEPTH, MOST, sendable_document
from service.db.pack import MAP, head, text
from service.plan.cached_lookups import cached_per_catalog

ReadImage = Callable[[Any], Any]
"""From the value of an image that is not null to that of the wire."""

LONGEST = 200_000
"""Digits of a numeric on either side of its point: PostgreSQL has 131,072 before it at most."""

DIMENSIONS = 6
"""Of an array, at most."""

LONGEST_INTEGER = 21
"""Characters of one of 64 bits, and one more."""


_LACKING = object()
_SAME = frozenset([str, int, bool, type(None)])
"""Types of which equal values are the same: 1.0 and 1.00 are not."""


def differs(one: Any, other: Any) -> bool:
    """Return whether two values of a column are to be told apart: True and 1 are, and 1 and 1.0."""
    if one != other or type(one) is not type(other):
        return True
    # In a document, too.
    return isinstance(one, list | dict) and repr(one) != repr(other)


class Unreadable(Exception):
    """
    An image does not have a value in a form that its type is read from.

    Its type is another one since, or has a cast to json of its own (hstore's is known), or its text
    depends on the session's `search_path` (regclass), or it is a document of too many levels.
    """


@dataclass(frozen=True, slots=True)
class ImageReader:
    """
    Reads the rows of a relation.

    Args:
        columns: What reads the value of each column that is shown.
        levels: How deep lists and dicts may be in a value.
    """

    columns: Mapping[str, ReadImage]
    levels: int

    def row(self, image: Image) -> dict[str, Any]:
        """
        Return the row of an image: of the columns that are shown, those that it has.

        One that it lacks has come, or got its name, since.

        Raises:
            Unreadable: A value is in a form that its type does not have.
        """
        found = {}
        for name, read in self.columns.items():
            value = image.get(name, _LACKING)
            if value is not _LACKING:
                found[name] = None if value is None else read(value)
        return found

    def before(self, image: Image, later: Image, row: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return what a row had in the columns in which it differs now.

        Args:
            image: That it had.
            later: The one that it has.
            row: What that one reads as.

        Raises:
            Unreadable: A value is in a form that its type does not have.
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
        Return the value of one column.

        Raises:
            Unreadable: It is in a form that its type does not have.
        """
        return None if value is None else self.columns[column](value)


@cached_per_catalog
def image_reader(
    catalog: Catalog, relation: Relation, columns: frozenset[tuple[str, int]]
) -> ImageReader:
    """
    Return the reader of a relation's images.

    Args:
        catalog: That has it.
        relation: Whose rows they are.
        columns: Names and types of those that are shown. Virtual generated columns are null in
            images, and so are left out; a column that the catalog does not have, or not of that type,
            cannot be read.
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
    """Return what reads the value of a key; None where it is that of the wire as it stands."""
    form = catalog.plain(type).form
    return BY_FORM[form] if form in ("binary", "decimal", "interval", "timestamptz") else None


def _levels(catalog: Catalog, type: Type) -> int:
    """Return how many lists and dicts may be in each other in a value of a type."""
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
    """Build the reader of arrays: lists in lists are dimensions, or arrays as elements (domains)."""
    element = catalog.plain(catalog.type(type.element))
    while element.kind == "array":
        element = catalog.plain(catalog.type(element.element))
    # Of JSON a list may be an element, and is read like one in each case.
    of = _reader(catalog, element)

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Unreadable
        return [
            None if each is None else read(each) if isinstance(each, list) else of(each)
            for each in value
        ]

    return read


def _record_reader(fields: Mapping[str, ReadImage]) -> ReadImage:
    """Build the reader of composites, whose hidden fields have no name."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(name in value for name in fields if name):
            raise Unreadable
        return {
            name: None if value[name] is None else of(value[name])
            for name, of in fields.items()
            if name
        }

    return read


def _nothing(value: Any) -> Any:
    raise Unreadable


def read_string(value: Any) -> str:
    """Return a value that is a string, as of most types."""
    if not isinstance(value, str):
        raise Unreadable
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unreadable
    return value


def _integer(value: Any) -> int:
    if type(value) is int and LEAST <= value <= MOST:
        return value
    # An oid is a string, and a number a Decimal if another one of its row is too long for int().
    if isinstance(value, str | Decimal):
        text = str(value)
        value = (
            int(text)
            if text.removeprefix("-").isdecimal() and len(text) < LONGEST_INTEGER
            else None
        )
    found = _whole(value)
    if not LEAST <= found <= MOST:
        raise Unreadable
    return found


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise Unreadable
    return value


def _decimal(value: Any) -> str:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise Unreadable
        return value
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < LONGEST:
        return format(value, "f")
    return str(_whole(value))


def _float(value: Any) -> float | str:
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise Unreadable
        return value
    try:
        found = float(value if isinstance(value, Decimal) else _whole(value))
    except OverflowError:
        raise Unreadable from None
    if found - found != 0.0:
        raise Unreadable
    return found


def _timestamptz(value: Any) -> str:
    # Behind the offset of a year before 1 stands BC.
    return read_string(value).replace("+00:00", "Z")


def _interval(value: Any) -> str:
    text = read_string(value)
    if not text.startswith("P") and text.lstrip("-") != "infinity":
        raise Unreadable  # of triggers from before `intervalstyle` was ISO's
    return text


def _binary(value: Any) -> bytes:
    text = read_string(value)
    if not text.startswith("\\x"):
        raise Unreadable
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise Unreadable from None


def _hstore(value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise Unreadable
    return value


def _json(value: Any) -> Any:
    try:
        return sendable_document(value)
    except ValueError:
        raise Unreadable from None


BY_FORM: Mapping[FormName, ReadImage] = {
    "binary": _binary,
    "boolean": _boolean,
    "decimal": _decimal,
    "float": _float,
    "hstore": _hstore,
    "integer": _integer,
    "interval": _interval,
    "json": _json,
    "timestamptz": _timestamptz,
}
"""By form (service/datatypes), where it is not the string itself."""


Packer = Callable[[Change, bool], str]
"""
Return a change, and whether it is the last one of its transaction, as CBOR, a character for each byte.

Raises:
    KeyError, Unreadable: The images do not have exactly the columns that are shown.
"""

OPS = ("insert", "update", "delete", "truncate", "touch", "reset")

_INTEGER = (
    "(INTEGERS[{v}] if 0 <= {v} < SMALL else"
    ' WIDE + {v}.to_bytes(4, "big").decode("latin-1") if 65536 <= {v} < 4294967296 else'
    " integer({read}({v}))) if {v}.__class__ is int else integer({read}({v}))"
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
"""What a value of an image is in CBOR, as an expression, by what reads it."""
_ANY = "encoded({read}({v}))"

_EXACT = {BY_FORM["integer"], read_string}
"""What reads values that are the same where they are equal: 1.0 and 1.00 are not."""


def encoded(value: object) -> str:
    """Return any value as CBOR."""
    return cbor2.dumps(value).decode("latin-1")


@lru_cache(256)
def event_packer(
    schema: str, relation: str, key: tuple[str, ...], columns: tuple[tuple[str, ReadImage], ...]
) -> Packer:
    """
    Compile the function that makes the changes of a relation CBOR.

    Args:
        schema: Of the relation.
        relation: Its name.
        key: The columns of its primary key, if all are shown.
        columns: That are shown, each with what reads it.
    """
    names = {name: at for at, (name, _) in enumerate(columns)}
    ways = [
        f"NULL if {{v}} is None else {WAYS.get(read, _ANY).replace('{read}', f'r{at}')}"
        for at, (_, read) in enumerate(columns)
    ]

    def joined(start: str, parts: list[tuple[str, str]]) -> str:
        """Return the expression of a dict: its names are constants, its values expressions."""
        return " + ".join([repr(start), *(f"{text(name)!r} + {value}" for name, value in parts)])

    # The repr of a string is a literal whatever is in it.
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
