"""
Positions: how far a client has followed the changes of the database.

To a client a position is an opaque string. The position of an event names the tick and the change in it; the
position of a live query's rows is the snapshot that they were read in. Both can be given as `since`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from service.errors import InvalidArgument, clip

MOST_DIGITS = 20
"""Maximum number of digits of a number in a position: a transaction id (`xid8`) has 64 bits."""
MOST_CHARACTERS = 100_000
"""Maximum length of a position: a snapshot lists the running transactions, each in up to 20 digits."""

LAST_XID = 2**64 - 1
"""The highest transaction id that `xid8` can hold."""

_NUMBER = rf"[0-9]{{1,{MOST_DIGITS}}}"
_TICK = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})", re.ASCII)
_SNAPSHOT = re.compile(rf"({_NUMBER}):({_NUMBER}):((?:{_NUMBER}(?:,{_NUMBER})*)?)", re.ASCII)
_QUERY = re.compile(r"[0-9a-f]{16}", re.ASCII)


class PgSnapshot(NamedTuple):
    """
    A `pg_snapshot` of PostgreSQL: which transactions had ended when the snapshot was taken.

    Args:
        xmin: Lowest transaction id that was still running; all lower ones had ended.
        xmax: One above the highest transaction id that had ended.
        running: Ids between xmin and xmax that were still running, in ascending order.
    """

    xmin: int
    xmax: int
    running: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the snapshot of a text that PostgreSQL wrote, such as "100:104:100,102"."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Parse a snapshot that a client gave, which may be anything.

        Raises:
            ValueError: The text is not a valid snapshot.
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
        """Return whether the changes of a transaction are visible, if it has committed."""
        return xid < self.xmax and xid not in self.running

    def __str__(self) -> str:
        """Return the snapshot as text that PostgreSQL accepts."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


@dataclass(frozen=True, slots=True, order=True)
class TickPosition:
    """
    The position of an event.

    Args:
        epoch: Number of the epoch, within which transaction ids and tick numbers keep their meaning.
        tick: Number of the tick that the change is in.
        index: Number of the change in the tick, from 1; 0 is before the first.
    """

    epoch: int
    tick: int
    index: int

    def __str__(self) -> str:
        """Return the position as clients receive it."""
        return f"{self.epoch}.{self.tick}.{self.index}"


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """
    The position of the rows of a live query.

    Args:
        epoch: Number of the epoch, as in `TickPosition`.
        snapshot: The snapshot in which the rows were read.
        query: Digest of the query and of the rights under which it ran; empty if not known.
    """

    epoch: int
    snapshot: PgSnapshot
    query: str = ""

    def __str__(self) -> str:
        """Return the position as clients receive it."""
        return f"{self.epoch}.{self.snapshot}" + (f"~{self.query}" if self.query else "")


Position = TickPosition | SnapshotPosition


def parse_position(value: object, path: str = "since") -> Position:
    """
    Parse a position that a client gave.

    Raises:
        InvalidArgument: The value is not a position; `path` names the argument.
    """
    if isinstance(value, str) and len(value) <= MOST_CHARACTERS:
        if found := _TICK.fullmatch(value):
            epoch, tick, index = map(int, found.groups())
            # The types of PostgreSQL's columns: int for an epoch, bigint for a tick.
            if max(epoch, index) < 2**31 and tick < 2**63:
                return TickPosition(epoch, tick, index)
        head, mark, query = value.partition("~")
        epoch_text, dot, snapshot = head.partition(".")
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
