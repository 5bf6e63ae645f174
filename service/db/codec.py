"""
The one codec: PostgreSQL's text ↔ wire values ↔ Python values.

Answers and arguments all pass here, so a value has one form
wherever it appears (docs/values.md). PostgreSQL's text is the middle: what comes in is
written as text for PostgreSQL to judge, what goes out is read from its text, and nothing on
the way to the wire becomes a date or a Decimal.

Rows in a `record` come as JSON with all fields in their order: those that are of a relation with
hidden columns are known by their names, and answered without the hidden fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg2.extensions import cursor

from service.catalog import Catalog, Type
from service.db.decode import Casters
from service.db.encode import Encoders, unfit, wire
from service.db.json import check_text, read_json, repeated_key, shown
from service.db.python import PythonForms
from service.errors import DatabaseRefused, InvalidArgument
from service.plan.conditions import Bound

DUPLICATE_COLUMN = "42701"


def fields_hash(names: Iterable[str]) -> int:
    """Return a hash of the names of all fields of a type, which does not reveal them."""
    return hash(tuple(names))


class HiddenFields:
    """
    The composite types with hidden fields.

    Args:
        catalog: That has them.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._shown = catalog.hidden_fields

    def bare(self, value: Any) -> Any:
        """Return a value of JSON without the hidden fields of the rows in it."""
        if not self._shown:
            return value
        if isinstance(value, list):
            return [self.bare(each) for each in value]
        if not isinstance(value, dict):
            return value
        shown = self._shown.get(fields_hash(value)) or (True,) * len(value)
        return {
            name: self.bare(each)
            for (name, each), seen in zip(value.items(), shown, strict=True)
            if seen
        }


class Codec:
    """
    The forms of values of one catalog; another load of the catalog takes another codec.

    Sessions must run with the settings of `db/session`, which the texts depend on.

    Args:
        catalog: Whose types are met.

    Attributes:
        current: Whether nothing newer is known of the database than that catalog.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.current = True
        self._casters = Casters(catalog)
        self._encoders = Encoders(catalog)
        self.bare = HiddenFields(catalog).bare
        self._forms = PythonForms(catalog, self._encoders)

    def install(self, cursor: cursor) -> None:
        """Register the typecasters on a cursor, so that its rows hold wire values."""
        self._casters.install(cursor)

    def read(self, type: Type, text: str | None) -> Any:
        """Return the wire value of PostgreSQL's text."""
        return None if text is None else self._casters.reader(type)(text)

    def record(self, text: str | None) -> Any:
        """
        Return a row of no known type, given as JSON, without hidden fields.

        Raises:
            DatabaseRefused: Two of its columns share a name, so that a dict would lose one.
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
        return self.bare(read_json(text))

    def encode(self, type: Type, value: Any, path: str) -> str | None:
        """
        Write a wire argument, or a Python value, as text that PostgreSQL reads as the type.

        Args:
            type: What PostgreSQL is to take it for.
            value: As a serializer left it.
            path: Where it stood in the call.

        Raises:
            InvalidArgument: It cannot be of this type; `path` points into it.
        """
        if value is None:
            return None
        try:
            return self._encoders.writer(type)(value)
        except InvalidArgument as refusal:
            raise _below(path, refusal) from None

    def parameters(self, bounds: Sequence[Bound], values: Sequence[Any]) -> list[str | None]:
        """
        Write the values of a call in the order in which a statement binds them.

        Raises:
            InvalidArgument: One of them does not fit.
        """
        return [
            _raw(values[bound.slot], bound.path)
            if bound.raw
            else self.encode(bound.type, values[bound.slot], bound.path)
            for bound in bounds
        ]

    def python(self, type: Type, value: Any, path: str) -> Any:
        """
        Return the Python value that a model sees for a wire argument.

        Raises:
            InvalidArgument: It cannot be of this type.
        """
        if value is None:
            return None
        try:
            return self._forms.maker(type)(value)
        except InvalidArgument as refusal:
            raise _below(path, refusal) from None

    def wire(self, value: Any) -> Any:
        """
        Return the wire form of a Python value.

        Raises:
            TypeError: There is none.
        """
        return wire(value)


def _raw(value: Any, path: str) -> str | None:
    """Return PostgreSQL's own text, which a caller may have tampered with."""
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise unfit(value, "a string")
        return check_text(value)
    except InvalidArgument as refusal:
        raise _below(path, refusal) from None


def _below(path: str, refusal: InvalidArgument) -> InvalidArgument:
    tail = refusal.details.get("path")
    refusal.details["path"] = f"{path}.{tail}" if tail else path
    return refusal
