"""
States of a query, the differences between them, and the messages of a watch: snapshots, then deltas.

Of a query's rows the service keeps only the keys and a hash each. A client can check that it has the same
rows: docs/live.md describes the checksum.

Of an ordered query with a limit the service keeps a window: the keys of the first rows, and of some more
than the limit, so that rows can leave before the query has to be run again. The rows behind the last one in
the window are unknown, unless the window is complete. So a row that now sorts behind the last row of the
window that did not change has no known place: unknown rows may sort before it.
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
    The keys of the first rows of an ordered query.

    Args:
        keys: The keys, in order.
        complete: Whether the query has no other rows. Without this flag, refilling is wrong.
    """

    keys: tuple[Key, ...]
    complete: bool

    @classmethod
    def of(cls, keys: Sequence[Key], most: int) -> Window[Key]:
        """Return the window of the keys that a query with the limit `most` has returned."""
        return cls(tuple(keys), len(keys) < most)

    def moved(
        self, touched: Collection[Key], order: Sequence[Key], shown: int, most: int
    ) -> Window[Key] | None:
        """
        Return the window after changes; None if the query has to be run again.

        Args:
            touched: Keys of all rows that may have entered, left or moved.
            order: Of these keys and those of the window, the ones that are rows now, in their new order.
            shown: Minimum number of rows that the window needs: the limit of the query.
            most: Maximum number of rows in the window.
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
"""Number of rows in one message of a snapshot."""

SAFE = 2**53
"""Integers of a smaller magnitude are exact in every client, including JavaScript."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_SCALARS = frozenset([str, int, bytes])


class Entry(NamedTuple):
    """
    What a state keeps of a row.

    Args:
        key: Key in its wire form.
        hash: Hash of key and row, to compare two versions of the row.
        check: The row's part of the checksum (CRC-32).
        weight: Size of the row in characters of canonical JSON.
    """

    key: Any
    hash: int
    check: int
    weight: int


class State:
    """
    The rows of a query at one position, without their contents.

    Args:
        entries: The rows in order, by name (`name_of`).
        ordered: Whether the order is part of the result.
        window: Keys of the rows, and of some rows behind them, if a window is kept.
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
        """The checksum of the rows as a client computes it, below 2^32."""
        checks = (each.check for each in self.entries.values())
        if self.ordered:
            return sum(at * check for at, check in enumerate(checks, 1)) % 2**32
        return sum(checks) % 2**32


class FoundRows(NamedTuple):
    """A state of a query, and the contents of its rows by name (`name_of`)."""

    state: State
    rows: dict[Hashable, Any]


class KeyRepeated(Exception):
    """Two rows have the same key: a declared key, such as that of a view's comment, is not unique."""


def name_of(key: Any) -> Hashable:
    """Return the hashable name of the row with a key: the key if it is a scalar, else its canonical text."""
    return key if type(key) in _SCALARS else canonical(key)


def rows_of(form: KeyForm, rows: Sequence[Any], keys: Sequence[Sequence[Any]]) -> FoundRows:
    """
    Return the state and the rows of a query's result.

    Args:
        form: How keys are formed.
        rows: The rows, in order.
        keys: For each row the values of its key columns, if they are not in the row.

    Raises:
        KeyRepeated: Two rows have the same key.
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
            # Equal rows count, as they do in the result, but nothing tells them apart.
            copies[text] = copy = copies.get(text, 0) + 1
            name = text if copy == 1 else (text, copy)
        else:
            name = name_of(key)
            if name in entries:
                raise KeyRepeated
        # Python's own hash differs between processes, but a state never leaves its process.
        check = crc32(text.encode("utf-8", "surrogatepass"))
        entries[name] = Entry(key, hash(text), check, len(text))
        found[name] = row
    return FoundRows(State(entries, form.ordered), found)


@dataclass(frozen=True, slots=True)
class Difference:
    """
    The difference between two states of a query, as names of rows (`name_of`).

    Args:
        enter: New rows, in the order of the later state.
        update: Changed rows, in the order of the later state.
        leave: Rows that are gone, in the order of the earlier state.
        moved: Rows of `update` whose place among the others has changed.
    """

    enter: tuple[Hashable, ...]
    update: tuple[Hashable, ...]
    leave: tuple[Hashable, ...]
    moved: frozenset[Hashable] = frozenset()

    def __bool__(self) -> bool:
        """Return whether there is any difference."""
        return bool(self.enter or self.update or self.leave)

    def keys(self, before: State, now: State) -> list[Any]:
        """Return the keys of all rows that differ."""
        return [*_keys(now, (*self.enter, *self.update)), *_keys(before, self.leave)]


def difference(before: State, now: State, moving: Collection[Hashable] | None = None) -> Difference:
    """
    Return the difference between two states.

    Args:
        before: The earlier state.
        now: The later state.
        moving: Names of rows that may be reported as moved: their contents are known, and all other rows
            have kept their order among themselves. None if any row may be.
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
            # Over several cycles, the fewest rows to move may be other ones than in each, and their contents
            # are not at hand. Those that have moved in one of the cycles suffice.
            if moving is not None and not moved.issubset(moving):
                moved = frozenset(name for name in stay if name in moving)
    update = tuple(
        name
        for name, entry in new.items()
        if name in old and (entry.hash != old[name].hash or name in moved)
    )
    return Difference(enter, update, leave, moved)


def longest_rise(numbers: Sequence[int]) -> set[int]:
    """
    Return the indexes of a longest increasing subsequence of distinct numbers.

    The rows at these places need not be reported as moved, so a delta reports as few as possible.
    """
    ends: list[int] = []  # the lowest last number of an increasing subsequence of each length
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
    """Return whether a state has equal rows, which no key tells apart."""
    return any(type(name) is tuple for name in state.entries)


def snapshot_messages(
    form: KeyForm, found: FoundRows, position: str, reset: bool = False
) -> Iterator[Message]:
    """
    Yield the snapshot messages of a watch: all rows, in chunks.

    Args:
        form: How keys are formed.
        found: All rows of the state.
        position: Position of the state.
        reset: Whether the caller has to drop the rows that it has.
    """
    names = list(found.state.entries)
    # Without rows, too, there is one message, which says so.
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
    Return the delta message between two states, without its position.

    Args:
        form: How keys are formed.
        before: State of the rows that the caller has.
        now: The later state.
        change: The difference between them.
        rows: Contents of at least the rows that enter or are updated.
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
    Return the message that resumes a watch: it brings the rows of an unknown earlier state to this one.

    Args:
        form: How keys are formed.
        found: All rows of this state.
        keys: Keys of all rows that may have changed since the earlier state. Those that are rows now are
            sent as updates, the others as leaving; clients ignore a leaving key that they do not have.
        position: Position of this state.
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
    """Return the message that the rows have not changed up to a position."""
    return {"type": "alive", "position": position, "checksum": state.checksum}


def _keys(state: State, names: Iterable[Hashable]) -> list[Any]:
    return [state.entries[name].key for name in names]


def _places(state: State, wanted: set[Hashable]) -> dict[Hashable, Any]:
    """Return for each wanted row the key of the row before it; None for the first row."""
    found: dict[Hashable, Any] = {}
    last = None
    for name, entry in state.entries.items():
        if name in wanted:
            found[name] = last
        last = entry.key
    return found


def canonical(value: Any) -> str:
    """
    Return the canonical text of a value, the same in every language and behind every serializer.

    The text is JSON without spaces, with object keys sorted by UTF-16 code units. Numbers that are not
    integers of a magnitude below 2^53 become the hexadecimal digits of their IEEE 754 double; binary values
    take the form that WAMP gives them in JSON (NUL, then base64).
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
