"""
The codec: PostgreSQL's text ↔ wire values ↔ Python values.

All answers and arguments pass through it, so a value has one form wherever it appears
(docs/values.md). Arguments are written as text, which PostgreSQL checks; answers are decoded from
PostgreSQL's text, without dates or Decimals in between.

Models get Python values: dates, Decimals, bytes. Values that Python's types cannot represent (infinity,
years before 1, months in an interval) stay PostgreSQL's text.

For integers, booleans and all types whose wire form is PostgreSQL's text, psycopg2 uses typecasters
in C. Those of other types are Python functions. Composites and arrays are decoded by the typecasters of
their parts.

Rows in a `record` come as JSON with all their fields. A row of a relation with hidden columns is
recognized by the names of its fields, and its hidden fields are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from functools import cached_property, partial
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
from service.db.encode import (
    WRITERS,
    Convert,
    Write,
    array_text,
    by_parts,
    bytes_of,
    composite_text,
    each_element,
    each_field,
    hstore_of,
    integer_text,
    name_text,
    plain_text,
    python_text,
    wrong_type,
)
from service.db.json import (
    LEAST,
    MOST,
    check_text,
    read_json,
    repeated_key,
    shown,
    under_path,
    write_json,
)
from service.db.literals import (
    MAX_DIMENSIONS,
    read_array,
    read_composite,
    read_hstore,
    without_bounds,
)
from service.errors import DatabaseRefused, InvalidArgument, Unavailable
from service.plan.plans import Bound
from service.plan.scope import has_hidden_field
from service.request.synonyms import value_hint

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


_DURATION = re.compile(
    r"P(?:(?P<days>-?\d+)D)?"
    r"(?:T(?:(?P<hours>-?\d+)H)?(?:(?P<minutes>-?\d+)M)?(?:(?P<seconds>-?\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


def to_integer(text: str) -> int:
    """Parse an integer in any form that PostgreSQL accepts."""
    try:
        return int(text)
    except ValueError:
        # Only as a second attempt, because base 0 refuses a leading zero, as in "010".
        return int(text, 0)


def to_boolean(text: str) -> bool:
    """Parse a boolean in any form that PostgreSQL accepts."""
    word = text.strip().lower()
    return word == "on" or word[0] in "ty1"


def to_timestamp(text: str) -> datetime:
    """Parse a timestamp without time zone; an offset is ignored, as by PostgreSQL."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


def to_timestamptz(text: str) -> datetime:
    """Parse a timestamptz; without an offset it is in UTC."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def to_interval(text: str) -> timedelta:
    """
    Parse an interval of days and smaller units.

    Raises:
        ValueError: It has years or months, which a timedelta cannot represent.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{unit: float(n) for unit, n in found.groupdict("0").items()})


def or_text(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Build a parser that returns the text itself if Python's type cannot represent its value."""

    def read_or_keep(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, OverflowError):
            return text

    return read_or_keep


PYTHON_READERS: Mapping[FormName, Callable[[str], Any]] = {
    "integer": to_integer,
    "float": float,
    "boolean": to_boolean,
    "date": or_text(date.fromisoformat),
    "decimal": Decimal,
    "interval": or_text(to_interval),
    "time": or_text(time.fromisoformat),
    "timestamp": or_text(to_timestamp),
    "timestamptz": or_text(to_timestamptz),
}
"""By form (service/datatypes), the reader of PostgreSQL's input text as a Python value; others stay text."""


def wire(value: Any) -> Any:
    """
    Return the wire form of a Python value; lists and dicts are converted recursively.

    Raises:
        TypeError: The value has no wire form.
    """
    if value is None or type(value) in _AS_IS:
        return value
    if isinstance(value, dict):
        return {_key(key): wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [wire(item) for item in value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    text = python_text(value)
    if text is not None:
        return text
    if isinstance(value, int) and not isinstance(value, Enum):
        return int(value) if LEAST <= value <= MOST else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _not_finite(value)
    if isinstance(value, Enum):
        return wire(value.value)
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    raise TypeError(f"no wire form for a value of type {type(value).__name__}")


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"no wire form for a dict with a key of type {type(key).__name__}")
    return str(key)


_AS_IS = frozenset([str, bool, bytes])


DUPLICATE_COLUMN = "42701"


def fields_hash(names: Iterable[str]) -> int:
    """Return a hash of the names of all fields of a type, which does not reveal them."""
    return hash(tuple(names))


@dataclass(frozen=True, slots=True)
class TypeCodec:
    """
    The conversions of one type; none of them is called with null.

    Args:
        read: PostgreSQL's text to the wire value.
        write: A wire or Python value to PostgreSQL's text.
        python: A wire value to the Python value.
    """

    read: Read
    write: Write
    python: Convert


class Codec:
    """
    Conversions of the types of one catalog; a newer catalog has a codec of its own.

    Sessions need the settings of `db/session_settings`, on which PostgreSQL's texts depend.

    Args:
        catalog: The catalog.

    Attributes:
        current: False once a newer catalog is known.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.current = True
        self._catalog = catalog
        self._types: dict[int, TypeCodec] = {}
        self._casters = casters(catalog, lambda type: self._codec_of(type).read)

    def install(self, cursor: cursor) -> None:
        """Register the typecasters on a cursor, so that its rows hold wire values."""
        install(self._casters, cursor)

    def forms(self, cursor: cursor) -> tuple[FormName, ...]:
        """Return the forms of a result's columns, as its typecasters have decoded them."""
        forms = self._forms
        return tuple(forms.get(column.type_code, "record") for column in cursor.description or ())

    @cached_property
    def _forms(self) -> Mapping[int, FormName]:
        """The forms of the types whose values do not consist of others, by oid."""
        types = self._catalog.types.values()
        return {each.oid: each.form for each in types if each.kind in ("base", "enum")}

    def read(self, type: Type, text: str | None) -> Any:
        """Return the wire value of PostgreSQL's text."""
        return None if text is None else self._codec_of(type).read(text)

    def record(self, text: str | None) -> Any:
        """
        Return a row whose type is not known, given as JSON, without hidden fields.

        Raises:
            DatabaseRefused: Two of its columns have one name, and a dict would lose one of them.
        """
        if text is None:
            return None
        twice = repeated_key(text)
        if twice is not None:
            raise DatabaseRefused(
                f'the function returns two columns with the name "{shown(twice)}"',
                hint="name each in the function, as in SELECT 1 AS a, 2 AS b",
                sqlstate=DUPLICATE_COLUMN,
            )
        row = read_json(text)
        return self._without_hidden(row) if self._catalog.hidden_fields else row

    def encode(self, type: Type, value: Any, path: str) -> str | None:
        """
        Encode a wire argument, or a Python value, as PostgreSQL's input text of a type.

        Args:
            type: PostgreSQL type of the value.
            value: The value, as a serializer has decoded it.
            path: Path of the value in the call.

        Raises:
            InvalidArgument: The value is not of the type; `path` points into it.
        """
        if value is None:
            return None
        try:
            # Inlined, because it runs for each value of each call: a frame is 5 % of encoding a number.
            codec = self._types.get(type.oid) or self._codec_of(type)
            return codec.write(value)
        except InvalidArgument as refusal:
            raise _refused(refusal, type, value, path) from None

    def parameters(self, bounds: Sequence[Bound], values: Sequence[Any]) -> list[str | None]:
        """
        Encode the values of a call, in the order of a statement's parameters.

        Raises:
            InvalidArgument: A value is not of its parameter's type.
        """
        return [
            _raw(values[bound.slot], bound.path)
            if bound.raw
            else self.encode(bound.type, values[bound.slot], bound.path)
            for bound in bounds
        ]

    def python(self, type: Type, value: Any, path: str) -> Any:
        """
        Return the Python value of a wire argument, for a model.

        Raises:
            InvalidArgument: The value is not of the type.
        """
        if value is None:
            return None
        try:
            return self._codec_of(type).python(value)
        except InvalidArgument as refusal:
            raise _refused(refusal, type, value, path) from None

    wire = staticmethod(wire)

    def _without_hidden(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._without_hidden(each) for each in value]
        if not isinstance(value, dict):
            return value
        seen = self._catalog.hidden_fields.get(fields_hash(value)) or (True,) * len(value)
        return {
            name: self._without_hidden(each)
            for (name, each), shows in zip(value.items(), seen, strict=True)
            if shows
        }

    def _codec_of(self, type: Type) -> TypeCodec:
        found = self._types.get(type.oid)
        if found is None:
            found = self._types[type.oid] = self._build(self._catalog.plain(type))
        return found

    def _build(self, type: Type) -> TypeCodec:
        catalog = self._catalog
        if type.kind == "array":
            codec = self._array(type)
        elif type.kind == "composite":
            codec = self._composite(type)
        else:
            return _base(type, name_text(catalog, type) if catalog.looks_up(type) else None)
        if has_hidden_field(catalog, type.oid):
            why = "it has hidden fields"
        elif catalog.looks_up(type):
            why = "its text would have PostgreSQL look names up"
        else:
            return codec
        return TypeCodec(codec.read, by_parts(codec.write, why), by_parts(codec.python, why))

    def _array(self, type: Type) -> TypeCodec:
        element = self._catalog.type(type.element)
        of, under = self._codec_of(element), self._catalog.plain(element)
        # Of a domain over an array, or of JSON, a list inside the list is an element, no dimension.
        lists_are_elements = under.kind == "array" or under.form == "json"
        dimensions = 1 if lists_are_elements else MAX_DIMENSIONS
        write = array_text(of.write, under.delimiter, dimensions)
        read_python = partial(read_array, read=of.python, delimiter=under.delimiter)

        def python(value: Any) -> list[Any]:
            if isinstance(value, str):
                return _from_text(read_python, write, value)
            return each_element(value, of.python, dimensions)[0]

        read = partial(read_array, read=of.read, delimiter=under.delimiter)
        return TypeCodec(read, write, python)

    def _composite(self, type: Type) -> TypeCodec:
        names = [name for name, _ in type.fields]
        parts = [self._codec_of(self._catalog.type(oid)) for _, oid in type.fields]
        values = each_field(type, [each.python for each in parts])

        def python(value: Any) -> dict[str, Any]:
            given = _from_text(read_composite, str, value) if isinstance(value, str) else value
            return {name: item for name, item in zip(names, values(given), strict=True) if name}

        return TypeCodec(
            row_reader(names, [each.read for each in parts]),
            composite_text(each_field(type, [each.write for each in parts])),
            python,
        )


def _base(type: Type, write: Write | None) -> TypeCodec:
    """Return the conversions of a scalar type; `write` is given for names that PostgreSQL looks up."""
    form, limits = type.form, type.data_type.limits
    if write is None:
        write = integer_text(*limits) if limits else WRITERS.get(form, plain_text)
    by_text = PYTHON_READERS.get(form)
    python = partial(_from_text, by_text, write) if by_text else PYTHON_OF.get(form, write)
    return TypeCodec(READERS.get(form, str), write, python)


def _hstore(value: Any) -> dict[str, str | None]:
    return _from_text(read_hstore, str, value) if isinstance(value, str) else hstore_of(value)


def _json(value: Any) -> Any:
    write_json(value)  # raises for a value that PostgreSQL would refuse
    return value


PYTHON_OF: Mapping[FormName, Convert] = {"binary": bytes_of, "hstore": _hstore, "json": _json}
"""By form, the check of wire values that are not strings, which models get as they are."""


def _from_text(read: Read, write: Write, value: Any) -> Any:
    try:
        return read(write(value))
    except (ValueError, InvalidOperation):
        raise InvalidArgument("not a value of its type") from None


def _refused(refusal: InvalidArgument, type: Type, value: Any, path: str) -> InvalidArgument:
    hint = value_hint(path, value, type.kind == "array")
    if hint:
        refusal.details.setdefault("hint", hint)
    return under_path(refusal, path)


def _raw(value: Any, path: str) -> str | None:
    """Return PostgreSQL's own text, out of a token that a caller may have tampered with."""
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise wrong_type(value, "a string")
        return check_text(value)
    except InvalidArgument as refusal:
        raise under_path(refusal, path) from None
