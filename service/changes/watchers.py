"""
What each caller of `watch` has, and is sent next.

A `Query` is watched by one or more calls, each of them a `Watch`. The watches of one session are kept together
in a `WatchingSession`, because they move from position to position together. `Watches` (watch.py) passes each new
state of a query to its watches, which queue the rows that differ, and then lets the sessions send them. Which
queries a cycle has to read for them, `tasks_of` decides.

A session's next step is made when the caller has taken the one before, from the states at that time: so a slow
caller gets fewer and larger deltas. Up to a limit, rows wait in memory for the caller; above it, the watches
start over with all rows. While a query of the session is read in the background, the deltas of its other watches
up to that position are kept until its rows have been read.

There may be many thousands of watches, most of them idle. So a query and a watch keep little memory, and
changes cost nothing for the watches that they do not concern.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextvars import Context
from dataclasses import replace
from typing import Any, NamedTuple

import cbor2
from twisted.internet.defer import Deferred
from twisted.logger import Logger

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

log = Logger()

NOTHING = Difference((), (), ())

ALIVE, TICKS = 15.0, 15
"""Seconds without a message after which a watch is sent `alive`, and the number of slots of `AliveTimers`."""

MOST_WRITTEN = 1000
"""Maximum number of a session's own transactions that wait to be reported; older ones are dropped."""

KeptState = tuple[State, dict[Hashable, Any]]
"""A state to which a watch shall be brought, and the rows that differ from those its caller has."""


class Query:
    """
    A watched query, with its watches.

    A query is new until `Watches._read_new` has read its rows, in another session than that of the cycles.
    From then on each cycle applies the changes in the log to it, and reads all of its rows if it is `stale` or
    a watch wants all rows. A slow query (`Run.heavy`) is read in the background: `tasks_of` postpones it until
    it and its entire group have rested; `begin_background` takes it out of the cycles; `end_background` puts
    it back, postponed again if it was not read. After a read in another session, `read_at` records the
    position of the read; the next cycle continues from there, and `join` ends that. A query that was refused
    is parked until the catalog has been checked. While a query is postponed, read in the background or not
    joined, it is `behind`, and the watches of its sessions wait.

    Args:
        run: How the query is run.
        caller: One of the callers that watch it.
        kwargs: Arguments of that caller's call, without those that are not part of the query.
        to_read: Queries that may need more than the changes in the log; shared by all queries.

    Attributes:
        background: Whether its rows are being read in the background.
        name: Digest of the query; equal queries share one object.
        state: Its last known state; None before its first run.
        since: Position of that state, if another session read it, until a cycle has continued from there.
        watches: The watches on it.
        stale: Whether its rows may have changed without a row in the log.
        late: Number of cycles by which it was postponed; 0 if it is not.
        parked: Whether it was refused with this catalog, and waits for a newer one.
        renewed: Whether it was refused with an older catalog since it was last read.
        conflicts: How often it has met a deadlock or another conflict since it was last read.
    """

    __slots__ = (
        "_delta",
        "_kwargs",
        "_to_read",
        "background",
        "caller",
        "conflicts",
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
        self, run: Run, caller: Caller, kwargs: Mapping[str, Any], to_read: set[Query]
    ) -> None:
        self._to_read = to_read
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
        self.stale = self.background = self.parked = self.renewed = False
        self.late = self.conflicts = 0

    @property
    def call(self) -> Call:
        """Return a call of the query, as its caller made it."""
        like: Call = self.run.shape.call
        kwargs = cbor2.loads(self._kwargs)
        return like._replace(kwargs=kwargs, caller=self.caller, state=CallState())

    def request_read(self) -> None:
        """Let the next cycle read the query even without a change in the log."""
        if self.watches:
            self._to_read.add(self)

    def invalidate(self) -> None:
        """Let the next cycle read all rows, whatever the log says."""
        self.stale = True
        self.request_read()

    @property
    def behind(self) -> bool:
        """Whether its state is older than the last cycle."""
        return bool(self.late) or self.background or self.since is not None

    def begin_background(self) -> None:
        """Record that its rows are being read in the background."""
        self.background, self.stale, self.late = True, False, 0

    def end_background(self, read: bool) -> None:
        """Record that the read in the background has ended; `read`: whether it read the rows."""
        self.background, self.late = False, 0 if read else 1
        if not read:
            self.invalidate()

    def read_at(self, position: SnapshotPosition) -> None:
        """Record the position at which another session read its state; the next cycle continues there."""
        self.since, self.conflicts, self.renewed = position, 0, False
        self.request_read()

    def join(self) -> None:
        """Record that its state is that of the last cycle."""
        self.since = None

    def move(self, found: NewState, wanted: Collection[Watch]) -> None:
        """Move to the state that was read, and queue its rows; `wanted` are the watches that take all rows."""
        self.state, weight = found.state, found.weight
        for watch in self.watches:
            watch.queue(found, watch in wanted, weight)

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
    def needs_rows(self) -> bool:
        """Whether the watch needs all rows, and they have not been read yet."""
        return self.base is None and self.rows is None

    @property
    def without_rows(self) -> bool:
        """Whether its caller has no rows at all, so that the session's other watches need not wait for it."""
        return self.base is None and self.since is None and self.touched is None and not self.reset

    @property
    def waits(self) -> bool:
        """Whether it cannot be part of a step, because its next rows have not been read yet."""
        query = self.query
        # `needs_rows` or `query.behind`, but flat: each step asks all watches of the session, up to 100.
        return (
            (self.base is None and self.rows is None)
            or query.late > 0
            or query.background
            or query.since is not None
        )

    @property
    def blocks(self) -> bool:
        """Whether the session's other watches wait for it, too: its caller has rows."""
        return self.waits and not self.without_rows

    def resume_from(self, since: Position | None) -> None:
        """Resume from a position, if it is one of the same query and rights; else reset the caller's rows."""
        same = not isinstance(since, SnapshotPosition) or since.query in ("", self.query.run.mark)
        self.since = since if same else None
        self.reset = since is not None and not same

    def start_over(self) -> None:
        """Send all rows next, to replace those that the caller has."""
        self.session.merge_kept()
        # The caller of a watch that resumes has rows, too, and `touched` does not name all changes by now.
        self.reset = not self.without_rows
        self.base = self.rows = self.since = self.touched = self.changed = None
        self.query.request_read()

    def queue(self, found: NewState, wanted: bool, weight: int) -> None:
        """Queue the rows that a cycle has found, of a size of `weight`; all rows if they were wanted."""
        if not self.needs_rows and found.state is not self.base:
            if self.changed is None:
                self.changed = {}
            self.changed.update(found.rows)
        if self.needs_rows and wanted:
            self.rows = FoundRows(found.state, dict(found.rows))
            self.changed = None
            if self.since is not None:
                self.touched = found.resumed.get(self.since)
                self.reset = self.touched is None
                self.since = None
        self.session.count_queued(self, weight)

    def end(self, error: Exception) -> None:
        """End the call with an error, unless it has ended."""
        if not self.ended:
            super().end(error)
            self.session.ended(self)

    def messages(self, position: str, kept: KeptState | None = None) -> Iterator[Message] | None:
        """
        Return the messages that bring the caller to a state, which becomes `base`; None if there are none.

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


class WatchStep(NamedTuple):
    """
    The messages of one watch in a step.

    Args:
        watch: The watch.
        messages: The messages to send.
        advances: Whether they are part of a step to another position, not merely `alive`.
        state: State of the caller's rows after them; None before its first rows.
        covers: Transactions of the session that the state includes, to be reported.
    """

    watch: Watch
    messages: Iterator[Message]
    advances: bool
    state: State | None
    covers: tuple[str, ...]


Step = list[WatchStep]


class WatchingSession:
    """
    The watches of one session, which move together.

    Args:
        key: Key of the session in `Watches`.
        caller: The caller.
        now: Returns the time in seconds.
        wake: Called when a cycle has to read rows for the session.
        released: Returns the position that the watches may move to.
        ended: Called with each watch that has ended.
        to_send: Sessions for which there may be something to send; shared by all sessions.
        most: Maximum size of the rows that wait for the session, in characters.

    Attributes:
        members: The watches.
        busy: Whether the caller has not taken all that it was sent.
        written: The session's own transactions that no position has included yet.
    """

    def __init__(
        self,
        key: Hashable,
        caller: Caller,
        now: Callable[[], float],
        wake: Callable[[], None],
        released: Callable[[], SnapshotPosition | None],
        ended: Callable[[Watch], None],
        to_send: dict[WatchingSession, None],
        most: int,
    ) -> None:
        self.key = key
        self.caller = caller
        self.now = now
        self._wake = wake
        self._released = released
        self.ended = ended
        self._to_send = to_send
        self._most = most
        self._waiting = 0
        self._sent_position = ""
        self._kept: dict[Watch, KeptState] = {}
        self._kept_at: SnapshotPosition | None = None
        self._ready: tuple[SnapshotPosition, Step] | None = None
        self._pending: dict[Watch, None] = {}
        self.members: tuple[Watch, ...] = ()
        self.busy = False
        self.written: dict[int, None] = {}

    def add(self, watch: Watch) -> None:
        """Add a watch."""
        self.members = (*self.members, watch)

    def remove(self, watch: Watch) -> None:
        """Remove a watch; the others may have waited for its rows."""
        self.members = tuple(each for each in self.members if each is not watch)
        self._pending.pop(watch, None)
        self._kept.pop(watch, None)
        self.request_send()

    def request_send(self) -> None:
        """Let `Watches` call `send_steps`."""
        self._to_send[self] = None

    def schedule(self, watch: Watch) -> None:
        """Include a watch in the next step."""
        self._pending[watch] = None
        self.request_send()

    def wrote(self, xid: int) -> None:
        """Record a transaction of the session, to be reported once a position includes it."""
        if any(watch.tx for watch in self.members):
            self.written[xid] = None
            if len(self.written) > MOST_WRITTEN:
                del self.written[next(iter(self.written))]

    def cover(self, position: SnapshotPosition) -> None:
        """Make its watches report which of its transactions a position includes."""
        if self._kept_at is not None or self._ready is not None:
            return  # a step to an earlier position has to be sent first
        seen = [xid for xid in self.written if position.snapshot.sees(xid)]
        for xid in seen:
            del self.written[xid]
        for watch in self.members if seen else ():
            if watch.tx:
                watch.covered += tuple(map(str, seen))
                self.schedule(watch)

    def count_queued(self, watch: Watch, weight: int) -> None:
        """Count rows that wait for the caller; if they exceed the limit, start over with all rows later."""
        self.schedule(watch)
        self._waiting += weight
        if self.busy and self._waiting > self._most:
            self._waiting = 0
            for each in self._pending:
                if each.changed or each.rows is not None:
                    each.start_over()

    def keep(self, position: SnapshotPosition) -> None:
        """
        Keep the deltas up to a position until the queries read in the background have their rows of it.

        The cycles continue meanwhile. If a watch waits for anything else, nothing is kept, and all watches
        move to a later position together.
        """
        self.merge_kept()
        if (
            any(each.blocks and not each.query.background for each in self.members)
            or self._ready
            or any(each.rows and not each.without_rows for each in self.members)
        ):
            return
        self._kept_at = position
        for watch in self._pending:
            state, changed = watch.query.state, watch.changed
            if state and changed is not None and watch.base and not watch.query.background:
                self._kept[watch], watch.changed = (state, changed), None

    def merge_kept(self) -> None:
        """Drop the kept position: merge its deltas into the later ones."""
        for watch, (_, changed) in self._kept.items():
            watch.changed = changed | (watch.changed or {})
            self.schedule(watch)
        self._kept, self._kept_at = {}, None

    def complete(self, queries: Collection[Query]) -> None:
        """Prepare the kept step, now that some queries were read in the background, if it can be sent."""
        seen = [watch for watch in self.members if not watch.without_rows]
        if any(each.needs_rows or (each.query.late and each.query in queries) for each in seen):
            self.merge_kept()  # a watch could not be brought to the position
        position = self._kept_at
        if position is None:
            return
        kept: dict[Watch, KeptState | None] = {**self._kept}
        kept |= dict.fromkeys(watch for watch in self.members if watch.query in queries)
        self._kept, self._kept_at = {}, None
        step: Step = []
        for watch, state in kept.items():
            messages = watch.messages(f"{position}~{watch.query.run.mark}", state)
            if messages is not None:
                step.append(_step_of(watch, messages, True))
        self._ready = (position, step) if step else None
        self.request_send()

    def send_steps(self) -> None:
        """Send the steps that are due, as fast as the caller takes them."""
        if not self.busy:
            self.busy = True
            # An empty context, because this may be called under a caller's identity, or in a transaction.
            sending = Context().run(Deferred.fromCoroutine, self._send_steps())
            sending.addErrback(lambda why: log.failure("cannot send to a watcher", why))

    async def _send_steps(self) -> None:
        try:
            while step := self._next_step():
                await self._send(step)
        finally:
            self.busy = False

    def _next_step(self) -> Step:
        """Return the messages that bring all watches to the position; only `alive` while one has to wait."""
        position = self._released()
        if position is None:  # the last watch has ended, before its caller took all messages
            return []
        if self._ready is not None:
            (kept_at, step), self._ready = self._ready, None
            self._sent_position = str(kept_at)
            return step
        blocked = any(watch.blocks for watch in self.members)
        waiting = [
            WatchStep(watch, iter([watch.alive(self._sent_position)]), False, watch.base, ())
            for watch in self._pending
            if watch.silent and (blocked or watch.waits)
        ]
        if blocked:
            self._wake()
            return waiting
        self.merge_kept()
        self._waiting = 0
        head = self._sent_position = str(position)
        found: Step = []
        news, self._pending = self._pending, {}
        for watch in news:
            if watch.waits:
                self._pending[watch] = None  # in a later step, when it has its rows
                if watch.needs_rows:
                    self._wake()
                continue
            messages = watch.messages(f"{head}~{watch.query.run.mark}")
            if messages is not None:
                found.append(_step_of(watch, messages, True))
            elif watch.base is not None and (watch.silent or watch.covered):
                found.append(_step_of(watch, iter([watch.alive(head)]), False))
        return [*waiting, *found]

    async def _send(self, step: Step) -> None:
        """Send a step; return when the next may follow."""
        now, advances = self.now(), any(each.advances for each in step)
        taken: Awaitable[None] | None = None
        sent: dict[Awaitable[None], list[Watch]] = {}
        for at, each in enumerate(step, 1):
            taken = await self._send_watch(each, advances and at == len(step), now)
            if taken is not None:
                # All watches of a caller return the same awaitable, which is awaited once.
                sent.setdefault(taken, []).append(each.watch)
        if advances and taken is None:
            await self._end_step([each for each in step if not each.watch.ended], now)
        for taken, watches in sent.items():
            try:
                await taken
            except Exception as error:
                for watch in watches:
                    watch.end(error)

    async def _end_step(self, step: Step, now: float) -> None:
        """Mark a step as complete by an `alive`: the watch whose message was to mark it has ended."""
        for each in step[-1:]:
            alive = iter([each.watch.alive(self._sent_position, each.state)])
            await self._send_watch(each._replace(messages=alive, covers=()), True, now)

    async def _send_watch(self, step: WatchStep, ends: bool, now: float) -> Awaitable[None] | None:
        """Send the messages of a watch, the last of which may end the step; return what to await after it."""
        watch, messages = step.watch, step.messages
        message = next(messages, None)
        while message is not None and not watch.ended:
            following = next(messages, None)
            if following is None:
                if step.covers:
                    message["covers"] = list(step.covers)
                if ends:
                    message["step"] = True
            watch.sent_at, watch.silent = now, False
            try:
                taken = watch.send(message)
                if following is None:
                    return taken
                await taken
            except Exception as error:
                watch.end(error)
            message = following
        return None


def _step_of(watch: Watch, messages: Iterator[Message], advances: bool) -> WatchStep:
    """Return a watch's messages, with the transactions that its state includes."""
    covers, watch.covered = watch.covered, ()
    return WatchStep(watch, messages, advances, watch.base, covers)


def wanted_of(query: Query) -> set[Watch]:
    """Return the watches of a query that need all of its rows, and whose sessions can take them now."""
    return {watch for watch in query.watches if watch.needs_rows and not watch.session.busy}


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
            query.late = query.late or 1
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
