"""
Positions: where a client is in the changes of the database.

To a client a position is an opaque string. An event's says which change of which tick it is, a live
query's what its rows are a state of: a snapshot. Either can be given as `since`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from service.errors import InvalidArgument, clip

MOST_DIGITS = 20
"""Of a transaction's number (`xid8` has 64 bits), and more than an epoch or a tick gets to."""
MOST_CHARACTERS = 100_000
"""Of a position: a snapshot lists the transactions that run, each in up to 20 digits."""

LAST_XID = 2**64 - 1
"""No transaction has a higher number."""

_NUMBER = rf"[0-9]{{1,{MOST_DIGITS}}}"
_TICK = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})", re.ASCII)
_SNAPSHOT = re.compile(rf"({_NUMBER}):({_NUMBER}):((?:{_NUMBER}(?:,{_NUMBER})*)?)", re.ASCII)
_QUERY = re.compile(r"[0-9a-f]{16}", re.ASCII)


class PgSnapshot(NamedTuple):
    """
    What PostgreSQL's `pg_snapshot` says: which transactions had ended when it was taken.

    Args:
        xmin: The lowest that had not; all below had.
        xmax: One above the highest that had.
        running: Those between that had not, in order.
    """

    xmin: int
    xmax: int
    running: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the snapshot that PostgreSQL has written, as in "100:104:100,102"."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Parse a snapshot that a client gives.

        Raises:
            ValueError: It is none.
        """
        found = _SNAPSHOT.fullmatch(text)
        if found is None:
            raise ValueError(text)
        xmin, xmax = int(found[1]), int(found[2])
        running = tuple(map(int, found[3].split(","))) if found[3] else ()
        inside = all(xmin <= xid < xmax for xid in running)
        if not xmin <= xmax < 2**63 or not inside or running != tuple(sorted(set(running))):
            raise ValueError(text)
        return cls(xmin, xmax, running)

    def sees(self, xid: int) -> bool:
        """Return whether what a transaction wrote is visible, if it committed."""
        return xid < self.xmax and xid not in self.running

    def __str__(self) -> str:
        """Return the text that PostgreSQL reads."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


@dataclass(frozen=True, slots=True, order=True)
class TickPosition:
    """
    Where an event stands.

    Args:
        epoch: Within which numbers of transactions and ticks mean the same.
        tick: A batch of changes that the feed made durable before it published them.
        index: Of the change in it, from 1; 0 is before the first.
    """

    epoch: int
    tick: int
    index: int

    def __str__(self) -> str:
        """Return what a client gets."""
        return f"{self.epoch}.{self.tick}.{self.index}"


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """
    What the rows of a live query are a state of.

    Args:
        epoch: As that of `TickPosition`.
        snapshot: All that is visible in it is in the rows.
        query: A digest of the query, and of the rights under which it ran; empty if not known.
    """

    epoch: int
    snapshot: PgSnapshot
    query: str = ""

    def __str__(self) -> str:
        """Return what a client gets."""
        return f"{self.epoch}.{self.snapshot}" + (f"~{self.query}" if self.query else "")


Position = TickPosition | SnapshotPosition


def parse_position(value: object, path: str = "since") -> Position:
    """
    Parse what a client gives for a position.

    Raises:
        InvalidArgument: It is none; `path` names the argument.
    """
    if isinstance(value, str) and len(value) <= MOST_CHARACTERS:
        if found := _TICK.fullmatch(value):
            epoch, tick, index = map(int, found.groups())
            if max(epoch, index) < 2**31 and tick < 2**63:
                return TickPosition(epoch, tick, index)
        whole, mark, query = value.partition("~")
        epoch_text, dot, snapshot = whole.partition(".")
        known = not mark or _QUERY.fullmatch(query)
        if (
            dot
            and known
            and re.fullmatch(_NUMBER, epoch_text, re.ASCII)
            and int(epoch_text) < 2**31
        ):
            try:
                return SnapshotPosition(int(epoch_text), PgSnapshot.parse(snapshot), query)
            except ValueError:
                pass
    raise InvalidArgument(
        f"not a position: {clip(value)}",
        path=path,
        hint="give one back as it came, from an event, a live query or position()",
    )
