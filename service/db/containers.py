"""
Wire lists and dicts → literals of arrays, composites and hstore.

Each takes what writes its parts, and tells in the path of a refusal which part it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from service.db.json_text import check_text, shown, within
from service.db.literals import MAX_DIMENSIONS, write_array, write_composite, write_hstore
from service.errors import InvalidArgument, UnknownName

Write = Callable[[Any], str]
Texts = list[Any]
"""Nested lists of texts and None."""


def array_text(write: Write, delimiter: str = ",", dimensions: int = MAX_DIMENSIONS) -> Write:
    """
    Give what writes arrays.

    Args:
        write: For an element.
        delimiter: Between elements of this type.
        dimensions: How deep lists are dimensions; below, they are elements.
    """

    def write_list(value: Any) -> str:
        if isinstance(value, str):
            return _literal(value, "[{", "a list")
        if not isinstance(value, (list, tuple)):
            raise InvalidArgument("expected a list")
        if dimensions == 1 or not any(isinstance(item, (list, tuple)) for item in value):
            try:
                return write_array(
                    [None if item is None else write(item) for item in value], delimiter
                )
            except InvalidArgument:
                pass  # to be refused below, with its place
        texts, shape = _texts(value, write, dimensions)
        # PostgreSQL has one empty array, without dimensions
        return write_array(texts, delimiter) if 0 not in shape else "{}"

    return write_list


def _texts(items: Sequence[Any], write: Write, dimensions: int) -> tuple[Texts, tuple[int, ...]]:
    """Write the elements of a list; gives its shape as well, which must be a box."""
    found: Texts = []
    below: tuple[int, ...] | None = None
    for place, item in enumerate(items):
        shape: tuple[int, ...] = ()
        try:
            if item is None:
                found.append(None)
            elif dimensions > 1 and isinstance(item, (list, tuple)):
                texts, shape = _texts(item, write, dimensions - 1)
                found.append(texts)
            else:
                found.append(write(item))
            if below is not None and shape != below:
                raise InvalidArgument("the lists of an array must all be of one length and depth")
        except InvalidArgument as refusal:
            raise within(refusal, place) from None
        below = shape
    return found, (len(items), *(below or ()))


def composite_text(
    fields: Sequence[tuple[str, Write]], of: str, withheld: Set[str] = frozenset()
) -> Write:
    """
    Give what writes rows.

    Args:
        fields: Names and what writes them, in order; one without a name cannot be set.
        of: What it is, for refusals.
        withheld: Names that no refusal gives.
    """
    names = [name for name, _ in fields if name]

    def write_row(value: Any) -> str:
        if isinstance(value, str):
            return _literal(value, "(", "a dict")
        given = row_of(value, names, of, withheld)
        texts: list[str | None] = []
        for at, (name, write) in enumerate(fields):
            item = given.get(name) if name else None
            try:
                texts.append(None if item is None else write(item))
            except InvalidArgument as refusal:
                raise within(refusal, at if name in withheld else name) from None
        return write_composite(texts)

    return write_row


def by_parts(write: Write, why: str) -> Write:
    """Give what writes values part by part alone, not taking PostgreSQL's text of the whole."""

    def write_parts(value: Any) -> str:
        if isinstance(value, str):
            raise InvalidArgument(f"expected a dict or a list, not a text: {why}")
        return write(value)

    return write_parts


def row_of(
    value: Any, names: Sequence[str], of: str, withheld: Set[str] = frozenset()
) -> dict[str, Any]:
    """
    Take a dict, or a list in the order of the fields, as a row.

    Raises:
        InvalidArgument: It is neither, or does not fit the fields.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise InvalidArgument(f"expected {len(names)} fields, got {len(value)}")
        return dict(zip(names, value, strict=True))
    if not isinstance(value, dict):
        raise InvalidArgument("expected a dict")
    for name in value:
        if name not in names:
            known = [each for each in names if each not in withheld]
            raise within(UnknownName("field", shown(name), known, of), name)
    return value


def hstore_text(value: Any) -> str:
    """Write an hstore from a dict of strings and nulls."""
    if isinstance(value, str):
        return check_text(value)
    return write_hstore(hstore_of(value))


def hstore_of(value: Any) -> dict[str, str | None]:
    """
    Take a dict of strings and nulls.

    Raises:
        InvalidArgument: It is something else.
    """
    if not isinstance(value, dict):
        raise InvalidArgument("expected a dict")
    for key, item in value.items():
        try:
            if not isinstance(key, str) or not isinstance(item, (str, type(None))):
                raise InvalidArgument("an hstore holds strings and nulls, by strings")
            check_text(key)
            check_text(item or "")
        except InvalidArgument as refusal:
            raise within(refusal, key) from None
    return value


def _literal(value: str, opening: str, wanted: str) -> str:
    check_text(value)
    if not value.lstrip().startswith(tuple(opening)):
        raise InvalidArgument(f"expected {wanted}, got a string")
    return value
