"""
Positions: how far a client has followed the changes of the database, and whether that is still valid.

To a client a position is an opaque string. The position of an event names the tick and the change in it; the
position of a live query's rows is the snapshot that they were read in. Both can be given as `since`.

Transaction ids and tick numbers belong to one history of the database. A standby that is promoted without
the last commits of the old primary assigns the same numbers to other transactions, and in a restored dump
the numbers come from another database. So a position names its epoch, and a new epoch begins when the history
changes: another system identifier, database or table of ticks, another timeline, or fewer ticks than were
known. The epoch also says how much of the log was pruned.

Some managed databases grant nobody the right to read the system identifier. There a restored dump is
detected only if the log's snapshots are ahead of the server's transaction ids.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from service.changes.log import PgSnapshot, Tick, last_txn
from service.db.connection import PgConnection
from service.db.planned import PreparedStatement
from service.errors import InvalidArgument, clip

MOST_DIGITS = 20
"""Maximum number of digits of a number in a position: a transaction id (`xid8`) has 64 bits."""
MOST_CHARACTERS = 100_000
"""Maximum length of a position: a snapshot lists the running transactions, each in up to 20 digits."""

_NUMBER = rf"[0-9]{{1,{MOST_DIGITS}}}"
_TICK = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})", re.ASCII)
_SNAPSHOT = re.compile(rf"({_NUMBER}):({_NUMBER}):((?:{_NUMBER}(?:,{_NUMBER})*)?)", re.ASCII)
_QUERY = re.compile(r"[0-9a-f]{16}", re.ASCII)


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
                return SnapshotPosition(int(epoch_text), _given_snapshot(snapshot), query)
            except ValueError:
                pass
    raise InvalidArgument(
        f"not a position: {clip(value)}",
        path=path,
        hint="give one back as it came, from an event, a live query or position()",
    )


def _given_snapshot(text: str) -> PgSnapshot:
    """
    Return the snapshot that a client gave, which may be anything.

    Raises:
        ValueError: The text is not a valid snapshot.
    """
    found = _SNAPSHOT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    snapshot = PgSnapshot.of(text)
    xmin, xmax, running = snapshot
    inside = all(xmin <= xid < xmax for xid in running)
    if not xmin <= xmax < 2**63 or not inside or running != tuple(sorted(set(running))):
        raise ValueError(text)
    return snapshot


EPOCHS = 2**20
"""
Maximum by which the number of an epoch that begins a history is higher than the one before.

It is random: if each log began with epoch 1, a client whose service is given another database might resume there.
"""

FIRST = PgSnapshot(3, 3, ())
"""A snapshot that sees no transaction: 3 is the lowest normal transaction id."""

NO_SYSTEM = 0
"""Stands for the identity of a log on a server whose system identifier may not be read."""

# In recovery, pg_walfile_name raises an error.
TIMELINE = """
CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
    ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int
END
"""
# PostgreSQL checks EXECUTE when a statement is started, even if the function is never called; so a CASE
# around it would not help.
# A dump that is restored on its own server is another database, or has new tables, or both.
HISTORY = PreparedStatement(
    f"""
SELECT {TIMELINE}, pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', s.system_identifier, d.oid,
       'rowcast.ticks'::pg_catalog.regclass::pg_catalog.oid), 0)
  FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d
 WHERE d.datname = pg_catalog.current_database()
"""
)
HISTORY_WITHOUT_SYSTEM = PreparedStatement(f"SELECT {TIMELINE}, {NO_SYSTEM}")
MAY_ASK_SYSTEM = """
SELECT coalesce(pg_catalog.has_function_privilege(
    pg_catalog.to_regprocedure('pg_catalog.pg_control_system()')::oid, 'EXECUTE'), false)
"""
NOW = "SELECT pg_catalog.pg_current_snapshot()::text"
SOME = (
    "SELECT tick, epoch, snapshot::text FROM rowcast.ticks WHERE tick = ANY (%(ticks)s::bigint[])"
)
ENDS = """
SELECT e.epoch, t.snapshot::text FROM rowcast.epochs e, LATERAL (
    SELECT snapshot FROM rowcast.ticks WHERE epoch = e.epoch ORDER BY tick DESC LIMIT 1) AS t
 WHERE e.epoch = ANY (%(epochs)s)
"""

NEWEST = """
SELECT epoch, system, timeline, pruned_below::text FROM rowcast.epochs ORDER BY epoch DESC LIMIT 1
"""
_NEWEST = PreparedStatement(NEWEST)


class OnStandby(Exception):
    """The server is a standby, where `pg_current_snapshot()` does not list running transactions."""

    def __init__(self) -> None:
        super().__init__(
            "changes are read at the primary, and this is a standby → name the primary in the URL,"
            " or all hosts with target_session_attrs=read-write"
        )


@dataclass(frozen=True, slots=True)
class Epoch:
    """
    A period within which transaction ids and tick numbers keep their meaning.

    Args:
        number: Number of the epoch; ascending.
        system: Hash of the cluster's system identifier, the database and its table of ticks, or `NO_SYSTEM`.
        timeline: WAL timeline of the server.
        pruned_below: Lowest transaction id from which on the log is complete.
    """

    number: int
    system: int
    timeline: int
    pruned_below: int

    @property
    def identified(self) -> bool:
        """Whether the server says which cluster it is."""
        return self.system != NO_SYSTEM


def epoch_now_txn(connection: PgConnection) -> Epoch | None:
    """
    Return the current epoch; None if the history has changed, and no leader has begun its epoch yet.

    Raises:
        OnStandby: The server is a standby.
    """
    newest = _newest_txn(connection)
    history = _history_txn(connection, newest is None or newest.system != NO_SYSTEM)
    if newest is None or (newest.system, newest.timeline) != history:
        return None
    return newest


def begin_txn(connection: PgConnection, known: int) -> tuple[Epoch, Tick]:
    """
    Return the current epoch and the newest tick, after beginning a new epoch if the history has changed.

    Args:
        connection: The leader's session, in autocommit.
        known: Number of the newest tick that this process knew of; 0 if none.

    Raises:
        OnStandby: The server is a standby.
    """
    (may_ask,) = connection.ask(MAY_ASK_SYSTEM)
    history = _history_txn(connection, may_ask)
    newest, last = _newest_txn(connection), last_txn(connection)
    same = newest is not None and newest.system == history[0]
    if last is not None and history[0] == NO_SYSTEM:
        same = same and not _is_ahead_txn(connection, last.snapshot)
    if newest is None or not same or last is None:
        return _start_txn(connection, newest, history, known)
    if newest.timeline == history[1] and last.number >= known:
        return newest, last
    # A promoted standby. The log is complete up to the ticks that it has; positions in lost ticks name
    # the epoch before, and are refused.
    (pruned,) = connection.ask(
        "INSERT INTO rowcast.epochs (epoch, system, timeline, first_tick, pruned_below)"
        f" VALUES ({newest.number + 1}, {history[0]}, {history[1]}, {last.number + 1},"
        f" '{newest.pruned_below}') RETURNING pruned_below::text"
    )
    return Epoch(newest.number + 1, *history, int(pruned)), last


def end_txn(connection: PgConnection, epoch: int) -> TickPosition:
    """Return the position at the end of the log: before the first change of the next tick."""
    (number,) = connection.ask("SELECT coalesce(max(tick), 0) FROM rowcast.ticks")
    return TickPosition(epoch, number + 1, 0)


def resume_txn(connection: PgConnection, position: Position) -> PgSnapshot | None:
    """Return the snapshot from which to read on for one position; as `resumed_txn`."""
    return resumed_txn(connection, [position])[position]


def resumed_txn(
    connection: PgConnection, positions: Collection[Position]
) -> dict[Position, PgSnapshot | None]:
    """
    Return a snapshot for each position, such that all changes after the position are not visible in it.

    Args:
        connection: In the REPEATABLE READ transaction in which the log is read next.
        positions: Positions that callers gave.

    Returns:
        The snapshots; None for a position that is of another history, older than the log, or made up.

    Raises:
        OnStandby: The server is a standby.
    """
    epoch = epoch_now_txn(connection)
    if epoch is None:
        return dict.fromkeys(positions)
    numbers = {each.tick for each in positions if isinstance(each, TickPosition)}
    ticks = _ticks_txn(connection, numbers | {number - 1 for number in numbers})
    now = PgSnapshot.of(connection.ask(NOW)[0])
    others = {
        each.epoch
        for each in positions
        if isinstance(each, SnapshotPosition) and each.epoch < epoch.number
    }
    ends = _ends_txn(connection, others)

    def before(position: Position) -> PgSnapshot | None:
        if position.epoch > epoch.number:
            return None
        if isinstance(position, TickPosition):
            found = _before(position, ticks)
        elif position.epoch == epoch.number or _survived(position, ends):
            found = position.snapshot
        else:
            return None
        gone = found is None or found.xmin < epoch.pruned_below or found.xmax > now.xmax
        return None if gone else found

    return {each: before(each) for each in positions}


def _before(
    position: TickPosition, ticks: Mapping[int, tuple[int, PgSnapshot]]
) -> PgSnapshot | None:
    """Return the snapshot before a position's tick; None if that tick is gone, or of another history."""
    # A position at the end of the log names the next tick, which may not exist yet.
    epoch, snapshot = ticks.get(position.tick - 1, (position.epoch + 1, None))
    made_in, _ = ticks.get(position.tick, (None, None))
    if epoch > position.epoch or (position.index > 0 and made_in != position.epoch):
        return None
    return snapshot


def _survived(position: SnapshotPosition, ends: Mapping[int, PgSnapshot]) -> bool:
    """Return whether all that a snapshot of an earlier epoch saw is also in the present history."""
    snapshot, tick = position.snapshot, ends.get(position.epoch)
    return (
        tick is not None
        and snapshot.xmax <= tick.xmax
        and all(xid >= snapshot.xmax or xid in snapshot.running for xid in tick.running)
    )


def _ticks_txn(
    connection: PgConnection, numbers: Collection[int]
) -> dict[int, tuple[int, PgSnapshot]]:
    """Return the epochs and snapshots of ticks, by their numbers."""
    if not numbers:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(SOME, {"ticks": list(numbers)}, clean=True)
        return {number: (epoch, PgSnapshot.of(text)) for number, epoch, text in cursor}


def _ends_txn(connection: PgConnection, epochs: Collection[int]) -> dict[int, PgSnapshot]:
    """Return the snapshot of the last tick of each epoch that has one."""
    if not epochs:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(ENDS, {"epochs": list(epochs)}, clean=True)
        return {epoch: PgSnapshot.of(text) for epoch, text in cursor}


def _start_txn(
    connection: PgConnection, before: Epoch | None, history: tuple[int, int], known: int
) -> tuple[Epoch, Tick]:
    """Begin an epoch of a new history; empty the log, unless this is the first epoch."""
    (number,) = connection.ask("SELECT coalesce(max(tick), 0) FROM rowcast.ticks")
    tick, epoch = max(number, known) + 1, random.randint(1, EPOCHS)
    epoch += 0 if before is None else before.number
    # After a restore, the transaction ids in the log are those of another server.
    empty = "" if before is None else "DELETE FROM rowcast.log; DELETE FROM rowcast.ticks;"
    snapshot = f"'{FIRST}'::pg_snapshot" if before is None else "pg_current_snapshot()"
    # One message, because a pooler may give the session to another client after each message.
    connection.command(
        f"BEGIN ISOLATION LEVEL REPEATABLE READ; {empty}"
        "INSERT INTO rowcast.epochs (epoch, system, timeline, first_tick, pruned_below)"
        f" VALUES ({epoch}, {history[0]}, {history[1]}, {tick}, pg_snapshot_xmin({snapshot}));"
        "INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes)"
        f" VALUES ({tick}, {epoch}, {snapshot}, 0);"
        "COMMIT"
    )
    newest, last = _newest_txn(connection), last_txn(connection)
    assert newest is not None
    assert last is not None
    return newest, last


def _is_ahead_txn(connection: PgConnection, snapshot: PgSnapshot) -> bool:
    """Return whether a snapshot is ahead of the server's transaction ids."""
    return snapshot.xmax > PgSnapshot.of(connection.ask(NOW)[0]).xmax


def _history_txn(connection: PgConnection, may_ask: bool) -> tuple[int, int]:
    """Return the system, or `NO_SYSTEM` if its identifier may not be read, and the timeline, as in `Epoch`."""
    with connection.cursor() as cursor:
        (HISTORY if may_ask else HISTORY_WITHOUT_SYSTEM).run(cursor)
        timeline, system = cursor.fetchone()
    if timeline is None:
        raise OnStandby
    return system, timeline


def _newest_txn(connection: PgConnection) -> Epoch | None:
    with connection.cursor() as cursor:
        _NEWEST.run(cursor)
        found = cursor.fetchone()
    if found is None:
        return None
    number, system, timeline, pruned = found
    return Epoch(number, system, timeline, int(pruned))
