"""
Watched queries, and the watches on them: what each caller has been sent.

There may be many thousands of watches, most of them idle. So a query and a watch keep little memory, and
changes cost nothing for the watches that they do not concern.
"""

from __future__ import annotations

import time
from collections import deque
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

from service.api.call import Call, CallState, OngoingCall, Send
from service.changes.cycle import NewState, QueryTask
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

ALIVE, TICKS = 15.0, 15
"""Seconds without a message after which a watch is sent `alive`, and the number of slots of `AliveTimers`."""

KeptState = tuple[State, dict[Hashable, Any]]
"""A state to which a watch shall be brought, and the rows that differ from those its caller has."""


class Query:
    """
    A watched query, with its watches.

    A query is new until `Watches._begin` has read its rows, in another session than that of the cycles. From
    then on each cycle applies the changes in the log to it, and reads all of its rows if it is `stale` or a
    watch wants all rows. A slow query (`Run.heavy`) is read in the background: `tasks_of` postpones it until
    it and its entire group have rested; `begin_background` takes it out of the cycles; `end_background` puts
    it back, postponed again if it was not read. After a read in another session, `read_at` records the
    position of the read; the next cycle continues from there, and `join` ends that. A query that was refused
    is parked until the catalog has been checked. While a query is postponed, read in the background or not
    joined, the watches of its sessions wait.

    Args:
        run: How the query is run.
        caller: One of the callers that watch it.
        kwargs: Arguments of that caller's call, without those that are not part of the query.
        asking: The set of queries that may need more than the changes in the log, shared by all queries.

    Attributes:
        background: Whether its rows are being read in the background.
        name: Digest of the query; equal queries share one object.
        state: Its last known state; None before its first run.
        since: Position of that state, if another session read it, until a cycle has continued from there.
        watches: The watches on it.
        stale: Whether its rows may have changed without a row in the log.
        late: Number of cycles by which it was postponed.
        parked: Whether it was refused with this catalog, and waits for a newer one.
        refusals: How often it was refused since it was last read.
    """

    __slots__ = (
        "_asking",
        "_delta",
        "_kwargs",
        "background",
        "caller",
        "late",
        "name",
        "parked",
        "refusals",
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
        # As CBOR they take a tenth of the memory, and they are needed only when the catalog changes.
        self._kwargs = cbor2.dumps(dict(kwargs))
        self.state: State | None = None
        self.since: SnapshotPosition | None = None
        # Not a set, which takes four times the memory: nearly all queries have a single watch.
        self.watches: tuple[Watch, ...] = ()
        self._delta: tuple[State, State, Message] | None = None
        self.stale = self.background = self.parked = False
        self.late = self.refusals = 0

    @property
    def call(self) -> Call:
        """Return a call of the query, as its caller made it."""
        like: Call = self.run.shape.call
        kwargs = cbor2.loads(self._kwargs)
        return like._replace(kwargs=kwargs, caller=self.caller, state=CallState())

    def ask(self) -> None:
        """Request that the next cycle read the query even without a change in the log."""
        if self.watches:
            self._asking.add(self)

    def invalidate(self) -> None:
        """Request a read of all rows, whatever the log says."""
        self.stale = True
        self.ask()

    @property
    def behind(self) -> bool:
        """Whether its state is older than the last cycle."""
        return bool(self.late) or self.background or self.since is not None

    def postpone(self, times: int) -> None:
        """Record by how many cycles it was postponed; the sessions that watch it wait if that is not 0."""
        self.late = times
        self._hold()

    def begin_background(self) -> None:
        """Record that its rows are being read in the background."""
        self.background, self.stale, self.late = True, False, 0
        self._hold()

    def end_background(self, read: bool) -> None:
        """Record that the read in the background has ended; `read`: whether it read the rows."""
        self.background = False
        if not read:
            self.invalidate()
        self.postpone(0 if read else 1)

    def read_at(self, position: SnapshotPosition) -> None:
        """Record the position at which another session read its state; the next cycle continues there."""
        self.since, self.refusals = position, 0
        self.ask()
        self._hold()

    def _hold(self) -> None:
        for watch in self.watches:
            watch.session.hold(watch)

    def join(self) -> None:
        """Record that its state is that of the last cycle."""
        self.since = None
        self._hold()

    def delta_from(self, before: State, state: State, rows: Mapping[Hashable, Any]) -> Message:
        """
        Return the delta message between two states, without the position.

        Watches with the same state before are sent the same message, so the last one is cached.

        Args:
            before: State of the rows that the caller has.
            state: The later state.
            rows: Contents of at least the rows that differ.
        """
        known = self._delta
        if known is not None and known[0] is before and known[1] is state:
            return dict(known[2])
        change, form = difference(before, state, rows), self.run.shape.form
        message = delta_message(form, before, state, change, rows) if change else {}
        if len(self.watches) > 1:
            self._delta = before, state, message
        return dict(message)


class Watch(OngoingCall):
    """
    One call of `watch`.

    Args:
        session: Watches of the caller's session.
        query: The watched query.
        send: Sends a message to the caller.
        tx: Whether messages report which of the caller's own transactions they include.

    Attributes:
        since: Position at which the caller has rows, until the watch was resumed from there.
        base: State of the rows that the caller has; None until it has been sent all rows.
        reset: Whether the caller has to drop the rows that it has.
        rows: All rows, to be sent.
        touched: Keys of the rows that may have changed since the caller's position; None for all rows.
        changed: Current contents of the rows that differ from those that the caller has.
        covered: Transactions of the session that the state includes, to be reported.
        sent_at: Time at which it was sent a message last.
        silent: Whether an `alive` message is due.
    """

    __slots__ = (
        "base",
        "changed",
        "covered",
        "query",
        "reset",
        "rows",
        "send",
        "sent_at",
        "session",
        "silent",
        "since",
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
        self.sent_at = session.now()
        self.silent = False

    @property
    def wanting(self) -> bool:
        """Whether the watch needs all rows, and they have not been read yet."""
        return self.base is None and self.rows is None

    @property
    def without_rows(self) -> bool:
        """Whether its caller has no rows at all, so that the session's other watches need not wait for it."""
        return self.base is None and self.since is None and self.touched is None and not self.reset

    def start_over(self) -> None:
        """Send all rows next, to replace those that the caller has."""
        self.session.merge_kept()
        # The caller of a watch that resumes has rows, too, and `touched` does not name all changes by now.
        self.reset = not self.without_rows
        self.base = self.rows = self.since = self.touched = self.changed = None
        self.query.ask()
        self.session.hold(self)

    def queue(self, found: NewState, wanted: bool, weight: int) -> None:
        """Queue the rows that a cycle has found, of a size of `weight`; all rows if they were wanted."""
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
        self.session.queue_rows(self, weight)

    def end(self, error: Exception) -> None:
        """End the call with an error, unless it has ended."""
        if not self.ended:
            super().end(error)
            self.session.ended(self)

    def messages(self, position: str, kept: KeptState | None = None) -> Iterator[Message] | None:
        """
        Return the messages that bring the caller to a state; None if there are none.

        Args:
            position: Position of the state.
            kept: The state, and the rows that differ in it; by default the query's last state.
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
            # Nothing was touched up to `rows.state`. A delta from there, because keys could not tell which
            # of several equal rows were added since.
            return self._delta(rows.state, state, changed, position, resumed=True)
        if rows.state is not state:  # later cycles ran while the session waited for other rows
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
        Return the message that the caller's rows have not changed.

        While a caller waits for its first rows, the message has no checksum, and only the position with
        which the caller resumed, if any.

        Args:
            head: Position of the last step.
            state: State of the rows that the caller has; by default the one that it was sent last.
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
        """Return the messages between two states; None if there are none."""
        form = self.query.run.shape.form
        # Computed from the states, since moves of several cycles do not add up to those of one delta.
        message = self.query.delta_from(before, state, changed)
        if message and form.ordered and (has_copies(before) or has_copies(state)):
            # Equal rows are their own keys, so `after` cannot say behind which of them a row goes.
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
    """Return the watches of a query that need all of its rows, and whose sessions can take them now."""
    return {watch for watch in query.watches if watch.wanting and not watch.session.busy}


def task_of(query: Query, wanted: set[Watch]) -> QueryTask:
    """Return the task of a cycle for a query, `wanted` being the watches that take all rows."""
    resumes = {watch.since for watch in wanted if watch.since is not None}
    return QueryTask(
        query.run,
        query.state,
        all_rows=bool(wanted),
        stale=query.stale,
        late=query.late,
        resumes=tuple(sorted(resumes, key=str)),
        since=query.since,
    )


def resume_from(watch: Watch, since: Position | None) -> None:
    """Resume a watch from a position, if it is one of the same query and rights; else reset it."""
    same = not isinstance(since, SnapshotPosition) or since.query in ("", watch.query.run.mark)
    watch.since = since if same else None
    watch.reset = since is not None and not same


def tasks_of(wanted: Mapping[Query, set[Watch]], background: bool) -> list[QueryTask]:
    """
    Return the tasks of a cycle for the queries that need more than the changes in the log.

    Slow queries are read in the background, after a rest, one group per connection, the groups in turn. A
    group is read in one snapshot, because a session reaches a position only with all of its watches. Other
    slow queries are postponed, and the sessions that watch them wait.

    Args:
        wanted: The queries, each with the watches that take all of its rows now.
        background: Whether one more group may be read now.
    """
    now = time.monotonic()
    heavy = {each for each in wanted if each.run.heavy and (each.stale or wanted[each])}
    groups = groups_of(heavy) if background else []
    rested = [
        each
        for each in groups
        if all(query.run.until <= now for query in each) and not _waits_for_another(each)
    ]
    # Of the groups that have rested, the one whose rest ended first: groups take turns.
    read = min(rested, key=lambda each: max(query.run.until for query in each), default=set())
    found = []
    for query, watches in wanted.items():
        if query in read:
            found.append(replace(task_of(query, watches), background=True))
        elif query not in heavy:
            found.append(task_of(query, watches))
        elif query.stale:
            query.postpone(query.late or 1)
    return found


def _waits_for_another(group: Collection[Query]) -> bool:
    """Return whether a session that watches a query of the group waits for a group being read in the background."""
    sessions = {watch.session for query in group for watch in query.watches}
    return any(watch.query.background for session in sessions for watch in session.members)


def groups_of(queries: Collection[Query]) -> list[set[Query]]:
    """Group queries, so that no session watches queries of two groups (connected components)."""
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


def rest_times(queries: Iterable[Query]) -> list[float]:
    """Return, for each query that rests, the seconds until it may be read again."""
    now = time.monotonic()
    return [each.run.until - now for each in queries if each.run.until > now]


class AliveTimers:
    """
    The watches, by when they are due for an `alive` message.

    A timing wheel: each second looks at one fifteenth of the watches, in place of all of them.
    """

    def __init__(self) -> None:
        # The watches to be checked in each of the next slots of time.
        self._parts: deque[list[Watch]] = deque([] for _ in range(TICKS))
        self._ticked = 0.0

    def add(self, watch: Watch) -> None:
        """Add a new watch."""
        self._parts[-1].append(watch)

    def due(self, now: float) -> Iterator[Watch]:
        """Yield the watches that were sent nothing for `ALIVE` seconds; drop those that have ended."""
        # After a pause of the whole process, do not make up for the turns of the wheel that it missed.
        self._ticked = max(self._ticked, now - ALIVE)
        while now - self._ticked >= ALIVE / TICKS:
            self._ticked += ALIVE / TICKS
            looked_at = self._parts.popleft()
            self._parts.append([])
            for watch in looked_at:
                if watch.ended:
                    continue
                left = watch.sent_at + ALIVE - now
                if left <= 0:
                    yield watch
                    left = ALIVE
                part = min(TICKS - 1, max(0, round(left / ALIVE * TICKS) - 1))
                self._parts[part].append(watch)
