"""
PostgreSQL's text of arrays, composites and hstore: parsed and formatted.

The parsers accept the output of array_out, record_out and hstore_out, the formatters write input for the
server. Elements are texts; their types are decoded elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Read = Callable[[str], Any]
"""Decodes an element's text."""

MAX_DIMENSIONS = 6
"""PostgreSQL's MAXDIM."""

# PostgreSQL's white space; str.strip() would also remove others, such as a no-break space.
_SPACE = " \t\n\r\v\f"
_BOUNDS = re.compile(r"^(?:\[[-+]?\d+(?::[-+]?\d+)?\])+=")

# Possessive and by runs: matched character by character, a text of some megabytes blocked all other
# threads for seconds.
_ARRAY_TOKENS = {
    delimiter: re.compile(
        rf'\s*(?:(?P<mark>[{{}}{delimiter}])|"(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)"'
        rf'|(?P<plain>(?:[^"\\{{}}{delimiter}]++|\\.)++))',
        re.DOTALL | re.ASCII,  # PostgreSQL's white space is ASCII only
    )
    for delimiter in ",;"
}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_FIELD = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"|([^,"]*)')
_PAIR = re.compile(
    r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"=>(?:NULL|"([^"\\]*+(?:\\.[^"\\]*+)*+)")(?:, |$)',
    re.DOTALL | re.IGNORECASE,
)


def read_array(text: str, read: Read, delimiter: str = ",") -> list[Any]:
    """
    Parse an array into nested lists, without its lower bounds.

    Raises:
        ValueError: The text is not an array.
    """
    tokens = _ARRAY_TOKENS[delimiter]
    text, place = without_bounds(text.strip(_SPACE)), 0
    open_lists: list[list[Any]] = [[]]
    while place < len(text):
        token = tokens.match(text, place)
        if token is None:
            raise ValueError("not an array")
        place = token.end()
        kind, word = token.lastgroup, token[token.lastgroup or 0]
        if word == "{" and kind == "mark":
            open_lists.append([])
        elif word == "}" and kind == "mark":
            if len(open_lists) < 2:
                raise ValueError("not an array")
            closed = open_lists.pop()
            open_lists[-1].append(closed)
        elif kind != "mark":
            open_lists[-1].append(_element(kind == "quoted", word, read))
    if len(open_lists) != 1 or len(open_lists[0]) != 1 or not isinstance(open_lists[0][0], list):
        raise ValueError("not an array")
    return open_lists[0][0]


def without_bounds(text: str) -> str:
    """Return an array's text without lower bounds, such as "[2:3]=" of "[2:3]={1,2}"."""
    return _BOUNDS.sub("", text)


def _element(quoted: bool, word: str, read: Read) -> Any:
    if not quoted:
        word = word.rstrip(_SPACE)
        if word.upper() == "NULL":
            return None
    return read(_ESCAPED.sub(r"\1", word) if "\\" in word else word)


def read_composite(text: str) -> list[str | None]:
    """
    Parse a row into the texts of its fields.

    Raises:
        ValueError: The text is not a row.
    """
    if not (text.startswith("(") and text.endswith(")")):
        raise ValueError("not a row")
    body = text[1:-1]
    found: list[str | None] = []
    place = 0
    while True:
        field = _FIELD.match(body, place)
        assert field is not None
        quoted, plain = field.groups()
        if quoted is None:
            # An unquoted empty field is null; an empty string is quoted.
            found.append(plain or None)
        else:
            # In a row, quotes and backslashes are doubled; in an array, both have a backslash before them.
            found.append(quoted.replace('""', '"').replace("\\\\", "\\"))
        place = field.end()
        if place == len(body):
            return found
        if body[place] != ",":
            raise ValueError("not a row")
        place += 1


def read_hstore(text: str) -> dict[str, str | None]:
    """
    Parse an hstore.

    Raises:
        ValueError: The text is not an hstore.
    """
    found: dict[str, str | None] = {}
    place = 0
    while place < len(text):
        pair = _PAIR.match(text, place)
        if pair is None:
            raise ValueError("not an hstore")
        key, value = pair.groups()
        found[_ESCAPED.sub(r"\1", key)] = None if value is None else _ESCAPED.sub(r"\1", value)
        place = pair.end()
    return found


def write_array(items: Iterable[Any], delimiter: str = ",") -> str:
    """Format nested lists of texts and None as an array."""
    parts = [
        "NULL"
        if item is None
        else _escaped(item)
        if isinstance(item, str)
        else write_array(item, delimiter)
        for item in items
    ]
    return "{" + delimiter.join(parts) + "}"


def write_composite(fields: Sequence[str | None]) -> str:
    """Format the texts of fields as a row."""
    return "(" + ",".join("" if field is None else _escaped(field) for field in fields) + ")"


def write_hstore(pairs: Mapping[str, str | None]) -> str:
    """Format an hstore."""
    return ",".join(
        f"{_escaped(key)}=>{'NULL' if value is None else _escaped(value)}"
        for key, value in pairs.items()
    )


def _escaped(text: str) -> str:
    # Always quoted, so that no text is taken for NULL or for a delimiter.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
