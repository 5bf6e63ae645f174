"""
The log of changes as a reader reads it: what is visible now and was not at the last look.
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
    """A row of the log."""

    seq: int
    xid: int
    relation: str
    op: str
    old: Image | None
    new: Image | None

    @property
    def change(self) -> tuple[str, Image | None, Image | None]:
        """Return what happened, without where it stands."""
        return self.op, self.old, self.new


class SnapshotReader:
    """Reads the log from its position, a snapshot, which starts as that of its making."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg2.connect(dsn)
        self.connection.set_session(isolation_level="REPEATABLE READ")
        self.snapshot = ""
        with self._transaction() as rows:
            self.snapshot = _value(rows, "SELECT pg_current_snapshot()::text")

    def read(self) -> list[Entry]:
        """Return what is new, and move on."""
        with self._transaction() as rows:
            now = _value(rows, "SELECT pg_current_snapshot()::text")
            rows.execute(NEW, [self.snapshot])
            self.snapshot = now
            return [Entry(*row) for row in rows.fetchall()]

    def changes(self) -> list[tuple[str, Image | None, Image | None]]:
        """Return what is new, without where it stands."""
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
    Return the state before and after of each key that one transaction has changed.

    Of the images of a key those that were new as often as they were old fall out, in whatever order
    triggers wrote them.
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
    """Connect as any other program would."""
    return psycopg2.connect(dsn)
