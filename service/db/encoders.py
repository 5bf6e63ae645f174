"""
Wire arguments → PostgreSQL's input text, by type.

Strict where a mistake would be stored in silence (a boolean for a text, a list for a
number), and otherwise open to whatever text PostgreSQL takes for the type. Nothing here
raises anything but `InvalidArgument`, whose `path` is relative to the value.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from service.catalog import Catalog, Type
from service.db.casters import is_hstore
from service.db.containers import array_text, by_parts, composite_text, hstore_text
from service.db.json_text import check_text, write_json
from service.db.python_values import python_text
from service.errors import InvalidArgument
from service.plan.hidden import is_veiled
from service.sql.statement import quoted

Write = Callable[[Any], str]

INTEGERS = {
    "int2": (-(2**15), 2**15 - 1),
    "int4": (-(2**31), 2**31 - 1),
    "int8": (-(2**63), 2**63 - 1),
    "oid": (0, 2**32 - 1),
}
_DIGITS = re.compile(r"\s*([+-]?)0*([0-9]+)\s*", re.ASCII)
_OTHER_FORM = re.compile(
    r"\s*[+-]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9]+(?:_[0-9]+)+)\s*", re.ASCII
)
_BOOLEANS = frozenset(
    [
        *("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"),
        *("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"),
    ]
)
"""The words of PostgreSQL's parse_bool."""


def kind_of(value: object) -> str:
    """Name what a caller sent, as the caller would."""
    names: Mapping[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        bytes: "binary",
        list: "a list",
        dict: "a dict",
    }
    return names.get(type(value), f"a {type(value).__name__[:40]}")


def unfit(value: object, wanted: str) -> InvalidArgument:
    """Word that a value is of the wrong sort."""
    return InvalidArgument(f"expected {wanted}, got {kind_of(value)}")


def integer_text(least: int, most: int) -> Write:
    """Give what writes integers of a range."""

    def write(value: Any) -> str:
        if isinstance(value, str):
            return _integer_word(value, least, most)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise unfit(value, "an integer")
        if not least <= value <= most:
            raise InvalidArgument(f"not between {least} and {most}")
        return str(int(value))

    return write


def _integer_word(word: str, least: int, most: int) -> str:
    check_text(word)
    found = _DIGITS.fullmatch(word)
    if found is None:
        if _OTHER_FORM.fullmatch(word):
            return word
        raise InvalidArgument("expected an integer, got a string that is none")
    sign, digits = found.groups()
    value = int(sign + digits) if len(digits) < 20 else None
    if value is None or not least <= value <= most:
        raise InvalidArgument(f"not between {least} and {most}")
    return word


def number_text(value: Any) -> str:
    """Write a numeric, float or money."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise unfit(value, "a number or a string")
    return _digits(value)


def _digits(value: int | float | Decimal) -> str:
    try:
        return repr(float(value)) if isinstance(value, float) else str(value)
    except ValueError:  # Python writes integers of at most 4,300 digits
        raise InvalidArgument("an integer with too many digits; send it as a string") from None


def boolean_text(value: Any) -> str:
    """Write a boolean; the words are those of PostgreSQL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return value
    raise unfit(value, "true or false")


def string_text(value: Any) -> str:
    """Write text; a number is taken as its digits."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument("expected a string, got a number that is not finite")
        return _digits(value)
    return word_text(value)


def word_text(value: Any) -> str:
    """Write what has its own form as a string: dates, uuids, ranges, addresses, …"""
    if isinstance(value, str):
        return check_text(value)
    text = python_text(value)
    if text is None:
        raise unfit(value, "a string")
    return text


def bytes_of(value: Any) -> bytes:
    """Give the bytes of any form of binary that a serializer leaves."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if type(value).__name__ == "CBORTag" and getattr(value, "tag", None) == 64:
        return bytes_of(value.value)
    if isinstance(value, str):
        try:
            if value.startswith("\\x"):
                return bytes.fromhex(value[2:])
            if value.startswith("\0"):
                return base64.b64decode(value[1:].encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            pass
        raise InvalidArgument(
            "expected binary, got a string that is none",
            hint='send bytes, "\\x" and hexadecimal digits, or "\\0" and base64',
        )
    raise unfit(value, "binary")


def bytes_text(value: Any) -> str:
    """Write bytea."""
    return "\\x" + bytes_of(value).hex()


class Encoders:
    """
    What writes values, by type, made when first needed.

    Args:
        catalog: Whose types are met.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._writers: dict[int, Write] = {}

    def writer(self, type: Type) -> Write:
        """Give what writes values of a type; they are not None."""
        found = self._writers.get(type.oid)
        if found is None:
            found = self._writers[type.oid] = self._made(self._catalog.plain(type))
        return found

    def _made(self, type: Type) -> Write:
        write = self._written(type)
        if is_veiled(self._catalog, type.oid):
            return by_parts(write, "it has hidden fields")
        if type.kind != "base" and self._catalog.looks_up(type):
            return by_parts(write, "its text would have PostgreSQL look names up")
        return write

    def _written(self, type: Type) -> Write:
        if type.kind == "array":
            element = self._catalog.type(type.element)
            under = self._catalog.plain(element)
            lists_are_elements = under.kind == "array" or under.name in ("json", "jsonb")
            return array_text(
                self.writer(element), element.delimiter, 1 if lists_are_elements else 6
            )
        if type.kind == "composite":
            fields = [(name, self.writer(self._catalog.type(oid))) for name, oid in type.fields]
            return composite_text(fields, f"type {type.name}", type.withheld)
        if is_hstore(type):
            return hstore_text
        if type.schema == "pg_catalog" and type.name in WRITERS:
            return WRITERS[type.name]
        if self._catalog.looks_up(type):
            return self._name_text(type)
        if type.kind == "base":
            return {"S": string_text, "N": number_text}.get(type.category, word_text)
        return word_text

    def _name_text(self, type: Type) -> Write:
        """Give what writes names that PostgreSQL looks up: it would find what is not served too."""
        catalog = self._catalog
        if type.name in ("regconfig", "regdictionary", "regcollation"):
            return word_text
        known = {"-": "-"}
        if type.name == "regtype":
            known |= {word: each.sql for word, each in catalog.castable.items()}
        elif type.name == "regnamespace":
            known |= {schema: quoted(schema) for schema in catalog.schemas}
        elif type.name in ("regclass", "regproc"):
            homes = catalog.relations if type.name == "regclass" else catalog.functions
            for schema, name in homes:
                spelled = f"{quoted(schema)}.{quoted(name)}"
                known |= {f"{schema}.{name}": spelled, spelled: spelled}
                if schema == next(home for home in catalog.schemas if (home, name) in homes):
                    known |= {name: spelled, quoted(name): spelled}

        def write(value: Any) -> str:
            word = word_text(value)
            if word not in known:
                raise InvalidArgument(f"nothing served has this name, as {type.sql} has it")
            return known[word]

        return write


WRITERS: Mapping[str, Write] = {
    **{name: integer_text(*ends) for name, ends in INTEGERS.items()},
    **dict.fromkeys(("json", "jsonb"), write_json),
    "bool": boolean_text,
    "bytea": bytes_text,
}
"""By `typname` in pg_catalog; others go by their category."""
