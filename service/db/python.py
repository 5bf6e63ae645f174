"""
Wire arguments → the Python values that models see.

Dates become dates, numerics Decimals, binary bytes. What Python's types cannot hold
(infinity, years before 1, months in an interval) stays PostgreSQL's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from service.catalog import Catalog, Type
from service.datatypes import FormName
from service.db.encode import Encoders, bytes_of, hstore_of, row_of
from service.db.json import within, write_json
from service.db.literals import read_array, read_composite, read_hstore
from service.errors import InvalidArgument

Make = Callable[[Any], Any]
"""What makes a Python value of a wire value that is not None."""

_DURATION = re.compile(
    r"P(?:(?P<days>-?\d+)D)?"
    r"(?:T(?:(?P<hours>-?\d+)H)?(?:(?P<minutes>-?\d+)M)?(?:(?P<seconds>-?\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


def to_integer(text: str) -> int:
    """Read an integer in any form that PostgreSQL takes."""
    try:
        return int(text)
    except ValueError:
        return int(text, 0)


def to_boolean(text: str) -> bool:
    """Read one of PostgreSQL's words for true and false."""
    word = text.strip().lower()
    return word == "on" or word[0] in "ty1"


def to_date(text: str) -> date | str:
    """Read a date, or give back what is none to Python."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def to_time(text: str) -> time | str:
    """Read a time of day."""
    try:
        return time.fromisoformat(text)
    except ValueError:
        return text


def to_timestamp(text: str) -> datetime | str:
    """Read a moment without a zone; PostgreSQL drops one that is given, and so do we."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return text


def to_timestamptz(text: str) -> datetime | str:
    """Read a moment, in UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return text


def to_interval(text: str) -> timedelta | str:
    """Read a duration of days and less; a month has no length to Python."""
    found = _DURATION.fullmatch(text)
    if found is None:
        return text
    try:
        return timedelta(**{unit: float(n) for unit, n in found.groupdict("0").items()})
    except OverflowError:
        return text


BY_TEXT: Mapping[FormName, Callable[[str], Any]] = {
    "integer": to_integer,
    "float": float,
    "boolean": to_boolean,
    "date": to_date,
    "decimal": Decimal,
    "interval": to_interval,
    "time": to_time,
    "timestamp": to_timestamp,
    "timestamptz": to_timestamptz,
}
"""By form (service/datatypes): from PostgreSQL's input text."""


class PythonForms:
    """
    What makes Python values, by type, made when first needed.

    Args:
        catalog: Whose types are met.
        encoders: Which know what PostgreSQL would take.
    """

    def __init__(self, catalog: Catalog, encoders: Encoders) -> None:
        self._catalog = catalog
        self._encoders = encoders
        self._makers: dict[int, Make] = {}

    def maker(self, type: Type) -> Make:
        """Return the function that makes values of a type."""
        found = self._makers.get(type.oid)
        if found is None:
            found = self._makers[type.oid] = self._made(self._catalog.plain(type))
        return found

    def _made(self, type: Type) -> Make:
        if type.kind == "array":
            return self._array_maker(type)
        if type.kind == "composite":
            return self._row_maker(type)
        if type.form == "hstore":
            return lambda value: (
                _read(read_hstore, value) if isinstance(value, str) else hstore_of(value)
            )
        write = self._encoders.writer(type)
        if type.form == "binary":
            return bytes_of
        if type.form == "json":
            return _json
        read = BY_TEXT.get(type.form)
        return write if read is None else lambda value: _read(read, write(value))

    def _array_maker(self, type: Type) -> Make:
        element = self._catalog.type(type.element)
        write, make = self._encoders.writer(type), self.maker(element)
        under = self._catalog.plain(element)
        flat = under.kind == "array" or under.form == "json"

        def build(items: Any) -> list[Any]:
            return [
                None
                if item is None
                else build(item)
                if isinstance(item, (list, tuple)) and not flat
                else make(item)
                for item in items
            ]

        def read(value: Any) -> list[Any]:
            text = write(value)
            if isinstance(value, str):
                return _read(lambda literal: read_array(literal, make, element.delimiter), text)
            return build(value)

        return read

    def _row_maker(self, type: Type) -> Make:
        makers = {name: self.maker(self._catalog.type(oid)) for name, oid in type.fields if name}

        def read(value: Any) -> dict[str, Any]:
            given = row_of(
                _read(read_composite, value) if isinstance(value, str) else value,
                list(makers),
                f"type {type.name}",
            )
            row: dict[str, Any] = dict.fromkeys(makers)
            for name, item in given.items():
                try:
                    row[name] = None if item is None else makers[name](item)
                except InvalidArgument as refusal:
                    raise within(refusal, name) from None
            return row

        return read


def _json(value: Any) -> Any:
    write_json(value)
    return value


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except (ValueError, InvalidOperation):
        raise InvalidArgument("not a value of its type") from None
