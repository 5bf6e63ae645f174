"""
Readers of the log of changes: each read returns the rows that became visible since the last one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection, cursor

Image = dict[str, Any]
NEW = """
SELECT l.seq, l.xid::text::bigint, coalesce(t.name, l.relation::text), l.op, l.old, l.new
  FROM rowcast.log l LEFT JOIN rowcast.tracked t ON t.id = l.relation
 WHERE NOT pg_visible_in_snapshot(l.xid, %s::pg_snapshot) ORDER BY l.seq
"""


@dataclass(frozen=True)
class Entry:
    """A row of the log of changes."""

    seq: int
    xid: int
    relation: str
    op: str
    old: Image | None
    new: Image | None

    @property
    def change(self) -> tuple[str, Image | None, Image | None]:
        """Return the operation and the images, without the position in the log."""
        return self.op, self.old, self.new


class SnapshotReader:
    """A reader whose position is a snapshot; the first one is taken when the reader is created."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg2.connect(dsn)
        self.connection.set_session(isolation_level="REPEATABLE READ")
        self.snapshot = ""
        with self._transaction() as rows:
            self.snapshot = _value(rows, "SELECT pg_current_snapshot()::text")

    def read(self) -> list[Entry]:
        """Return the new rows of the log, and advance the position."""
        with self._transaction() as rows:
            now = _value(rows, "SELECT pg_current_snapshot()::text")
            rows.execute(NEW, [self.snapshot])
            self.snapshot = now
            return [Entry(*row) for row in rows.fetchall()]

    def changes(self) -> list[tuple[str, Image | None, Image | None]]:
        """Return the new operations and images, and advance the position."""
        return [entry.change for entry in self.read()]

    @contextmanager
    def _transaction(self) -> Iterator[cursor]:
        with self.connection, self.connection.cursor() as rows:
            yield rows


def _value(rows: cursor, statement: str) -> str:
    rows.execute(statement)
    ((value,),) = rows.fetchall()
    return str(value)


def net(entries: Iterable[Entry], key: str) -> dict[Any, tuple[Image | None, Image | None]]:
    """
    Return the old and new image of each key that one transaction has changed.

    Images of a key that occur as often as new images as they occur as old ones cancel out, whatever
    the order in which triggers wrote them.
    """
    images: dict[Any, Counter[str]] = {}
    for entry in entries:
        for image, sign in ((entry.old, -1), (entry.new, 1)):
            if image is not None:
                text = json.dumps(image, sort_keys=True)
                images.setdefault(image[key], Counter())[text] += sign
    found = {}
    for value, counted in images.items():
        before = [json.loads(text) for text, count in counted.items() if count < 0]
        after = [json.loads(text) for text, count in counted.items() if count > 0]
        assert len(before) < 2, (value, before)
        assert len(after) < 2, (value, after)
        if before or after:
            found[value] = (before[0] if before else None, after[0] if after else None)
    return found


def connect(dsn: str) -> connection:
    """Connect with psycopg2, outside the service."""
    return psycopg2.connect(dsn)
