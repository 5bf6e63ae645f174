"""
Values that a reference of a batch brings: lists and dicts which are data, whatever they look like.

They are of a type that no parser of filters, lists of names and operators takes for one of its own;
what takes values opens them. So what somebody has stored never says what a call does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Brought:
    """
    A list or a dict that a reference has brought.

    Args:
        value: What it is.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return repr(self.value)  # a page of a query is that of the same one with the value in it


class HoldingDict(dict[str, Any]):
    """A dict of a call that has, at some depth, something brought in it."""


class HoldingList(list[Any]):
    """A list of a call that has, at some depth, something brought in it."""


class BroughtRow(dict[str, Any]):
    """A row that was brought: its names are those of columns, its values are data."""


MARKED = frozenset({Brought, HoldingDict, HoldingList})


def brought(value: Any) -> Any:
    """Return a value as a reference brings it: only lists and dicts could be taken for more."""
    return Brought(value) if isinstance(value, Mapping | list | tuple) else value


def holding(value: Any) -> Any:
    """Return a dict or a list of a call, marked if there is something brought in it."""
    items = value.values() if isinstance(value, dict) else value
    if MARKED.isdisjoint(map(type, items)):
        return value
    return HoldingDict(value) if isinstance(value, dict) else HoldingList(value)


def opened(value: Any) -> Any:
    """Return what is a value where it stands, without the marks of what was brought."""
    kind = type(value)
    if kind not in MARKED:
        return value
    if kind is Brought:
        return value.value
    if kind is HoldingDict:
        return {name: opened(each) for name, each in value.items()}
    return [opened(each) for each in value]


def opened_rows(value: Any) -> Any:
    """Return a row, or a list of rows, of which those that were brought have columns alone."""
    if type(value) is Brought:
        value = value.value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [_row(each) for each in value]
        return _row(value)
    if type(value) is HoldingList:
        return [_row(each.value) if type(each) is Brought else each for each in value]
    return value


def _row(value: Any) -> Any:
    return BroughtRow(value) if isinstance(value, Mapping) else value
