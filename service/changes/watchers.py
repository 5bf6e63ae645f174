"""
Watchers: what each session has, and what it is sent next.

The watches of one session move together. What is sent to it next is made when what was sent before
has been taken, and of the state by then: so a slow caller gets fewer and larger deltas. Rows wait
for it up to a bound; beyond that it gets all of them anew when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.api.call import Call, Send
from service.changes.cycle import Found
from service.changes.delta import (
    Message,
    Rows,
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
from service.request.watch_request import WatchOptions

log = Logger()

MOST_WRITTEN = 1000
"""Transactions of one session that are not included in the state yet; older ones are not told."""


class Query:
    """
    A query that is watched, by one or more.

    Attributes:
        name: Of all that is alike.
        run: How it is run.
        state: What it was found in last; None before its first run.
        watches: Of it.
        asking: Whether more may be wanted of it than what the log says.
        stale: Whether its rows may be others, whatever the log says.
        late: How many cycles it was put off.
        parked: Whether it waits for another catalog, since it was refused by this one.
        renewed: Whether it was refused before, by an older catalog.
    """

    def __init__(self, name: Hashable, run: Run) -> None:
        self.name = name
        self.run = run
        self.state: State | None = None
        self.watches: dict[Watch, None] = {}
        self.asking = True
        self.stale = self.parked = self.renewed = False
        self.late = 0

    def doubt(self) -> None:
        """Ask for another run, whatever the log says."""
        self.asking = self.stale = True


class Watch:
    """
    One call of `watch`.

    Attributes:
        call: Less its options.
        options: Of it.
        query: What it watches.
        since: The position that the caller has rows of, until it was resumed from there.
        base: What the caller has; None until it has been sent all rows.
        reset: Whether the caller has rows that count no more.
        rows: All of them, to be sent.
        touched: Keys of those that may be others than what the caller has; None for all.
        changed: Rows that are different from those that the caller has, in their last form.
        covered: Transactions of its session that the state includes, to be told.
        told: When it was sent something last.
        silent: Whether that is so long ago that it is to hear that nothing has changed.
        done: Fails when the call ends.
    """

    def __init__(
        self, call: Call, options: WatchOptions, send: Send, session: WatchingSession, query: Query
    ) -> None:
        self.call = call
        self.options = options
        self.send = send
        self.session = session
        self.query = query
        self.since: Position | None = None
        self.base: State | None = None
        self.reset = False
        self.rows: Rows | None = None
        self.touched: Sequence[Any] | None = None
        self.changed: dict[Hashable, Any] = {}
        self.covered: list[str] = []
        self.told = 0.0
        self.silent = False
        self.done: Deferred[None] = Deferred()
        query.asking = True

    @property
    def wanting(self) -> bool:
        """Whether all rows are wanted for it, and not there yet."""
        return self.base is None and self.rows is None

    @property
    def settled(self) -> bool:
        """Whether its caller has all that there is to be told."""
        same = self.rows is None and self.base is self.query.state
        return same and not (self.silent or self.covered)

    def start_over(self) -> None:
        """Send all rows next, in place of those that the caller has."""
        self.reset = self.reset or self.base is not None
        self.base = self.rows = self.since = None
        self.changed.clear()
        self.query.asking = True

    def find(self, found: Found, wanted: bool) -> None:
        """Store what a cycle has found; all rows, if they were wanted."""
        if not self.wanting and found.state is not self.base:
            self.changed.update(found.rows)
        if not (self.wanting and wanted):
            return
        self.rows = Rows(found.state, dict(found.rows))
        self.changed.clear()
        if self.since is not None:
            self.touched = found.resumed.get(self.since)
            self.reset = self.touched is None
            self.since = None

    def end(self, why: Exception | Failure) -> None:
        """End the call with an error."""
        if not self.done.called:
            self.done.errback(why)

    def messages(self, position: str) -> Iterator[Message] | None:
        """Return the messages that bring the caller to the last state; None without any."""
        state, form, before = self.query.state, self.query.run.plan.form, self.base
        if state is None or (before is None and self.rows is None):
            return None
        self.base = state
        changed, self.changed = self.changed, {}
        resumed = False
        if self.rows is not None:
            rows, self.rows = self.rows, None
            touched, self.touched = self.touched, None
            reset, self.reset = self.reset, False
            if touched is not None and not touched:
                # By the keys it could not be told which of some rows that are alike came since.
                before, resumed = rows.state, True
            else:
                if rows.state is not state:  # others of the session had to wait for theirs
                    if touched is not None:
                        came = difference(rows.state, state)
                        touched = [*touched, *came.keys(rows.state, state)]
                    every = rows.rows | changed
                    rows = Rows(state, {name: every[name] for name in state.entries})
                if touched is not None:
                    return iter([resume_message(form, rows, touched, position)])
                return snapshot_messages(form, rows, position, reset)
        if before is None:
            return None
        # Of several steps together others may have moved than of each.
        change = difference(before, state, changed)
        if not change and not resumed:
            return None
        if change and form.ordered and (has_copies(before) or has_copies(state)):
            # By its key it could not be told where a row goes. Such rows are their own keys.
            rows = Rows(state, {name: entry.key for name, entry in state.entries.items()})
            return snapshot_messages(form, rows, position, reset=True)
        message = delta_message(form, before, state, change, changed, position)
        return iter([message | {"checksum": state.checksum} if resumed else message])


class WatchingSession:
    """
    The watches of one session, which move together.

    Args:
        now: Returns the time.
        want: Called when rows are wanted.
        most: Characters of rows that may wait for it.

    Attributes:
        members: The watches.
        busy: Whether it has not taken all that it was sent.
        position: What its watches are brought to next.
        written: Its own transactions that the state does not include yet.
    """

    def __init__(self, now: Callable[[], float], want: Callable[[], None], most: int) -> None:
        self._now = now
        self._want = want
        self._most = most
        self._waiting = 0
        self._moves = False
        self.members: dict[Watch, None] = {}
        self.busy = False
        self.position: SnapshotPosition | None = None
        self.written: dict[int, None] = {}

    def wrote(self, xid: int) -> None:
        """Record a transaction of its own, to be told once the state includes it."""
        if any(watch.options.tx for watch in self.members):
            self.written[xid] = None
            if len(self.written) > MOST_WRITTEN:
                del self.written[next(iter(self.written))]

    def reach(self, position: SnapshotPosition) -> None:
        """Bring its watches to a position."""
        self.position = position
        seen = [xid for xid in self.written if position.snapshot.sees(xid)]
        for xid in seen:
            del self.written[xid]
        for watch in self.members if seen else ():
            if watch.options.tx:
                watch.covered += map(str, seen)
        if seen or self._moves:
            self._moves = False
            self.go()

    def lag(self, weight: int) -> None:
        """Count rows that wait for it; with too many of them it gets all rows anew, later."""
        self._moves = True
        self._waiting += weight
        if self.busy and self._waiting > self._most:
            self._waiting = 0
            for watch in self.members:
                if watch.changed or watch.rows is not None:
                    watch.start_over()

    def go(self) -> None:
        """Send what there is to send, as fast as it is taken."""
        if not self.busy and self.position is not None:
            self.busy = True
            # Whoever comes here may act as a caller, or be in a transaction.
            sending = Context().run(Deferred.fromCoroutine, self._go())
            sending.addErrback(lambda why: log.failure("cannot send to a watcher", why))

    def keep_alive(self, seconds: float) -> None:
        """Send `alive` to those that have been sent nothing for so long."""
        late = self._now() - seconds
        if not self.busy:
            for watch in self.members:
                watch.silent = watch.silent or watch.told <= late
            if any(watch.silent for watch in self.members):
                self.go()

    async def _go(self) -> None:
        try:
            while step := self._step():
                await self._send(step)
        finally:
            self.busy = False

    def _step(self) -> list[tuple[Watch, Iterator[Message]]]:
        """Return what brings each watch to the position; nothing while one is not there yet."""
        if any(watch.wanting or watch.query.late for watch in self.members):
            self._want()
            return []
        self._waiting = 0
        found = []
        assert self.position is not None
        for watch in self.members:
            if watch.settled:  # as nearly all are, when one row of one of them has changed
                continue
            position = str(replace(self.position, query=watch.query.run.mark))
            messages = watch.messages(position)
            if messages is None and watch.base is not None and (watch.silent or watch.covered):
                messages = iter([alive_message(watch.base, position)])
            if messages is not None:
                found.append((watch, messages))
        return found

    async def _send(self, step: Sequence[tuple[Watch, Iterator[Message]]]) -> None:
        sending = []
        moves = False
        for at, (watch, messages) in enumerate(step, 1):
            message = next(messages, None)
            while message is not None:
                following = next(messages, None)
                moves = moves or message["type"] != "alive"
                if following is None:
                    if watch.covered:
                        message["covers"], watch.covered = watch.covered, []
                    if moves and at == len(step):
                        message["step"] = True
                sent = Deferred.fromCoroutine(self._one(watch, message))
                if following is None:
                    sending.append(sent)
                else:
                    await sent
                message = following
        await DeferredList(sending)

    async def _one(self, watch: Watch, message: Message) -> None:
        if watch.done.called:
            return
        watch.told, watch.silent = self._now(), False
        try:
            await watch.send(message)
        except Exception as error:
            watch.end(error)
