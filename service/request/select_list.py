"""
Parse select lists and sort keys, whose items are `alias:column->path::type`, and lists of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from service.errors import InvalidArgument, UnknownName, clip
from service.request.arguments import (
    UNSTORABLE,
    Values,
    flag_of,
    items_with_paths,
    list_of,
    unknown_word,
)
from service.request.requests import Item, JsonStep, Key, Nulls, Operand, Reference, Zone
from service.request.synonyms import synonym_hint

MAX_LENGTH = 1000
"""Characters of an item: names have up to 63 bytes; the rest is room for JSON paths."""

MAX_CACHED = 100
"""Characters of a name whose item or sort key is cached, since callers choose the names."""

MAX_OWNERS = 16
"""Embeds that qualify a name: each is a subselect, planned recursively, and hundreds exceed Python's limit."""

UNITS = (
    "microseconds",
    "milliseconds",
    "second",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "quarter",
    "year",
    "decade",
    "century",
    "millennium",
)
"""Units of `date_trunc`."""

MAX_KEYS = 64
"""Sort keys of a call; an index of PostgreSQL has at most 32 columns."""

ARGS = "args"
"""The key of the arguments of a computed column's function."""
MAX_ARGS = 100
"""Arguments of a function: PostgreSQL's FUNC_MAX_ARGS."""

_TOKEN = re.compile(
    r'"(?P<quoted>(?:[^"]|"")*)"|(?P<mark>->>|->|::|:|\.)|(?P<word>(?:(?!->|::|[:."]).)+)', re.S
)
# PostgreSQL takes positions as int4, which ten digits may exceed; such a step is a key.
_INDEX = re.compile(r"-?[0-9]{1,9}")
Token = tuple[str, str]
"""A kind ("name" for a quoted one, "word", or "mark") and its text."""
_IN_QUOTES = re.compile(r'"((?:[^"]|"")+)"', re.DOTALL)


def parse_select(select: Any, values: Values, path: str = "select") -> tuple[Item, ...] | None:
    """Parse a select list; None means all columns."""
    if select is None:
        return None
    return tuple(parse_item(each, place, values) for each, place in items_with_paths(select, path))


def parse_order(order: Any, values: Values, path: str = "order") -> tuple[Key, ...]:
    """Parse sort keys; None means no order."""
    if order is None:
        return ()
    return tuple(
        _sort_key(each, place, values) for each, place in items_with_paths(order, path, MAX_KEYS)
    )


def parse_item(item: Any, path: str, values: Values) -> Item:
    """Parse one item of a select list, a string or a dict."""
    if isinstance(item, str):
        return parse_text_item(item, path, values)
    if not isinstance(item, Mapping):
        raise InvalidArgument("an item is a string or a dict", path=path)
    _only(item, ("column", "as", "cast", "trunc", "zone", ARGS), path)
    column, alias, type_name = item.get("column"), item.get("as"), item.get("cast")
    if not isinstance(column, str):
        raise InvalidArgument('an item names its "column"', path=f"{path}.column")
    for name, value in (("as", alias), ("cast", type_name)):
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f'"{name}" is a string', path=f"{path}.{name}")
        if value is not None:
            check_name(value, f"{path}.{name}")
    reference = parse_reference(column, f"{path}.column", values)
    reference = with_args(reference, item.get(ARGS), f"{path}.{ARGS}", values)
    if type_name is not None:
        if reference.cast is not None:
            raise InvalidArgument("a type is named twice", path=f"{path}.cast")
        reference = replace(reference, cast=type_name, place=f"{path}.cast")
    return Item(_with_trunc(reference, item, path, values), alias)


def parse_text_item(text: str, path: str, values: Values) -> Item:
    """
    Parse an item of a select list that is a string.

    Args:
        text: The item.
        path: Its path in the call, for errors.
        values: Values of the call; steps of JSON paths are appended.
    """
    if len(text) <= MAX_CACHED and text.isidentifier():
        return _column_item(text, path)
    if text.startswith("-") and not text.startswith("->"):
        return _excluding_item(text[1:], path, values)
    tokens, alias = _tokens(text, path), None
    if len(tokens) > 1 and tokens[1] == ("mark", ":"):
        alias = _name(tokens[0], text, path)
        tokens = tokens[2:]
    return Item(_reference(tokens, text, path, values), alias)


# Most items and sort keys are plain names. To look one up takes a tenth of the time that building it takes.
@lru_cache(1024)
def _column_item(name: str, path: str) -> Item:
    return Item(Reference(name, path))


@lru_cache(1024)
def _column_key(name: str, descending: bool, path: str) -> Key:
    return Key(Reference(name, path), descending)


def _with_trunc(
    reference: Reference, item: Mapping[Any, Any], path: str, values: Values
) -> Reference:
    """Return a reference with the `trunc` and `zone` of an item, if given."""
    unit, zone = item.get("trunc"), item.get("zone")
    if unit is None:
        if zone is not None:
            raise InvalidArgument('"zone" is where "trunc" cuts a time', path=f"{path}.zone")
        return reference
    if unit not in UNITS:
        hint = synonym_hint("argument", unit, UNITS)
        raise unknown_word("unit", unit, UNITS, f"{path}.trunc", hint)
    if reference.place is not None:
        hint = 'the type of what is cut stands beside it, as in "data->>at::timestamptz"'
        raise InvalidArgument('"trunc" goes without "cast"', path=f"{path}.cast", hint=hint)
    if zone is None:
        return replace(reference, trunc=unit)
    if not isinstance(zone, str):
        raise InvalidArgument('"zone" is the name of a time zone', path=f"{path}.zone")
    check_name(zone, f"{path}.zone")
    operand = Operand(values.add(zone), f"{path}.zone")
    return replace(reference, trunc=unit, zone=Zone(zone, operand))


def _excluding_item(text: str, path: str, values: Values) -> Item:
    reference = parse_reference(text, path, values)
    if reference.owners or reference.is_value:
        hint = f'a name that begins with "-" stands in quotes, as in {quoted_item("-" + text[:80])}'
        raise InvalidArgument('"-" leaves a column out of "*"', path=path, hint=hint)
    return Item(reference, left_out=True)


def parse_reference(text: str, path: str, values: Values) -> Reference:
    """Parse a column reference of a filter or sort key: `column->path::type`."""
    if text.isidentifier() and len(text) <= MAX_LENGTH:  # fast path: a plain name has one token
        return Reference(text, path)
    return _reference(_tokens(text, path), text, path, values)


def with_args(reference: Reference, args: Any, path: str, values: Values) -> Reference:
    """Return a reference to a computed column with the arguments of its function."""
    if args is None:
        return reference
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise InvalidArgument(f'"{ARGS}" is a dict of names and values', path=path)
    if len(args) > MAX_ARGS:
        raise InvalidArgument(f"a function takes at most {MAX_ARGS} arguments", path=path)
    for name in args:
        check_name(name, path)
    # Sorted, so that the order of names in the call does not make another statement.
    found = ((name, Operand(values.add(args[name]), f"{path}.{name}")) for name in sorted(args))
    return replace(reference, args=tuple(found))


def parse_names(value: Any, name: str) -> tuple[str, ...]:
    """Parse a list of columns."""
    found = list_of(value, name)
    for at, each in enumerate(found):
        if not isinstance(each, str):
            raise InvalidArgument(f'"{name}" is a list of columns', path=f"{name}.{at}")
        check_name(each, f"{name}.{at}")
    return tuple(dict.fromkeys(map(unquoted, found)))


def unquoted(text: str) -> str:
    """Return a name, without its double quotes if it has some as in SQL."""
    found = _IN_QUOTES.fullmatch(text)
    return text if found is None else found[1].replace('""', '"')


def check_name(text: str, path: str) -> None:
    """
    Check that a string can be a name in the database.

    Raises:
        InvalidArgument: It is empty, far too long, or has a NUL or a lone surrogate.
    """
    if not text or len(text) > MAX_LENGTH:
        raise InvalidArgument(f"a name has 1 to {MAX_LENGTH} characters", path=path)
    if UNSTORABLE.search(text):
        raise InvalidArgument("a name has no NUL and no lone surrogate", path=path)


def _sort_key(key: Any, path: str, values: Values) -> Key:
    if isinstance(key, str):
        descending = key.startswith("-")
        if len(key) <= MAX_CACHED and key[descending:].isidentifier():
            return _column_key(key[descending:], descending, path)
        return Key(parse_reference(key[1:] if descending else key, path, values), descending)
    if not isinstance(key, Mapping):
        pair = isinstance(key, list | tuple) and len(key) == 2
        raise InvalidArgument(
            'a sort key is a string or a dict with "by"',
            path=path,
            hint=_short(dict([key]), ()) if pair and isinstance(key[0], str) else None,
        )
    _only(key, ("by", "desc", "nulls", "trunc", "zone", "rank", "config", "near", ARGS), path)
    by, nulls = key.get("by"), key.get("nulls")
    if not isinstance(by, str):
        raise InvalidArgument('a sort key names its column in "by"', path=f"{path}.by")
    descending = flag_of(key.get("desc"), "desc", f"{path}.desc")
    if nulls not in (None, "first", "last"):
        raise InvalidArgument('"nulls" is "first" or "last"', path=f"{path}.nulls")
    reference = parse_reference(by, f"{path}.by", values)
    reference = with_args(reference, key.get(ARGS), f"{path}.{ARGS}", values)
    reference = _with_trunc(reference, key, path, values)
    return Key(
        reference, descending, cast("Nulls | None", nulls), *_rank_or_near(key, path, values)
    )


def _rank_or_near(
    key: Mapping[Any, Any], path: str, values: Values
) -> tuple[Operand | None, Operand | None, Operand | None]:
    """Parse `rank`, `config` and `near` of a sort key."""
    given = {
        name: Operand(values.add(key[name]), f"{path}.{name}")
        for name in ("rank", "config", "near")
        if key.get(name) is not None
    }
    for name in ("rank", "config"):
        if name in given and not isinstance(key[name], str):
            raise InvalidArgument(f'"{name}" is a string', path=f"{path}.{name}")
    if "config" in given and "rank" not in given:
        raise InvalidArgument('"config" is that of a "rank"', path=f"{path}.config")
    if "near" in given and ("rank" in given or key.get("trunc") is not None):
        raise InvalidArgument("a sort key is one value", path=f"{path}.near")
    if "rank" in given and key.get("trunc") is not None:
        raise InvalidArgument("a sort key is one value", path=f"{path}.rank")
    return given.get("rank"), given.get("config"), given.get("near")


def _only(item: Mapping[Any, Any], known: Sequence[str], path: str) -> None:
    for name in item:
        if name not in known:
            hint = _short(item, known) or synonym_hint("argument", name, known)
            if hint is None and "as" in known and type(item[name]) is str:
                hint = f'did you mean "{clip(name, 80)}:{clip(item[name], 80)}"?'
            raise UnknownName("option", str(name), known, path=f"{path}.{name}", hint=hint)


def _short(item: Mapping[Any, Any], known: Sequence[str]) -> str | None:
    """Return the hint for other spellings: {"name": "desc"}, {"name": true}, ["name", "desc"]."""
    signs = {"desc": "-", "-1": "-", "asc": "", "1": "", "true": ""}
    words = {clip(name, 80): str(value).lower() for name, value in item.items()}
    found = [f'"{signs[word]}{name}"' for name, word in words.items() if word in signs]
    return None if not found or item.keys() & {*known} else f"did you mean [{', '.join(found)}]?"


def _tokens(text: str, path: str) -> list[Token]:
    check_name(text, path)
    tokens: list[Token] = []
    end = 0
    for found in _TOKEN.finditer(text):
        if found.start() != end:
            break
        end = found.end()
        quoted = found.group("quoted")
        if quoted is not None:
            tokens.append(("name", quoted.replace('""', '"')))
        else:
            tokens.append(("mark" if found.group("mark") else "word", found.group()))
    if end != len(text):
        raise _bad(text, path)
    return _joined(tokens)


def _joined(tokens: list[Token]) -> list[Token]:
    """Return tokens with the parts of `relation!via` joined; each part may be quoted."""
    found: list[Token] = []
    for kind, text in tokens:
        last, before = found[-1] if found else ("mark", "")
        if "mark" not in (kind, last) and (before.endswith("!") or text.startswith("!")):
            found[-1] = ("name", before + text)
        else:
            found.append((kind, text))
    return found


def _split_cast(tokens: list[Token], text: str, path: str) -> tuple[list[Token], str | None]:
    marks = [at for at, token in enumerate(tokens) if token == ("mark", "::")]
    if not marks:
        return tokens, None
    type = "".join(
        f'"{word}"' if kind == "name" else word for kind, word in tokens[marks[0] + 1 :]
    ).strip()
    if not type or len(marks) > 1:
        raise _bad(text, path)
    return tokens[: marks[0]], type


def _reference(tokens: list[Token], text: str, path: str, values: Values) -> Reference:
    tokens, cast = _split_cast(tokens, text, path)
    names: list[str] = []
    steps: list[JsonStep] = []
    if not tokens or len(tokens) % 2 == 0:
        raise _bad(text, path)
    for at in range(0, len(tokens), 2):
        mark = tokens[at - 1][1] if at else "."
        name = _name(tokens[at], text, path)
        if mark == "." and not steps:
            names.append(name)
        elif mark in {"->", "->>"} and not (steps and steps[-1].text):
            index = tokens[at][0] == "word" and bool(_INDEX.fullmatch(name))
            operand = Operand(values.add(int(name) if index else name), path)
            steps.append(JsonStep(name, index, mark == "->>", operand))
        else:
            raise _bad(text, path)
    if len(names) > MAX_OWNERS + 1:
        raise InvalidArgument(f"a name goes through {MAX_OWNERS} embeds at most", path=path)
    every = ("word", "*") in tokens[: 2 * len(names)]
    return Reference(names[-1], path, tuple(names[:-1]), tuple(steps), cast, every=every)


def _name(token: Token, text: str, path: str) -> str:
    kind, name = token
    if kind == "mark" or not name:
        raise _bad(text, path)
    return name


def _bad(text: str, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'not a column: "{text[:80]}"',
        path=path,
        hint='written [alias:]column[->key][->>key][::type]; a name with any of : -> . " stands in'
        f' "quotes", with each " in it doubled, as in {quoted_item(text[:80])}',
    )


def unquoted_hint(name: str, known: Iterable[str]) -> str | None:
    """Return the hint for a column whose name contains signs of the syntax and was not quoted."""
    for each in known:
        begins = each.startswith((f"{name}->", f"{name}:"))
        if begins or each == f"-{name}" or each.endswith(f":{name}"):
            return f"did you mean {quoted_item(each)}, quotes and all?"
    return None


def quoted_item(name: str) -> str:
    """Return a name in double quotes, as an item of a list."""
    return '"' + name.replace('"', '""') + '"'
