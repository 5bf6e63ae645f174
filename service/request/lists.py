"""
Select lists and sort keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from service.errors import InvalidArgument, UnknownName, clip
from service.request.arguments import listed
from service.request.items import check_name, parse_item, parse_reference
from service.request.synonyms import said
from service.request.terms import Item, Key, Nulls
from service.request.values import Values

MAX_KEYS = 64
"""Of an order: more than any index has."""


def parse_select(select: Any, values: Values, path: str = "select") -> tuple[Item, ...] | None:
    """Read a select list; None stands for all columns."""
    if select is None:
        return None
    return tuple(
        parse_one(each, f"{path}.{at}", values) for at, each in enumerate(listed(select, path))
    )


def parse_order(order: Any, values: Values, path: str = "order") -> tuple[Key, ...]:
    """Read sort keys."""
    keys = listed(order, path, MAX_KEYS)
    return tuple(_key(each, f"{path}.{at}", values) for at, each in enumerate(keys))


def parse_one(item: Any, path: str, values: Values) -> Item:
    """Read one item of a select list, in its short or its long form."""
    if isinstance(item, str):
        return parse_item(item, path, values)
    if not isinstance(item, Mapping):
        raise InvalidArgument("an item is a text or a dict", path=path)
    _only(item, ("column", "as", "cast"), path)
    column, alias, type_name = item.get("column"), item.get("as"), item.get("cast")
    if not isinstance(column, str):
        raise InvalidArgument('an item names its "column"', path=f"{path}.column")
    for name, value in (("as", alias), ("cast", type_name)):
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f'"{name}" is a text', path=f"{path}.{name}")
        if value is not None:
            check_name(value, f"{path}.{name}")
    return Item(parse_reference(column, f"{path}.column", values), alias, type_name)


def _key(key: Any, path: str, values: Values) -> Key:
    if isinstance(key, str):
        descending = key.startswith("-")
        return Key(parse_reference(key[1:] if descending else key, path, values), descending)
    if not isinstance(key, Mapping):
        pair = isinstance(key, list | tuple) and len(key) == 2
        raise InvalidArgument(
            'a sort key is a text or a dict with "by"',
            path=path,
            hint=_short(*key) if pair else None,
        )
    _only(key, ("by", "desc", "nulls"), path)
    by, reverse, nulls = key.get("by"), key.get("desc"), key.get("nulls")
    if not isinstance(by, str):
        raise InvalidArgument('a sort key names its column in "by"', path=f"{path}.by")
    if reverse is not None and not isinstance(reverse, bool):
        raise InvalidArgument('"desc" is true or false', path=f"{path}.desc")
    if nulls not in (None, "first", "last"):
        raise InvalidArgument('"nulls" is "first" or "last"', path=f"{path}.nulls")
    return Key(
        parse_reference(by, f"{path}.by", values), bool(reverse), cast("Nulls | None", nulls)
    )


def _only(item: Mapping[Any, Any], known: Sequence[str], path: str) -> None:
    for name in item:
        if name not in known:
            hint = said("argument", name, known) or _short(name, item[name])
            raise UnknownName("option", str(name), known, path=f"{path}.{name}", hint=hint)


def _short(name: Any, value: Any) -> str | None:
    """Give the hint for a column as a key: {"name": "desc"}, {"name": true}, ["name", "desc"]."""
    signs = {"desc": "-", "-1": "-", "asc": "", "1": "", "true": ""}
    sign = signs.get(str(value).lower())
    return None if sign is None else f'did you mean "{sign}{clip(name)}"?'
