"""
Catch-up: the changes after a position, to each caller what its role may see.

The ticks of the log are read again, so that what a subscriber has missed comes with the content,
order and positions that it had on the topics. Of a relation with row-level security an entry says only
that it has changed: a policy judges rows that are there, and not what they were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cbor2

from service.api.dispatcher import Dispatcher, Procedure
from service.api.roles import Roles
from service.catalog import Catalog, QualifiedName
from service.changes.epochs import OnStandby, epoch_now_txn, resume_txn
from service.changes.log import Tracked, installed_txn, refuse_barred_txn, tracked_txn
from service.changes.net import Change, last_place, net_changes
from service.changes.positions import (
    PgSnapshot,
    Position,
    SnapshotPosition,
    TickPosition,
    parse_position,
)
from service.changes.ticks import (
    Tick,
    TickPage,
    end_txn,
    page_txn,
    pages_txn,
    rows_txn,
    ticks_txn,
)
from service.changes.topics import Rights, Shown, behind, reset, rights_txn, shown_of
from service.changes.why import find_relation
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.pack import ARRAY, head
from service.db.session_settings import OWN_IDENTITY
from service.db.statements import compute_txn
from service.errors import InvalidArgument, PositionGone, Unavailable
from service.payload import Encoded, wire_json
from service.request.arguments import Arguments, Caller, items_with_paths

TICKS = 100
"""That are read at a time."""
CONSIDERED = 20_000
"""Changes that one call looks at, most of which may be of other relations than it asks for."""
ROWS = 1000
"""Rows of the log that are read at a time, unless fewer changes are asked for."""
LEAST = 100
"""Rows that are read at a time, however few are asked for."""
LARGE = 8
"""Large ticks of which it is remembered how they are read."""
FORMS = ("dicts", "json")
"""Of an answer; changes of several relations have no columns to be lists of."""
ROOM = 4096
"""Bytes of an answer besides its changes."""

FIRST_AFTER = """
SELECT coalesce(max(tick), 0) + 1 FROM rowcast.ticks
 WHERE pg_catalog.pg_snapshot_xmax(snapshot) <= '{xmin}'
"""


@dataclass(frozen=True, slots=True)
class ReadChanges:
    """
    What was read of the log for a caller.

    Args:
        changes: Those that it may be shown, if its rights allow.
        rights: On their relations.
        ended: Transactions all of whose changes were looked at.
        position: Where the changes that follow begin.
        more: Whether there are some by now.
    """

    changes: Sequence[Change]
    rights: Mapping[int, Rights]
    ended: frozenset[str]
    position: str
    more: bool


@dataclass(frozen=True, slots=True)
class Paging:
    """
    How a large tick is read; it stays as it is, so whoever finds out the same at once finds the same.

    Args:
        pages: Those that are known, from the first on.
        before: Rows of the tick that come before each page that was reached.
    """

    pages: list[TickPage] = field(default_factory=list)
    before: list[int] = field(default_factory=lambda: [0])


class LargeTicks:
    """
    How large ticks are read that were asked for last.

    Without it the thousandth answer of one would look at all that the others had before.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Paging] = {}

    def paging(self, tick: Tick) -> Paging:
        """Return how a tick is read."""
        name = tick.epoch, tick.number
        found = self._known.pop(name, None) or Paging()
        self._known[name] = found
        while len(self._known) > LARGE:
            self._known.pop(next(iter(self._known)), None)
        return found

    def reached(self, position: TickPosition) -> bool:
        """Return whether a page of a tick is known to end at a position."""
        found = self._known.get((position.epoch, position.tick))
        return found is not None and position.index in map(last_place, found.before)


class CatchUp:
    """
    Answers `changes` and `position`.

    Args:
        database: Has the log.
        dispatcher: Has the catalogs of all roles.
        roles: Of callers and of the database.
        max_rows: Changes in one answer.
        max_bytes: What an answer may weigh.
        most: Rows of the log above which a transaction is a reset, as for the feed.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        roles: Roles,
        max_rows: int,
        max_bytes: int,
        most: int,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._roles = roles
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
        """Return the newest position: what is committed from now on comes after it."""
        timeout = Arguments(args, kwargs, [], []).timeout()
        # As the service itself: callers have no right on the log.
        with self._database.identity(OWN_IDENTITY):
            found: str = await self._database.run(position_txn, retry=True, timeout=timeout)
        return found

    async def _changes(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any] | str:
        """
        Return the changes after a position, as far as the caller may see them.

        Raises:
            InvalidArgument: The position is none, or changes of a relation are not logged.
            PositionGone: The changes are not kept any more.
        """
        given = Arguments(args, kwargs, ["since"], ["relations", "limit", "form"])
        since = parse_position(given.required("since"))
        form = given.choice("form", FORMS, "dicts")
        limit = given.integer("limit")
        limit = self._max_rows if limit is None else min(limit, self._max_rows)
        served, role = self._dispatcher.served_to(caller), self._roles.of(caller)
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
            if any(behind(catalog, each) for each in read.rights.values()):
                await self._dispatcher.refresh()
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
        found.append((relation.schema, relation.name))
    return found


def position_txn(connection: PgConnection) -> str:
    """
    Return the newest position.

    Raises:
        InvalidArgument: There is no log.
        Unavailable: It is not read yet, or not here.
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
        connection: In a REPEATABLE READ transaction, as the service itself.
        since: The position.
        role: Of the database, whose rights are read too.
        wanted: The relations; None for all.
        limit: Changes at most.
        most: Rows of the log above which a transaction is a reset.
        large: What is known of large ticks.

    Raises:
        InvalidArgument: There is no log, or none of a relation.
        PositionGone: The changes are not kept any more.
        Unavailable: The log is not read yet, or not here.
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
    position = _position(since, last, follows) if follows else end_txn(connection, epoch)
    rights = rights_txn(connection, {each.relation for each in changes}, [role])
    return ReadChanges(changes, rights, frozenset(ended), str(position), follows is not None)


def _ids(tracked: Mapping[int, Tracked], wanted: Sequence[QualifiedName]) -> set[int]:
    """
    Return the numbers of relations in the log.

    Raises:
        InvalidArgument: Changes of one are not logged.
    """
    by_name = {(each.schema, each.name): each.id for each in tracked.values()}
    for schema, name in wanted:
        if (schema, name) not in by_name:
            raise InvalidArgument(
                f'changes of "{name}" are not logged',
                path="relations",
                hint=f"rowcast track {schema}.{name}",
            )
    return {by_name[each] for each in wanted}


def _position(since: Position, last: Change | None, follows: Change | Tick) -> Position:
    """Return where what follows the last change begins: before its tick, if that is another one."""
    if last is None:
        return since
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
    tracked: Mapping[int, Tracked],
    left: Callable[[], int],
    most: int,
    large: LargeTicks,
) -> Iterator[Change | Tick]:
    """
    Yield the changes after a position, in their order; and a tick before rows of it are read.

    Args:
        connection: In a REPEATABLE READ transaction.
        since: The position.
        tracked: What is tracked.
        left: Returns how many changes are asked for yet.
        most: Rows of the log above which a transaction is a reset.
        large: What is known of large ticks.

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
                yield from _behind(found, since, met)
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


def _behind(
    found: Iterator[Change | Tick], since: TickPosition, met: bool
) -> Iterator[Change | Tick]:
    """
    Yield the changes behind a position in the first of some ticks.

    Raises:
        PositionGone: There is no change at the position, and it is not known that a page ends there.
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
    """Yield ticks that are read by one statement: as many as have few rows, or one that has more."""
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
    tracked: Mapping[int, Tracked],
    most: int,
    large: LargeTicks,
    after: int,
) -> Iterator[Change | Tick]:
    """Yield the changes of ticks; of the first one perhaps only those after an index."""
    if 0 < sum(tick.rows for tick in ticks) <= ROWS:
        yield ticks[0]
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
    tracked: Mapping[int, Tracked],
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
    Return what `changes` answers, in a pool thread.

    Args:
        read: What was read.
        catalog: What is served to the caller.
        role: Of the caller, in the database.
        form: "json" for one JSON text.
        max_bytes: What the answer may weigh.
    """
    pieces: list[str] = []
    entries, latest = _entries_of(read, catalog, role, form, max_bytes - ROOM)
    position, more, left = read.position, read.more, max_bytes - ROOM
    for number, (at, change, written) in enumerate(entries):
        piece = written(change, latest.get(change.xid) == number and change.xid in read.ended)
        left -= 1 + len(piece.encode() if form == "json" else piece)
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
"""Return a change, and whether it is the last of its transaction, as JSON, or as CBOR of `pack.py`."""


def _entries_of(
    read: ReadChanges, catalog: Catalog, role: str, form: str, max_bytes: int
) -> tuple[list[tuple[int, Change, Write]], dict[str, int]]:
    """
    Return the changes that are answered, each with its place in what was read, and what writes it.

    And of each transaction the last of them: that of all may be one that the caller does not see.
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
    """Return what writes the changes of a relation."""
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
    """Return the entry that says of a relation only that it has changed."""
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
