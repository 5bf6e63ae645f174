"""
A parser of CSV by PostgreSQL's rules (an empty field without quotes is null), for CSV that comes in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.errors import InvalidArgument

MAX_RECORD = 1 << 20
"""
Maximum length of a record that comes in pieces, in characters.

An incomplete record is kept and parsed again with the next piece. Without a limit a quote that is never
closed would make the service keep, and parse again, ever more text.
"""

# The quantifiers are possessive (`*+`): else a quote that is never closed is tried again with each shorter match.
_FIELD = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))(,|\r\n|\n|\r|\Z)')

Record = list[str | None]


def complete(text: str) -> int:
    """
    Return the offset at which the last complete record of CSV ends; 0 if no record is complete.

    Raises:
        InvalidArgument: The incomplete record behind it is longer than `MAX_RECORD`.
    """
    ending = "\n" if "\n" in text else "\r"
    place = len(text) - text.endswith("\r")  # its "\n" may be in the next piece
    quotes = text.count('"')
    least = len(text) - MAX_RECORD
    # Backwards: the last complete record ends close to the end of the piece.
    while place > least:
        behind, place = place, text.rfind(ending, 0, place)
        quotes -= text.count('"', place + 1, behind)
        if place < 0:
            break
        if not quotes % 2:  # an odd number of quotes before it: the line end is inside a field
            return place + 1
    if len(text) <= MAX_RECORD:
        return 0
    raise InvalidArgument(
        f"a record of the CSV is longer than {MAX_RECORD} characters, or a quote is not closed",
        path="csv",
    )


def split(text: str, last: bool) -> tuple[list[Record], str]:
    """
    Split a piece of CSV, cut anywhere, into records.

    Args:
        text: What the previous piece has left, and the piece.
        last: Whether this is the last piece; its last record may lack the line end.

    Returns:
        The complete records, and the text that is left.
    """
    end = len(text) if last else complete(text)
    return list(records(text[:end])), text[end:]


def header_of(text: str) -> list[str]:
    """
    Return the names in the header of CSV whose first record is complete.

    Raises:
        InvalidArgument: The text is not CSV.
    """
    return [name or "" for name in next(records(text))]


def records(text: str) -> Iterator[Record]:
    """
    Yield the records of CSV.

    Raises:
        InvalidArgument: The text is not CSV.
    """
    place, record = 0, Record()
    while place < len(text):
        found = _FIELD.match(text, place)
        if found is None:
            raise InvalidArgument(
                "not CSV: a quote is not closed, or stands beside other characters", path="csv"
            )
        quoted, plain, end = found.groups()
        record.append(quoted.replace('""', '"') if quoted is not None else plain or None)
        place = found.end()
        if end != ",":
            yield record
            record = []
        # The text ends with a comma: the empty field after it has no text that would match.
        elif place == len(text):
            yield [*record, None]
