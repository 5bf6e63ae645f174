"""
What a watcher of a query is told: its rows, and then what is different in them.

Of the rows that a watcher has, the service keeps their keys and a hash of each. A client can check
that it has the same ones: docs/live.md says how its checksum is computed.

Of an ordered query the first rows are kept, by the changes to it. More rows are kept than are shown, so
that some can go before the others have to be asked for. What comes after the last one kept is not known,
unless these are all rows there are; so nothing that now sorts behind the last row that stayed where it
was can be told a place.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar
from zlib import crc32

from service.plan.watch_plan import KeyForm

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Window(Generic[Key]):
    """
    The first rows.

    Args:
        keys: In their order.
        complete: Whether there are no others.
    """

    keys: tuple[Key, ...]
    complete: bool

    @classmethod
    def of(cls, keys: Sequence[Key], most: int) -> Window[Key]:
        """Return the window of what a query with the limit `most` has found."""
        return cls(tuple(keys), len(keys) < most)

    def moved(
        self, touched: Collection[Key], order: Sequence[Key], shown: int, most: int
    ) -> Window[Key] | None:
        """
        Return the window after changes; None if the first rows have to be read again.

        Args:
            touched: The keys of all rows that may have come, gone or moved.
            order: Those of them that are rows now, and the rows of the window, in order.
            shown: How many rows have to be known.
            most: How many are kept.
        """
        if self.complete:
            return Window(tuple(order[:most]), len(order) <= most)
        stayed = next((key for key in reversed(self.keys) if key not in touched), None)
        if stayed not in order:
            return None
        known = tuple(order[: min(order.index(stayed) + 1, most)])
        return Window(known, False) if len(known) >= shown else None


Message = dict[str, Any]
CHUNK = 500
"""Rows of one message of a snapshot."""

SAFE = 2**53
"""Between its negative and it, every client has whole numbers as they are."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_SCALARS = frozenset([str, int, bytes])


class Entry(NamedTuple):
    """
    A row that a watcher has.

    Args:
        key: As it goes over the wire.
        hash: Of key and row: equal to that of another one if nothing is different.
        check: The part of the checksum.
        weight: In characters.
    """

    key: Any
    hash: int
    check: int
    weight: int


class State:
    """
    The rows of a query at a moment, less what is in them.

    Args:
        entries: In their order, by what tells them apart.
        ordered: Whether that order matters.
        window: The keys of the rows in their order, and of some behind them, where that is kept.
    """

    def __init__(
        self,
        entries: Mapping[Hashable, Entry],
        ordered: bool,
        window: Window[tuple[Any, ...]] | None = None,
    ) -> None:
        self.entries = entries
        self.ordered = ordered
        self.window = window

    @cached_property
    def checksum(self) -> int:
        """What a client that has these rows computes, below 2^32."""
        checks = (each.check for each in self.entries.values())
        if self.ordered:
            return sum(at * check for at, check in enumerate(checks, 1)) % 2**32
        return sum(checks) % 2**32


class FoundRows(NamedTuple):
    """The state that a query was found in, and its rows by what tells them apart."""

    state: State
    rows: dict[Hashable, Any]


class KeyRepeated(Exception):
    """Two rows have one key: what says that it is a key, as a comment on a view, is mistaken."""


def name_of(key: Any) -> Hashable:
    """Return what tells the row of a key apart: the key, or its one text."""
    return key if type(key) in _SCALARS else canonical(key)


def rows_of(form: KeyForm, rows: Sequence[Any], keys: Sequence[Sequence[Any]]) -> FoundRows:
    """
    Return the rows that a query has given.

    Args:
        form: How they are told apart.
        rows: In their order.
        keys: For each the values of its key's columns, if they are not in the row.

    Raises:
        KeyRepeated: Two of them have one key.
    """
    entries: dict[Hashable, Entry] = {}
    found: dict[Hashable, Any] = {}
    copies: dict[str, int] = {}
    own = form.kind == "row"
    for row, values in zip(rows, keys, strict=True):
        key = form.key(row, values)
        text = canonical([None if own else key, row])
        name: Hashable
        if own:
            copies[text] = copy = copies.get(text, 0) + 1
            name = text if copy == 1 else (text, copy)
        else:
            name = name_of(key)
            if name in entries:
                raise KeyRepeated
        check = crc32(text.encode("utf-8", "surrogatepass"))
        entries[name] = Entry(key, hash(text), check, len(text))
        found[name] = row
    return FoundRows(State(entries, form.ordered), found)


@dataclass(frozen=True, slots=True)
class Difference:
    """
    Between two states of a query.

    Args:
        enter, update: What tells the rows apart, in the order of the later state.
        leave: Of those that are gone, in the order of the earlier one.
        moved: Those of `update` that stand elsewhere among the others.
    """

    enter: tuple[Hashable, ...]
    update: tuple[Hashable, ...]
    leave: tuple[Hashable, ...]
    moved: frozenset[Hashable] = frozenset()

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.enter or self.update or self.leave)

    def keys(self, before: State, now: State) -> list[Any]:
        """Return the keys of all rows that are different."""
        return [*_keys(now, (*self.enter, *self.update)), *_keys(before, self.leave)]


def difference(before: State, now: State, moving: Collection[Hashable] | None = None) -> Difference:
    """
    Return what is different in a state.

    Args:
        before: The earlier state.
        now: The later one.
        moving: Which rows may be told to have moved, since the others are in the same order among
            themselves; None for any.
    """
    old, new = before.entries, now.entries
    enter = tuple(name for name in new if name not in old)
    leave = tuple(name for name in old if name not in new)
    moved: frozenset[Hashable] = frozenset()
    if now.ordered:
        stay = [name for name in new if name in old]
        if stay != [name for name in old if name in new]:
            places = {name: at for at, name in enumerate(old)}
            still = longest_rise([places[name] for name in stay])
            moved = frozenset(name for at, name in enumerate(stay) if at not in still)
            if moving is not None and not moved.issubset(moving):
                moved = frozenset(name for name in stay if name in moving)
    update = tuple(
        name
        for name, entry in new.items()
        if name in old and (entry.hash != old[name].hash or name in moved)
    )
    return Difference(enter, update, leave, moved)


def longest_rise(numbers: Sequence[int]) -> set[int]:
    """Return the indexes of the most numbers, all different, that rise from first to last."""
    ends: list[int] = []  # the least number at which a rise of each length ends
    at_end: list[int] = []
    before: list[int] = []
    for at, number in enumerate(numbers):
        length = bisect_left(ends, number)
        before.append(at_end[length - 1] if length else -1)
        if length == len(ends):
            ends.append(number)
            at_end.append(at)
        else:
            ends[length], at_end[length] = number, at
    found: set[int] = set()
    at = at_end[-1] if at_end else -1
    while at >= 0:
        found.add(at)
        at = before[at]
    return found


def has_copies(state: State) -> bool:
    """Return whether rows are alike, so that none of their keys says which of them is meant."""
    return any(type(name) is tuple for name in state.entries)


def snapshot_messages(
    form: KeyForm, found: FoundRows, position: str, reset: bool = False
) -> Iterator[Message]:
    """
    Yield the messages that give a watcher all rows.

    Args:
        form: Of the keys.
        found: The rows, all that are in the state.
        position: What they are a state of.
        reset: Whether the watcher has others, of which nothing counts any more.
    """
    names = list(found.state.entries)
    for start in range(0, len(names) or 1, CHUNK):
        chunk = names[start : start + CHUNK]
        message: Message = {"type": "snapshot", "rows": [found.rows[name] for name in chunk]}
        if form.kind != "row" and form.columns is None:
            message["keys"] = _keys(found.state, chunk)
        if not start:
            if form.columns is not None:
                message["key"] = list(form.columns)
            if reset:
                message["reset"] = True
        message["position"] = position
        if start + CHUNK >= len(names):
            message |= {"complete": True, "checksum": found.state.checksum}
        yield message


def delta_message(
    form: KeyForm,
    before: State,
    now: State,
    change: Difference,
    rows: Mapping[Hashable, Any],
) -> Message:
    """
    Return the message that makes a watcher's rows those of a later state, less its position.

    Args:
        form: Of the keys.
        before: What the watcher has.
        now: What it is to have.
        change: Between the two.
        rows: At least those that enter or are updated.
    """
    message: Message = {
        "type": "delta",
        "enter": [rows[name] for name in change.enter],
        "update": [rows[name] for name in change.update],
        "leave": _keys(before, change.leave),
    }
    if form.kind != "row" and form.columns is None:
        message["keys"] = {
            "enter": _keys(now, change.enter),
            "update": _keys(now, change.update),
        }
    if form.ordered and (change.enter or change.moved):
        places = _places(now, {*change.enter, *change.moved})
        message["after"] = {
            "enter": [places[name] for name in change.enter],
            "update": [places.get(name, False) for name in change.update],
        }
    return message


def resume_message(form: KeyForm, found: FoundRows, keys: Sequence[Any], position: str) -> Message:
    """
    Return the message that makes the rows of an earlier state, whatever they were, those of this one.

    Args:
        form: Of the keys.
        found: All rows.
        keys: Of all rows that may be others than in the earlier state.
        position: What the rows are a state of.
    """
    names = {name_of(key): key for key in keys}
    entries = found.state.entries
    update = tuple(name for name in entries if name in names)
    gone = tuple(name for name in names if name not in entries)
    change = Difference((), update, (), frozenset(update))
    message = delta_message(form, found.state, found.state, change, found.rows)
    return message | {
        "leave": [names[name] for name in gone],
        "position": position,
        "checksum": found.state.checksum,
    }


def alive_message(state: State, position: str) -> Message:
    """Return the message that nothing has changed up to a position."""
    return {"type": "alive", "position": position, "checksum": state.checksum}


def _keys(state: State, names: Iterable[Hashable]) -> list[Any]:
    return [state.entries[name].key for name in names]


def _places(state: State, wanted: set[Hashable]) -> dict[Hashable, Any]:
    """Return the keys of the rows before those that are wanted, None before the first."""
    found: dict[Hashable, Any] = {}
    last = None
    for name, entry in state.entries.items():
        if name in wanted:
            found[name] = last
        last = entry.key
    return found


def canonical(value: Any) -> str:
    """
    Return the one text of a value, equal in every language and behind every serializer.

    It is JSON without spaces, the keys of objects in the order of their UTF-16, numbers that are
    not whole or not below 2^53 as the hexadecimal digits of their double, binary as WAMP has it in
    JSON.
    """
    return _encode(_plain(value))


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int or kind is float:
        if -SAFE < value < SAFE and value == int(value):
            return int(value)
        return struct.pack(">d", value).hex()
    if kind is dict:
        names = sorted(value)
        if not "".join(names).isascii():
            names.sort(key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return {name: _plain(value[name]) for name in names}
    if kind is bytes:
        return "\0" + b64encode(value).decode()
    return [_plain(each) for each in value]
