"""
Catch-up: the procedures `changes` and `position`, for subscribers that have missed events.

`changes` reads the ticks of the log again, so that missed changes have the content, order and positions that
they had on the topics. Each caller is shown what its role may see. For a relation with row-level security an
entry says only that it has changed, because a policy can be evaluated on present rows, not on images.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cbor2

from service.api.dispatcher import Dispatcher, Procedure
from service.catalog import Catalog, QualifiedName
from service.changes.log import (
    PgSnapshot,
    Tick,
    TickPage,
    TrackedTable,
    installed_txn,
    page_txn,
    pages_txn,
    refuse_barred_txn,
    rows_txn,
    ticks_txn,
    tracked_txn,
)
from service.changes.net import Change, last_place, net_changes
from service.changes.positions import (
    OnStandby,
    Position,
    SnapshotPosition,
    TickPosition,
    end_txn,
    epoch_now_txn,
    parse_position,
    resume_txn,
)
from service.changes.topics import Rights, Shown, is_catalog_behind, reset, rights_txn, shown_of
from service.changes.why import UNTRACKABLE, find_relation, track_command, track_hint
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.pack import ARRAY, head
from service.db.session_settings import OWN_IDENTITY
from service.db.statements import compute_txn
from service.errors import InvalidArgument, PositionGone, Unavailable
from service.payload import Encoded, wire_json
from service.request.arguments import Arguments, Caller, items_with_paths

TICKS = 100
"""Number of ticks that are read at a time."""
CONSIDERED = 20_000
"""Maximum number of changes that one call examines, including those of relations it does not ask for."""
ROWS = 1000
"""Maximum number of log rows that are read at a time."""
LEAST = 100
"""Number of log rows that are read at a time even if fewer changes are asked for."""
LARGE = 8
"""Number of large ticks whose paging is cached."""
FORMS = ("dicts", "json")
"""Forms of an answer; not "lists", because changes of several relations share no columns."""
ROOM = 4096
"""Allowance in bytes for an answer besides its changes."""

FIRST_AFTER = """
SELECT coalesce(max(tick), 0) + 1 FROM rowcast.ticks
 WHERE pg_catalog.pg_snapshot_xmax(snapshot) <= '{xmin}'
"""


@dataclass(frozen=True, slots=True)
class ReadChanges:
    """
    Changes that were read from the log for a caller.

    Args:
        changes: The changes, not filtered by the caller's rights yet.
        rights: Rights on their relations.
        ended: Transactions of which all changes were examined.
        position: Position from which to read on.
        more: Whether there are more changes now.
    """

    changes: Sequence[Change]
    rights: Mapping[int, Rights]
    ended: frozenset[str]
    position: str
    more: bool


@dataclass(frozen=True, slots=True)
class Paging:
    """
    The pages of a large tick, found out so far.

    A tick never changes, so threads that find out the same pages at once do no harm.

    Args:
        pages: The known pages, from the first on.
        before: For each page that was reached, the number of the tick's rows before it.
    """

    pages: list[TickPage] = field(default_factory=list)
    before: list[int] = field(default_factory=lambda: [0])


class LargeTicks:
    """
    A cache of the paging of the large ticks that were read last.

    Without it, each answer would read the large tick from its start again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Paging] = {}

    def paging(self, tick: Tick) -> Paging:
        """Return the paging of a tick."""
        name = tick.epoch, tick.number
        found = self._known.pop(name, None) or Paging()
        self._known[name] = found
        while len(self._known) > LARGE:
            self._known.pop(next(iter(self._known)), None)
        return found

    def reached(self, position: TickPosition) -> bool:
        """Return whether a known page of a tick ends at a position."""
        found = self._known.get((position.epoch, position.tick))
        return found is not None and position.index in map(last_place, found.before)


class CatchUpProcedures:
    """
    The procedures `changes` and `position`.

    Args:
        database: The database with the log.
        dispatcher: Knows the database role of a caller, and the catalog that is served to it.
        max_rows: Maximum number of changes in one answer.
        max_bytes: Maximum size of an answer in bytes.
        most: Number of log rows above which a transaction is a reset; the same as the feed's.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        max_rows: int,
        max_bytes: int,
        most: int,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._most = most
        self._large = LargeTicks()

    def procedures(self) -> dict[str, Procedure]:
        """Return the procedures by name."""
        return {"changes": self._changes, "position": self._position}

    async def _position(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str:
        """Return the newest position: changes committed from now on come after it."""
        timeout = Arguments(args, kwargs, [], []).timeout()
        # With the service's own role: callers have no right on the log.
        with self._database.identity(OWN_IDENTITY):
            found: str = await self._database.run(position_txn, retry=True, timeout=timeout)
        return found

    async def _changes(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any] | str:
        """
        Return the changes after a position, as far as the caller may see them.

        Raises:
            InvalidArgument: The position is invalid, or changes of a relation are not logged.
            PositionGone: The log does not have the changes after the position any more.
            Unavailable: The catalog is older than the changes, and could not be read again.
        """
        given = Arguments(args, kwargs, ["since"], ["relations", "limit", "form"])
        since = parse_position(given.required("since"))
        form = given.choice("form", FORMS, "dicts")
        limit = given.integer("limit")
        limit = self._max_rows if limit is None else min(limit, self._max_rows)
        served, role = self._dispatcher.served_to(caller), self._dispatcher.role_of(caller)
        wanted = _relations(served.catalog, given)
        with self._database.identity(OWN_IDENTITY):
            read: ReadChanges = await self._database.atomic(
                changes_txn,
                since,
                role,
                wanted,
                limit,
                self._most,
                self._large,
                isolation="repeatable read",
                read_only=True,
                retry=True,
                timeout=given.timeout(),
            )
            catalog = served.catalog
            if any(is_catalog_behind(catalog, each) for each in read.rights.values()):
                # Without the catalog's columns the changes would be left out, and the position be past them.
                if not await self._dispatcher.refresh():
                    raise Unavailable(
                        "the catalog is older than the changes, and cannot be read now"
                    )
                catalog = self._dispatcher.served_to(caller).catalog
            answer: dict[str, Any] | str = await self._database.run(
                compute_txn, answer_of, read, catalog, role, form, self._max_bytes, retry=True
            )
        return answer


def _relations(catalog: Catalog, given: Arguments) -> list[QualifiedName] | None:
    if given.value("relations") is None:
        return None
    found = []
    for name, path in items_with_paths(given.value("relations"), "relations"):
        try:
            relation = find_relation(catalog, name)
        except InvalidArgument as refusal:
            refusal.details["path"] = path
            raise
        if relation.kind in UNTRACKABLE:
            raise InvalidArgument(
                f'changes of "{relation.name}" are not logged',
                path=path,
                relation=relation.name,
                hint=track_hint(relation, relation.name),
            )
        found.append((relation.schema, relation.name))
    return found


def position_txn(connection: PgConnection) -> str:
    """
    Return the newest position.

    Raises:
        InvalidArgument: There is no change log.
        Unavailable: No feed has read the log yet, or the server is a standby.
    """
    return str(end_txn(connection, _epoch_txn(connection)))


def changes_txn(
    connection: PgConnection,
    since: Position,
    role: str,
    wanted: Sequence[QualifiedName] | None,
    limit: int,
    most: int,
    large: LargeTicks,
) -> ReadChanges:
    """
    Read the changes after a position.

    Args:
        connection: In a REPEATABLE READ transaction, with the service's own role.
        since: The position.
        role: Database role of the caller, whose rights are looked up too.
        wanted: The relations to read; None for all.
        limit: Maximum number of changes.
        most: Number of log rows above which a transaction is a reset.
        large: Cache of the paging of large ticks.

    Raises:
        InvalidArgument: There is no change log, or changes of a relation are not logged.
        PositionGone: The log does not have the changes after the position any more.
        Unavailable: No feed has read the log yet, or the server is a standby.
    """
    epoch = _epoch_txn(connection)
    if resume_txn(connection, since) is None:
        raise PositionGone
    tracked = tracked_txn(connection)
    ids = None if wanted is None else _ids(tracked, wanted)
    changes: list[Change] = []
    ended: set[str] = set()
    last, follows, considered = None, None, 0

    def left() -> int:
        return limit - len(changes)

    for found in _after_txn(connection, since, tracked, left, most, large):
        # Changes of other relations count, too: the call ends, however few its relations have in a long log.
        asked = isinstance(found, Tick) or ids is None or found.relation in ids
        if considered == CONSIDERED or (asked and len(changes) == limit):
            follows = found
            break
        if isinstance(found, Tick):
            continue
        last, considered = found, considered + 1
        if asked:
            changes.append(found)
        if found.last:
            ended.add(found.xid)
    position = _position_between(since, last, follows) if follows else end_txn(connection, epoch)
    rights = rights_txn(connection, {each.relation for each in changes}, [role])
    return ReadChanges(changes, rights, frozenset(ended), str(position), follows is not None)


def _ids(tracked: Mapping[int, TrackedTable], wanted: Sequence[QualifiedName]) -> set[int]:
    """
    Return the numbers of relations in the log.

    Raises:
        InvalidArgument: Changes of a relation are not logged.
    """
    by_name = {(each.schema, each.name): each.id for each in tracked.values()}
    for schema, name in wanted:
        if (schema, name) not in by_name:
            raise InvalidArgument(
                f'changes of "{name}" are not logged',
                path="relations",
                relation=name,
                hint=track_command(schema, name),
            )
    return {by_name[each] for each in wanted}


def _position_between(since: Position, last: Change | None, follows: Change | Tick) -> Position:
    """Return the position between the last change and what follows; at the start of a following tick."""
    if last is None:
        return since
    # Not the last change of a complete tick: the next call would read that tick again to get past it.
    tick = follows if isinstance(follows, Tick) else follows.tick
    same = tick.number == last.tick.number
    return last.position if same else TickPosition(tick.epoch, tick.number, 0)


def _epoch_txn(connection: PgConnection) -> int:
    if not installed_txn(connection):
        refuse_barred_txn(connection)
        raise InvalidArgument(
            "no changes are logged in this database", hint="rowcast track <table> begins to"
        )
    try:
        epoch = epoch_now_txn(connection)
    except OnStandby as error:
        raise Unavailable(str(error)) from error
    if epoch is None:
        raise Unavailable("changes are not read yet")
    return epoch.number


def _after_txn(
    connection: PgConnection,
    since: Position,
    tracked: Mapping[int, TrackedTable],
    left: Callable[[], int],
    most: int,
    large: LargeTicks,
) -> Iterator[Change | Tick]:
    """
    Yield the changes after a position, in order, and a tick each time before rows of it are read.

    The tick lets the caller stop before that read, when it needs no more changes.

    Args:
        connection: In a REPEATABLE READ transaction.
        since: The position.
        tracked: The tracked tables.
        left: Returns how many more changes are needed.
        most: Number of log rows above which a transaction is a reset.
        large: Cache of the paging of large ticks.

    Raises:
        PositionGone: There is no change at the position.
    """
    if isinstance(since, SnapshotPosition):
        (number,) = connection.ask(FIRST_AFTER.format(xmin=since.snapshot.xmin))
        met = True
    else:
        number = since.tick
        met = not since.index or large.reached(since)
    while ticks := ticks_txn(connection, number, TICKS):
        for together in _together(ticks, left):
            after = 0
            if isinstance(since, TickPosition) and together[0].number == since.tick:
                after = since.index
            found = _of_ticks_txn(connection, together, tracked, most, large, after)
            if isinstance(since, SnapshotPosition):
                yield from _not_seen(found, since.snapshot)
            elif after:
                yield from _after_index(found, since, met)
                met = True
            else:
                yield from found
        number = ticks[-1].number + 1
    if not met:
        raise PositionGone


def _not_seen(found: Iterator[Change | Tick], snapshot: PgSnapshot) -> Iterator[Change | Tick]:
    """Yield the changes that are not visible in a snapshot."""
    for each in found:
        if isinstance(each, Tick) or not snapshot.sees(int(each.xid)):
            yield each


def _after_index(
    found: Iterator[Change | Tick], since: TickPosition, met: bool
) -> Iterator[Change | Tick]:
    """
    Yield the changes after a position, which is in the first of some ticks.

    Raises:
        PositionGone: There is no change at the position, and `met` does not say that it is valid.
    """
    for each in found:
        if isinstance(each, Change) and each.tick.number == since.tick:
            met = met or each.place == since.index
            if each.place <= since.index:
                continue
        if isinstance(each, Change) and not met:
            raise PositionGone
        yield each
    if not met:
        raise PositionGone


def _together(ticks: Sequence[Tick], left: Callable[[], int]) -> Iterator[list[Tick]]:
    """Yield groups of ticks to be read by one statement: several small ticks, or one large tick."""
    found: list[Tick] = []
    rows = 0
    for tick in ticks:
        few = max(LEAST, min(left(), ROWS))
        if found and (rows + tick.rows > few or tick.epoch != found[0].epoch):
            yield found
            found, rows = [], 0
        found.append(tick)
        rows += tick.rows
    if found:
        yield found


def _of_ticks_txn(
    connection: PgConnection,
    ticks: Sequence[Tick],
    tracked: Mapping[int, TrackedTable],
    most: int,
    large: LargeTicks,
    after: int,
) -> Iterator[Change | Tick]:
    """Yield the changes of ticks; of a large first one only pages that reach beyond the index `after`."""
    if 0 < sum(tick.rows for tick in ticks) <= ROWS:
        yield ticks[0]
        # Few rows may still be too large together; then `found` is empty, and each tick is read in pages.
        found = rows_txn(connection, ticks, most)
        for tick, rows in zip(ticks, found, strict=False):
            yield from net_changes(rows, tracked, tick)
        if found:
            return
    for tick in ticks:
        if tick.rows:
            yield from _of_large_txn(connection, tick, tracked, most, large.paging(tick), after)
        after = 0


def _of_large_txn(
    connection: PgConnection,
    tick: Tick,
    tracked: Mapping[int, TrackedTable],
    most: int,
    paging: Paging,
    after: int,
) -> Iterator[Change | Tick]:
    at = bisect_right(paging.before, after, key=last_place) - 1
    before = paging.before[at]
    while True:
        if at == len(paging.pages):
            last = paging.pages[-1].last if paging.pages else 0
            more = pages_txn(connection, tick, most, last, ROWS)
            if not more:
                return
            paging.pages[at : at + len(more)] = more
        yield tick
        rows = page_txn(connection, paging.pages[at])
        yield from net_changes(rows, tracked, tick, before)
        at, before = at + 1, before + len(rows)
        paging.before[at : at + 1] = [before]


def answer_of(
    read: ReadChanges, catalog: Catalog, role: str, form: str, max_bytes: int
) -> dict[str, Any] | str:
    """
    Build the answer of `changes`; runs in a pool thread.

    Args:
        read: The changes that were read.
        catalog: Catalog that is served to the caller.
        role: Database role of the caller.
        form: "dicts", or "json" for one JSON text.
        max_bytes: Maximum size of the answer in bytes.
    """
    pieces: list[str] = []
    entries, latest = _entries_of(read, catalog, role, form, max_bytes - ROOM)
    position, more, left = read.position, read.more, max_bytes - ROOM
    for number, (at, change, written) in enumerate(entries):
        piece = written(change, latest.get(change.xid) == number and change.xid in read.ended)
        left -= 1 + len(piece.encode() if form == "json" else piece)
        # At least one entry, however large, or the caller would ask for this position for ever.
        if left < 0 and pieces:
            position, more = str(read.changes[at - 1].position), True
            break
        pieces.append(piece)
    if form == "json":
        rest = wire_json({"position": position, "more": more})
        return f'{{"changes":[{",".join(pieces)}],{rest[1:]}'
    data = head(ARRAY, len(pieces)) + "".join(pieces)
    return {"changes": Encoded(data.encode("latin-1")), "position": position, "more": more}


Write = Callable[[Change, bool], str]
"""Encodes a change as JSON, or as CBOR as in `db/pack.py`; the second argument is the entry's `last`."""


def _entries_of(
    read: ReadChanges, catalog: Catalog, role: str, form: str, max_bytes: int
) -> tuple[list[tuple[int, Change, Write]], dict[str, int]]:
    """
    Return the entries of an answer, and for each transaction the index of its last entry.

    An entry is a change with its index in what was read and its encoder. The last entry of a transaction is
    marked `last`, because its last change may be one that the caller does not see.
    """
    shown = {
        id: shown_of(catalog, rights, rights.columns[role])
        for id, rights in read.rights.items()
        if (rights.schema, rights.name) in catalog.relations
    }
    write = {id: _writing(each, form, max_bytes) for id, each in shown.items()}
    entries: list[tuple[int, Change, Write]] = []
    latest: dict[str, int] = {}
    touched: set[tuple[int, int]] = set()
    held: tuple[int, int] | None = None
    for at, change in enumerate(read.changes):
        of = shown.get(change.relation)
        tick = change.relation, change.tick.number
        if of is None or tick in touched:
            continue
        if of.only_touched(change):
            # Once for a tick: the number of entries would reveal how many rows were changed.
            touched.add(tick)
        else:
            rights = read.rights[change.relation]
            if tick != held and rights.hold_in(change.tick):
                held = tick
            if tick != held and not rights.hold_for(change):
                touched.add(tick)
                change = reset(change)
            latest[change.xid] = len(entries)
        entries.append((at, change, write[change.relation]))
    return entries, latest


def _writing(of: Shown, form: str, max_bytes: int) -> Write:
    """Return the encoder of a relation's changes."""
    packer = of.packer(max_bytes) if form != "json" else None

    def write(change: Change, last: bool) -> str:
        if of.only_touched(change):
            event = touch(of, change)
        else:
            packed = packer(change, last) if packer is not None else None
            if packed is not None:
                return packed
            event = {**of.event(change, max_bytes), "last": last}
        return wire_json(event) if form == "json" else cbor2.dumps(event).decode("latin-1")

    return write


def touch(shown: Shown, change: Change) -> dict[str, Any]:
    """Return the entry that says only that a relation has changed."""
    return {
        "op": "touch",
        "schema": shown.schema,
        "key": None,
        "row": None,
        "old": None,
        "tx": None,
        "last": True,
        "at": None,
        **shown.touched(change),
    }
