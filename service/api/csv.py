"""
CSV as PostgreSQL reads it: an empty field without quotes is null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.errors import InvalidArgument

MAX_RECORD = 1 << 20
"""
Characters of a record that comes in pieces.

What lacks its end is kept, and read again with the piece that follows: a quote that never
closes must not make us keep, and read, ever more.
"""

# Possessive (`*+`): else a quote that is never closed is tried in every way to take the pairs.
_FIELD = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))(,|\r\n|\n|\r|\Z)')

Record = list[str | None]


def whole(text: str) -> int:
    """
    Return where the last complete record of CSV ends; 0 if none does.

    Raises:
        InvalidArgument: What comes behind it is too long to wait for its end.
    """
    ending = "\n" if "\n" in text else "\r"
    place = len(text) - text.endswith("\r")  # whose "\n" may be still to come
    quotes = text.count('"')
    least = len(text) - MAX_RECORD
    # From the end: where a piece is cut, its last whole record ends close by.
    while place > least:
        behind, place = place, text.rfind(ending, 0, place)
        quotes -= text.count('"', place + 1, behind)
        if place < 0:
            break
        if not quotes % 2:  # else it stands inside quotes
            return place + 1
    if len(text) <= MAX_RECORD:
        return 0
    raise InvalidArgument(
        f"a record of the CSV is longer than {MAX_RECORD} characters, or a quote is not closed",
        path="csv",
    )


def split(text: str, last: bool) -> tuple[list[Record], str]:
    """
    Split CSV that comes in pieces, cut anywhere, into records.

    Args:
        text: A piece, behind what the one before it has left.
        last: Whether no more comes; the last record may lack the end of its line.

    Returns:
        The records that are whole, and what is left.
    """
    end = len(text) if last else whole(text)
    return list(records(text[:end])), text[end:]


def header_of(text: str) -> list[str]:
    """
    Read the names in the header of CSV, whose first record is whole.

    Raises:
        InvalidArgument: It is no CSV.
    """
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
        # A comma ends the text: the empty field behind it has no text of its own to match.
        elif place == len(text):
            yield [*record, None]
