"""
Rows of single values as CBOR, by a function that is compiled once for each list of columns.

An encoder that looks at every value takes five times as long, half of what an answer of a thousand rows
costs. The bytes are those that cbor2 gives.

CBOR is made as a string with a character for each byte (latin-1), since Python joins strings in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from struct import pack
from typing import Any

from service.datatypes import FormName
from service.errors import TooLarge

Row = tuple[Any, ...]

TEXT, ARRAY, MAP, SMALL = 3, 4, 5, 256
PART = 256
"""Rows that are made at a time."""
"""Major types of CBOR; and strings and integers whose heads are looked up."""


def head(major: int, number: int) -> str:
    """Return what a value of a major type begins with: the type and a number below 2^64."""
    kind = major << 5
    if number < 24:
        return chr(kind | number)
    if number < 1 << 8:
        return chr(kind | 24) + chr(number)
    if number < 1 << 16:
        return ((kind | 25) << 16 | number).to_bytes(3, "big").decode("latin-1")
    if number < 1 << 32:
        return ((kind | 26) << 32 | number).to_bytes(5, "big").decode("latin-1")
    return ((kind | 27) << 64 | number).to_bytes(9, "big").decode("latin-1")


def text(value: str) -> str:
    """Return a string as CBOR."""
    data = value.encode()
    return head(TEXT, len(data)) + data.decode("latin-1")


def integer(value: int) -> str:
    """Return an integer of 64 bits as CBOR."""
    return head(0, value) if value >= 0 else head(1, -1 - value)


def number(value: float | str) -> str:
    """Return a float, or one of the words that stand for what is no number, as CBOR."""
    return text(value) if isinstance(value, str) else "\xfb" + pack(">d", value).decode("latin-1")


NULL, WIDE = "\xf6", "\x1a"
TEXTS = [head(TEXT, size) for size in range(SMALL)]
INTEGERS = [integer(value) for value in range(SMALL)]
BOOLEANS = {False: "\xf4", True: "\xf5", None: NULL}

_TEXT = "TEXTS[len({v})] + {v} if {v}.isascii() and len({v}) < SMALL else text({v})"
_STRINGS: Sequence[FormName] = (
    "date", "decimal", "interval", "number", "string", "text", "time", "timestamp", "timestamptz"
)  # fmt: skip
WAYS: Mapping[FormName, str] = {
    "boolean": "BOOLEANS[{v}]",
    "float": "NULL if {v} is None else number({v})",
    "integer": (
        "NULL if {v} is None else INTEGERS[{v}] if 0 <= {v} < SMALL else"
        ' WIDE + {v}.to_bytes(4, "big").decode("latin-1") if 65536 <= {v} < 4294967296 else'
        " integer({v})"
    ),
    **dict.fromkeys(_STRINGS, f"NULL if {{v}} is None else {_TEXT}"),
}
"""What a value is in CBOR, as an expression, by form (service/datatypes)."""


@lru_cache(256)
def row_packer(
    names: tuple[str, ...], forms: tuple[FormName, ...], lists: bool, behind: int = 0
) -> Callable[[Sequence[Row], int], bytes] | None:
    """
    Compile the function that makes a list of rows CBOR.

    Args:
        names: Of the columns.
        forms: Of their values.
        lists: Whether rows are to be lists, rather than dicts.
        behind: How many values of each row stand behind those, and are left out.

    Returns:
        None if values of a form have others inside, or two columns one name, or there are none.
        Else it takes the rows, and how many bytes they may be; it raises TooLarge beyond them.
    """
    if not names or not WAYS.keys() >= {*forms} or len({*names}) < len(names):
        return None
    heads = [head(ARRAY if lists else MAP, len(names)), *([""] * len(names))]
    for at, name in enumerate(() if lists else names):
        heads[at] += text(name)
    values = [WAYS[form].format(v=f"v{at}") for at, form in enumerate(forms)]
    # The repr of a string is a literal whatever is in it: names are as callers alias them.
    row = " ".join(
        f"{before!r} f'{{{value}}}'" for before, value in zip(heads, values, strict=False)
    )
    taken = "".join(f"v{at}, " for at in range(len(names))) + "_, " * behind
    joined: Callable[[Sequence[Row]], str]
    joined = eval(f"lambda rows: ''.join([{row} for {taken}in rows])", globals())

    def packer(rows: Sequence[Row], most: int) -> bytes:
        pieces, left = [head(ARRAY, len(rows)).encode("latin-1")], most
        # A part at a time: of an answer that is refused no copies are made as large as it is.
        for begin in range(0, len(rows), PART):
            pieces.append(joined(rows[begin : begin + PART]).encode("latin-1"))
            left -= len(pieces[-1])
            if left < 0:
                raise TooLarge(most)
        return b"".join(pieces)

    return packer
