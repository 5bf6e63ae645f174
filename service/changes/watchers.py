"""
Watchers: the queries that are watched, and what each caller has of them.

There may be many thousands of watches of which little happens to any. So each keeps little, and what
happens to some costs nothing for the others.
"""

from __future__ import annotations

import time
from collections.abc import (
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cbor2

from service.api.call import Call, CallState, Lasting, Send
from service.changes.cycle import Found, Order
from service.changes.delta import (
    Difference,
    FoundRows,
    Message,
    State,
    alive_message,
    delta_message,
    difference,
    has_copies,
    resume_message,
    snapshot_messages,
)
from service.changes.positions import Position, SnapshotPosition
from service.changes.refresh import Run
from service.request.arguments import Caller

if TYPE_CHECKING:
    from service.changes.watching_session import WatchingSession

NOTHING = Difference((), (), ())

Kept = tuple[State, dict[Hashable, Any]]
"""A state that a watch is to be brought to, and the rows that are different from those its caller has."""


class Query:
    """
    A query that is watched, by one or more.

    It is new until `Watches._begin` has read its rows, alone. From then on each cycle tells what the
    log says of it, and reads all of its rows if it is `stale` or a watch wants them. If that takes
    long (`Run.heavy`), it is read aside: `orders_of` puts it off until it and all of its group have
    rested; `begin_aside` takes it out of the cycles, `end_aside` puts it back, to be put off again if
    it was not read. Either way of being read apart ends in `found_at`, and the next cycle, which goes
    on from there, in `join`. One that is refused is parked until the catalog has been looked at.
    Whoever watches one that is put off, aside or not joined waits, with his session.

    Args:
        run: How it is run.
        caller: One of those who ask it.
        kwargs: Of his call, less what is not of the query.
        asking: Those of which more may be wanted than what the log says.

    Attributes:
        aside: Whether its rows are being read aside.
        name: Of all that is alike.
        state: What it was found in last; None before its first run.
        since: Where that was, if it was read apart, until a cycle has it from there.
        watches: Of it.
        stale: Whether its rows may be others, whatever the log says.
        late: How many cycles it was put off.
        parked: Whether it waits for another catalog, since it was refused by this one.
        renewed: Whether it was refused before, by an older catalog.
    """

    __slots__ = (
        "_asking",
        "_delta",
        "_kwargs",
        "aside",
        "caller",
        "late",
        "name",
        "parked",
        "renewed",
        "run",
        "since",
        "stale",
        "state",
        "watches",
    )

    def __init__(
        self, run: Run, caller: Caller, kwargs: Mapping[str, Any], asking: set[Query]
    ) -> None:
        self._asking = asking
        self.name = run.name
        self.run = run
        self.caller = caller
        # As bytes they take a tenth, and nobody asks for them until the catalog changes.
        self._kwargs = cbor2.dumps(dict(kwargs))
        self.state: State | None = None
        self.since: SnapshotPosition | None = None
        # Not a set, which takes four times as much, since nearly all have a single one.
        self.watches: tuple[Watch, ...] = ()
        self._delta: tuple[State, State, Message] | None = None
        self.stale = self.aside = self.parked = self.renewed = False
        self.late = 0

    @property
    def call(self) -> Call:
        """Return a call that asks it, as it was made."""
        like: Call = self.run.shape.call
        kwargs = cbor2.loads(self._kwargs)
        return replace(like, kwargs=kwargs, caller=self.caller, state=CallState())

    def ask(self) -> None:
        """Ask for more than what the log says, for whoever watches it."""
        if self.watches:
            self._asking.add(self)

    def invalidate(self) -> None:
        """Ask for another run, whatever the log says."""
        self.stale = True
        self.ask()

    @property
    def behind(self) -> bool:
        """Whether its state is not the one of the last cycle."""
        return bool(self.late) or self.aside or self.since is not None

    def put_off(self, times: int) -> None:
        """Record how many cycles it was put off: whoever watches it waits, with his session."""
        self.late = times
        self._hold()

    def begin_aside(self) -> None:
        """Record that its rows are being read aside."""
        self.aside, self.stale, self.late = True, False, 0
        self._hold()

    def end_aside(self, read: bool) -> None:
        """Record that its rows are not being read aside any more; whether they were."""
        self.aside = False
        if not read:
            self.invalidate()
        self.put_off(0 if read else 1)

    def found_at(self, position: SnapshotPosition) -> None:
        """Record where its state was found, apart from the cycles: the next one goes on from there."""
        self.since = position
        self.ask()
        self._hold()

    def _hold(self) -> None:
        for watch in self.watches:
            watch.session.hold(watch)

    def join(self) -> None:
        """Record that its state is the one of the last cycle."""
        self.since = None
        self.put_off(0)

    def delta_from(self, before: State, state: State, rows: Mapping[Hashable, Any]) -> Message:
        """
        Return the message that makes a watcher's rows those of a state, less the position.

        Watchers who had the same before are sent the same, so it is made once.

        Args:
            before: What the watcher has.
            state: What it is to have.
            rows: At least those that are different.
        """
        known = self._delta
        if known is not None and known[0] is before and known[1] is state:
            return dict(known[2])
        change, form = difference(before, state, rows), self.run.shape.form
        message = delta_message(form, before, state, change, rows) if change else {}
        if len(self.watches) > 1:
            self._delta = before, state, message
        return dict(message)


class Watch(Lasting):
    """
    One call of `watch`.

    Args:
        session: Whose it is.
        query: What it watches.
        send: Sends the messages.
        tx: Whether the caller's own transactions are to be told.

    Attributes:
        since: The position that the caller has rows of, until it was resumed from there.
        base: What the caller has; None until it has been sent all rows.
        reset: Whether the caller has rows that count no more.
        rows: All of them, to be sent.
        touched: Keys of those that may be others than what the caller has; None for all.
        changed: Rows that are different from those that the caller has, in their last form.
        covered: Transactions of its session that the state includes, to be told.
        told: When it was sent something last.
        silent: Whether that is so long ago that it is to hear that nothing has changed.
    """

    __slots__ = (
        "base",
        "changed",
        "covered",
        "query",
        "reset",
        "rows",
        "send",
        "session",
        "silent",
        "since",
        "told",
        "touched",
        "tx",
    )

    def __init__(self, session: WatchingSession, query: Query, send: Send, tx: bool) -> None:
        super().__init__()
        self.session = session
        self.query = query
        self.send = send
        self.tx = tx
        self.since: Position | None = None
        self.base: State | None = None
        self.reset = False
        self.rows: FoundRows | None = None
        self.touched: Sequence[Any] | None = None
        self.changed: dict[Hashable, Any] | None = None
        self.covered: tuple[str, ...] = ()
        self.told = session.now()
        self.silent = False

    @property
    def wanting(self) -> bool:
        """Whether all rows are wanted for it, and not there yet."""
        return self.base is None and self.rows is None

    @property
    def unseen(self) -> bool:
        """Whether its caller has no rows of it at all, so that nobody waits for it."""
        return self.base is None and self.since is None and self.touched is None and not self.reset

    def start_over(self) -> None:
        """Send all rows next, in place of those that the caller has."""
        self.session.melt()
        # One that resumes has rows, too, and what was touched is not all that is new by now.
        self.reset = not self.unseen
        self.base = self.rows = self.since = self.touched = self.changed = None
        self.query.ask()
        self.session.hold(self)

    def find(self, found: Found, wanted: bool, weight: int) -> None:
        """Store what a cycle has found, of some weight; all rows, if they were wanted."""
        if not self.wanting and found.state is not self.base:
            if self.changed is None:
                self.changed = {}
            self.changed.update(found.rows)
        if self.wanting and wanted:
            self.rows = FoundRows(found.state, dict(found.rows))
            self.changed = None
            if self.since is not None:
                self.touched = found.resumed.get(self.since)
                self.reset = self.touched is None
                self.since = None
        self.session.hold(self)
        self.session.lag(self, weight)

    def end(self, error: Exception) -> None:
        """End the call with an error, unless it has ended."""
        if not self.ended:
            super().end(error)
            self.session.ended(self)

    def messages(self, position: str, kept: Kept | None = None) -> Iterator[Message] | None:
        """
        Return the messages that bring the caller to a state; None without any.

        Args:
            position: Of the state.
            kept: The state, and what is different in it; by default the last one.
        """
        state, form, before = self.query.state, self.query.run.shape.form, self.base
        if kept is not None:
            state, changed = kept
        if state is None or (before is None and self.rows is None):
            return None
        self.base = state
        if kept is None:
            changed, self.changed = self.changed or {}, None
        rows, self.rows = self.rows, None
        if rows is None:
            assert before is not None
            return self._delta(before, state, changed, position)
        touched, self.touched = self.touched, None
        reset, self.reset = self.reset, False
        if touched is not None and not touched:
            # By the keys it could not be told which of some rows that are alike came since.
            return self._delta(rows.state, state, changed, position, resumed=True)
        if rows.state is not state:  # others of the session had to wait for theirs
            if touched is not None:
                came = difference(rows.state, state)
                touched = [*touched, *came.keys(rows.state, state)]
            every = rows.rows | changed
            rows = FoundRows(state, {name: every[name] for name in state.entries})
        if touched is not None:
            return iter([resume_message(form, rows, touched, position)])
        return snapshot_messages(form, rows, position, reset)

    def alive(self, head: str, state: State | None = None) -> Message:
        """
        Return the message that nothing has changed in what the caller has.

        Of one who waits for rows it is not known what he has: he hears no more than that he is not
        forgotten, at the position that he has come back with, if that is it.

        Args:
            head: The position of the last step.
            state: What the caller has; by default what he has been sent.
        """
        state = state or self.base
        if state is not None:
            return alive_message(state, f"{head}~{self.query.run.mark}")
        return {"type": "alive"} | ({} if self.since is None else {"position": str(self.since)})

    def _delta(
        self,
        before: State,
        state: State,
        changed: Mapping[Hashable, Any],
        position: str,
        resumed: bool = False,
    ) -> Iterator[Message] | None:
        """Return the messages that make the rows of a state those of a later one; None without any."""
        form = self.query.run.shape.form
        # Of several steps together others may have moved than of each.
        message = self.query.delta_from(before, state, changed)
        if message and form.ordered and (has_copies(before) or has_copies(state)):
            # By its key it could not be told where a row goes. Such rows are their own keys.
            rows = FoundRows(state, {name: entry.key for name, entry in state.entries.items()})
            return snapshot_messages(form, rows, position, reset=True)
        if resumed:
            message = message or delta_message(form, state, state, NOTHING, {})
            message["checksum"] = state.checksum
        if not message:
            return None
        message["position"] = position
        return iter([message])


def wanted_of(query: Query) -> set[Watch]:
    """Return the watches of a query that take all of its rows now."""
    return {watch for watch in query.watches if watch.wanting and not watch.session.busy}


def order_of(query: Query, wanted: set[Watch]) -> Order:
    """Return what a cycle is to find out of a query, of which some watches take all rows."""
    resumes = {watch.since for watch in wanted if watch.since is not None}
    return Order(
        query.run,
        query.state,
        whole=bool(wanted),
        stale=query.stale,
        late=query.late,
        resumes=tuple(sorted(resumes, key=str)),
        since=query.since,
    )


def resume_from(watch: Watch, since: Position | None) -> None:
    """Resume a watch from a position, if that is one of the same query and rights."""
    same = not isinstance(since, SnapshotPosition) or since.query in ("", watch.query.run.mark)
    watch.since = since if same else None
    watch.reset = since is not None and not same


def orders_of(wanted: Mapping[Query, set[Watch]], aside: bool) -> list[Order]:
    """
    Return what a cycle is to find out of queries of which more is asked than what the log says.

    All rows of one that takes long are read aside, after a rest: one group by each connection, since
    its sessions come to one position with all that they watch, and the groups in turn. Any other is
    put off, and whoever watches it waits.

    Args:
        wanted: The queries, each with the watches that take all of its rows now.
        aside: Whether one more group may be read aside now.
    """
    now = time.monotonic()
    heavy = {each for each in wanted if each.run.heavy and (each.stale or wanted[each])}
    groups = groups_of(heavy) if aside else []
    rested = [
        each
        for each in groups
        if all(query.run.until <= now for query in each) and not _is_met(each)
    ]
    # the one that could be read first of them
    read = min(rested, key=lambda each: max(query.run.until for query in each), default=set())
    found = []
    for query, watches in wanted.items():
        if query in read:
            found.append(replace(order_of(query, watches), aside=True))
        elif query not in heavy:
            found.append(order_of(query, watches))
        elif query.stale:
            query.put_off(query.late or 1)
    return found


def _is_met(group: Collection[Query]) -> bool:
    """Return whether a session that watches one of a group waits for what is being read aside now."""
    sessions = {watch.session for query in group for watch in query.watches}
    return any(watch.query.aside for session in sessions for watch in session.members)


def groups_of(queries: Collection[Query]) -> list[set[Query]]:
    """Return queries in the groups between which no session watches one of each."""
    watched: dict[WatchingSession, list[Query]] = {}
    for query in queries:
        for watch in query.watches:
            watched.setdefault(watch.session, []).append(query)
    groups: list[set[Query]] = []
    seen: set[Query] = set()
    for query in queries:
        group, found = set[Query](), {query} - seen
        while found:
            group |= found
            sessions = {watch.session for each in found for watch in each.watches}
            found = {each for session in sessions for each in watched.pop(session, ())} - group
        seen |= group
        groups += [group] if group else []
    return groups


def rests(queries: Iterable[Query]) -> list[float]:
    """Return the seconds until queries may be read again, of those that rest."""
    now = time.monotonic()
    return [each.run.until - now for each in queries if each.run.until > now]
