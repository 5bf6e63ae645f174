"""
A copy of a query's rows, maintained from the messages of a live query as docs/live.md describes.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

from service.changes.delta import canonical


class Copy:
    """
    The rows of a watcher.

    Attributes:
        rows: Pairs of a key and a row, in order.
        position: The position of the rows.
        complete: Whether all rows have arrived.
        resets: Number of resets, in which all rows are sent again.
    """

    def __init__(self, groups: bool = False, since: Copy | None = None) -> None:
        self.rows: list[tuple[Any, Any]] = list(since.rows) if since else []
        self.position = since.position if since else ""
        self.complete = since is not None
        self.resets = 0
        self._groups = groups
        self._key: list[str] | None = since._key if since else None
        self._own = since._own if since else True
        self._ordered = since._ordered if since else False
        # After resuming, until the first step, messages may repeat rows or remove missing ones.
        self._resuming = since is not None

    @property
    def values(self) -> list[Any]:
        """Return the rows without keys."""
        return [row for _, row in self.rows]

    def checksum(self, ordered: bool | None = None) -> int:
        """Return the checksum of the rows, as docs/live.md defines it."""
        ordered = self._ordered if ordered is None else ordered
        checks = [
            crc32(canonical([None if self._own else key, row]).encode()) for key, row in self.rows
        ]
        return sum(check * (at if ordered else 1) for at, check in enumerate(checks, 1)) % 2**32

    def take(self, message: dict[str, Any]) -> None:
        """Apply a message, and check its consistency with the rows."""
        getattr(self, f"_take_{message['type']}")(message)
        self.position = message.get("position", self.position)
        if "checksum" in message:
            plain, ordered = self.checksum(ordered=False), self.checksum(ordered=True)
            assert message["checksum"] in {plain, ordered}, message
            self._ordered = self._ordered or (message["checksum"] != plain)
        if message.get("step"):
            self._resuming = False

    def _take_snapshot(self, message: dict[str, Any]) -> None:
        if self.complete or message.get("reset"):
            if self.complete:
                assert message["reset"] is True
            self.rows, self.complete = [], False
            self.resets += bool(message.get("reset"))
            self._key = None
        self._key = message.get("key", self._key)
        self._own = self._key is None and "keys" not in message
        self.rows += zip(
            self._keys(message["rows"], message.get("keys")), message["rows"], strict=True
        )
        self.complete = message.get("complete", False)

    def _take_alive(self, message: dict[str, Any]) -> None:
        assert self.complete or message.keys() <= {"type", "step"}

    def _take_delta(self, message: dict[str, Any]) -> None:
        assert self.complete
        keys = message.get("keys", {})
        enter = list(
            zip(self._keys(message["enter"], keys.get("enter")), message["enter"], strict=True)
        )
        update = list(
            zip(self._keys(message["update"], keys.get("update")), message["update"], strict=True)
        )
        for key in message["leave"]:
            self._take_out(key)
        for key, _ in enter:
            assert self._own or not self._has(key)
        after = message.get("after")
        if after is None:
            for key, row in update:
                self._put(key, row)
            self.rows += enter
            return
        self._ordered = True
        moved = []
        for (key, row), place in zip(update, after["update"], strict=True):
            if place is False:
                self._put(key, row)
            else:
                self._take_out(key)
                moved.append((key, row, place))
        entering = [(*pair, place) for pair, place in zip(enter, after["enter"], strict=True)]
        self._set_in([entering, moved])

    def _set_in(self, lists: list[list[tuple[Any, Any, Any]]]) -> None:
        """Insert rows, each after its predecessor, which may itself be among them."""
        while any(lists):
            head = next(
                each for each in lists if each and (each[0][2] is None or self._has(each[0][2]))
            )
            key, row, place = head.pop(0)
            self.rows.insert(0 if place is None else self._place(place) + 1, (key, row))

    def _put(self, key: Any, row: Any) -> None:
        if self._resuming and not self._has(key):
            self.rows.append((key, row))
        else:
            self.rows[self._place(key)] = (key, row)

    def _take_out(self, key: Any) -> None:
        if self._has(key) or not self._resuming:
            self.rows.pop(self._place(key))

    def _keys(self, rows: list[Any], keys: list[Any] | None) -> list[Any]:
        if keys is not None:
            return keys
        if self._key is None:
            return list(rows)
        if self._groups:
            return [{name: row[name] for name in self._key} for row in rows]
        if len(self._key) == 1:
            return [row[self._key[0]] for row in rows]
        return [[row[name] for name in self._key] for row in rows]

    def _has(self, key: Any) -> bool:
        return any(each == key for each, _ in self.rows)

    def _place(self, key: Any) -> int:
        return next(at for at, (each, _) in enumerate(self.rows) if each == key)


def as_set(rows: list[Any]) -> list[str]:
    """Return rows as sorted strings, to compare them without regard to order."""
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)
