"""
Rows of a call → the text that COPY reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from service.catalog import Column, Type
from service.db.json_text import check_text
from service.db.values import Codec
from service.errors import InvalidArgument, UnknownName
from service.sql.copy import DEFAULT

NULL = r"\N"


@dataclass(frozen=True, slots=True)
class Text:
    """A value that is PostgreSQL's own text already."""

    text: str


class RowText:
    """
    Writes rows, each value as the codec writes it for any statement.

    Args:
        codec: Writes the values.
        columns: Of the rows, in order.
        types: By their oids.
        whole: Whether each row must have a value for every column.
    """

    def __init__(
        self, codec: Codec, columns: Sequence[Column], types: Callable[[int], Type], whole: bool
    ) -> None:
        self.line = 0
        self._codec = codec
        self._columns = [(each.name, types(each.type), each.has_default) for each in columns]
        self._names = frozenset(each.name for each in columns)
        self._whole = whole

    def encode(self, rows: Sequence[Any], defaults: bool) -> Iterator[bytes]:
        """
        Give a line for each row.

        Args:
            rows: Dicts, or lists with an item for each column.
            defaults: Whether there is a word for the default of a column that a dict lacks.

        Raises:
            InvalidArgument: A row does not fit; `path` and `line` tell which.
        """
        for at, row in enumerate(rows):
            self.line += 1
            try:
                yield self._row(row, defaults).encode()
            except InvalidArgument as refusal:
                tail = refusal.details.get("path")
                refusal.details["path"] = f"rows.{at}.{tail}" if tail else f"rows.{at}"
                refusal.details["line"] = self.line
                raise

    def _row(self, row: Any, defaults: bool) -> str:
        if isinstance(row, Mapping):
            if not row.keys() <= self._names:
                self._refuse_names(row)
            values = [row.get(name, _ABSENT) for name, _, _ in self._columns]
        elif isinstance(row, list | tuple) and len(row) == len(self._columns):
            values = list(row)
        else:
            raise InvalidArgument(
                f"a row is a dict, or a list of as many values as there are columns"
                f" ({len(self._columns)})"
            )
        found = []
        for (name, type, has_default), value in zip(self._columns, values, strict=True):
            if value is _ABSENT or (isinstance(value, dict) and value == {"$default": True}):
                if self._whole or (has_default and not defaults):
                    raise _lacking(name)
                found.append(DEFAULT if has_default else NULL)
                continue
            if isinstance(value, Text):
                found.append(_escaped(check_text(value.text)))
                continue
            try:
                text = self._codec.encode(type, value, name)
            except InvalidArgument as refusal:
                refusal.details["column"] = name
                raise
            found.append(NULL if text is None else _escaped(text))
        return "\t".join(found) + "\n"

    def _refuse_names(self, row: Mapping[Any, Any]) -> NoReturn:
        name = next(name for name in row if name not in self._names)
        names = sorted(self._names)
        raise UnknownName("column", str(name), names, "the import's first rows", str(name))


class CsvText:
    """Passes CSV on as it is."""

    def encode(self, text: str, defaults: bool) -> Iterator[bytes]:
        """
        Give the text's bytes.

        Raises:
            InvalidArgument: PostgreSQL cannot hold it.
        """
        try:
            yield check_text(text).encode()
        except InvalidArgument as refusal:
            refusal.details["path"] = "csv"
            raise


_ABSENT = object()


def _lacking(name: str) -> InvalidArgument:
    return InvalidArgument(
        "each row of this import has a value for every column",
        path=name,
        column=name,
        hint="defaults are filled in by PostgreSQL 16 and later, in a table, without on_conflict",
    )


def _escaped(text: str) -> str:
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text:
        text = text.replace("\n", "\\n")
    if "\t" in text:
        text = text.replace("\t", "\\t")
    return text.replace("\r", "\\r") if "\r" in text else text
