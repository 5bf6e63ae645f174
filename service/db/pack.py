"""
Rows of scalar values as CBOR, encoded by a function that is compiled once for each list of columns.

An encoder that checks the type of every value takes five times as long: half the time of an answer of a
thousand rows. The bytes are the same as cbor2's.

CBOR is built as a string with one character per byte (latin-1), because Python joins f-strings in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from struct import pack
from typing import Any

from service.datatypes import FormName
from service.errors import TooLarge

Row = tuple[Any, ...]

TEXT, ARRAY, MAP = 3, 4, 5
"""Major types of CBOR."""
SMALL = 256
"""Strings below this length have their heads in a table, and integers below it their encoding."""
PART = 256
"""Rows that are encoded at a time."""


def head(major: int, number: int) -> str:
    """Return the head of a data item: its major type, and a number below 2^64."""
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
    """Return a 64-bit integer as CBOR."""
    return head(0, value) if value >= 0 else head(1, -1 - value)


def number(value: float | str) -> str:
    """Return a float as CBOR, or a string such as "NaN" that stands for one."""
    return text(value) if isinstance(value, str) else "\xfb" + pack(">d", value).decode("latin-1")


NULL, SHORT, WIDE = "\xf6", "\x19", "\x1a"
TEXTS = [head(TEXT, size) for size in range(SMALL)]
INTEGERS = [integer(value) for value in range(SMALL)]
BOOLEANS = {False: "\xf4", True: "\xf5", None: NULL}

_TEXT = "TEXTS[len({v})] + {v} if {v}.isascii() and len({v}) < SMALL else text({v})"
_STRINGS: Sequence[FormName] = (
    "date", "decimal", "interval", "number", "string", "text", "time", "timestamp", "timestamptz"
)  # fmt: skip
# The integers of large tables first: each comparison takes 2 % of the time of a row.
COMMON_INTEGERS = (
    'WIDE + {v}.to_bytes(4, "big").decode("latin-1") if 65536 <= {v} < 4294967296'
    ' else SHORT + {v}.to_bytes(2, "big").decode("latin-1") if SMALL <= {v} < 65536'
    " else INTEGERS[{v}] if 0 <= {v} < SMALL else"
)
"""The Python expression that encodes integers below 2^32; behind its `else` belongs one for all others."""
ENCODERS: Mapping[FormName, str] = {
    "boolean": "BOOLEANS[{v}]",
    "float": "NULL if {v} is None else number({v})",
    "integer": f"NULL if {{v}} is None else {COMMON_INTEGERS} integer({{v}})",
    **dict.fromkeys(_STRINGS, f"NULL if {{v}} is None else {_TEXT}"),
}
"""By form (service/datatypes), the Python expression that encodes a value `{v}`."""


@lru_cache(256)
def row_packer(
    names: tuple[str, ...], forms: tuple[FormName, ...], lists: bool, behind: int = 0
) -> Callable[[Sequence[Row], int], bytes] | None:
    """
    Compile the function that encodes a list of rows as CBOR.

    Args:
        names: Names of the columns.
        forms: Forms of their values.
        lists: Whether to encode rows as arrays, rather than as maps.
        behind: Number of further values behind the columns of each row, which are left out.

    Returns:
        A function of the rows and their maximum size in bytes, beyond which it raises TooLarge. None if
        a column is not scalar, two columns have one name, or there are no columns.
    """
    if not names or not ENCODERS.keys() >= {*forms} or len({*names}) < len(names):
        return None
    heads = [head(ARRAY if lists else MAP, len(names)), *([""] * len(names))]
    for at, name in enumerate(() if lists else names):
        heads[at] += text(name)
    values = [ENCODERS[form].format(v=f"v{at}") for at, form in enumerate(forms)]
    # The repr of a string is a safe literal whatever it contains: callers choose aliases.
    row = " ".join(
        f"{before!r} f'{{{value}}}'" for before, value in zip(heads, values, strict=False)
    )
    taken = "".join(f"v{at}, " for at in range(len(names))) + "_, " * behind
    joined: Callable[[Sequence[Row]], str]
    joined = eval(f"lambda rows: ''.join([{row} for {taken}in rows])", globals())

    def packer(rows: Sequence[Row], most: int) -> bytes:
        pieces, left = [head(ARRAY, len(rows)).encode("latin-1")], most
        # In parts, so that rows that exceed the maximum are not copied as a whole first.
        for begin in range(0, len(rows), PART):
            pieces.append(joined(rows[begin : begin + PART]).encode("latin-1"))
            left -= len(pieces[-1])
            if left < 0:
                raise TooLarge(most)
        return b"".join(pieces)

    return packer
