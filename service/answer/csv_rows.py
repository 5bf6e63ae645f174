"""
CSV as PostgreSQL reads it: an empty field without quotes is null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.errors import InvalidArgument

_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|\Z)')

Record = list[str | None]


def header_of(text: str) -> list[str]:
    """
    Read the names in the header of CSV.

    Raises:
        InvalidArgument: It has none, or not the whole of it is here.
    """
    if not re.search(r"[\r\n]", text):
        raise InvalidArgument("the header of the CSV is a whole line", path="csv")
    return [name or "" for name in next(records(text))]


def records(text: str) -> Iterator[Record]:
    """
    Read the records of CSV.

    Raises:
        InvalidArgument: It is none.
    """
    place, record = 0, Record()
    while place < len(text):
        found = _FIELD.match(text, place)
        if found is None:
            raise InvalidArgument("not CSV: a quote stands where none may", path="csv")
        quoted, plain, end = found.groups()
        record.append(quoted.replace('""', '"') if quoted is not None else plain or None)
        place = found.end()
        if end != ",":
            yield record
            record = []
        elif place == len(text):
            yield [*record, None]


class CsvRows:
    """Takes CSV apart that comes in pieces, cut anywhere."""

    def __init__(self) -> None:
        self.begun = False
        self._rest = ""

    def take(self, text: str) -> list[Record]:
        """Give the records that are whole by now."""
        self.begun = True
        text = self._rest + text
        end = text.rfind("\n") + 1
        while end and text.count('"', 0, end) % 2:  # a line that goes on inside quotes
            end = text.rfind("\n", 0, end - 1) + 1
        self._rest = text[end:]
        return list(records(text[:end]))

    def end(self) -> list[Record]:
        """Give the last record, which may lack the end of its line."""
        rest, self._rest = self._rest, ""
        return list(records(rest))
