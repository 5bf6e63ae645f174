"""
Watchers: what each session has, and what it is sent next.

The watches of one session move together. What is sent to it next is made when what was sent before
has been taken, and of the state by then: so a slow caller gets fewer and larger deltas. Rows wait
for it up to a bound; beyond that it gets all of them anew when it is back.

There may be many thousands of watches of which little happens to any. So each keeps little, and what
happens to some costs nothing for the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

import cbor2
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from service.api.call import Call, CallState, Lasting, Send
from service.changes.cycle import Found
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

MOST_WRITTEN = 1000
"""Transactions of one session that are not included in the state yet; older ones are not told."""


NOTHING = Difference((), (), ())

Step = list[tuple["Watch", Iterator[Message], bool]]
"""What each watch is sent to come to a position, and whether that is more than that it is alive."""


class Query:
    """
    A query that is watched, by one or more.

    Args:
        run: How it is run.
        caller: One of those who ask it.
        kwargs: Of his call, less what is not of the query.
        asking: Those of which more may be wanted than what the log says.

    Attributes:
        name: Of all that is alike.
        state: What it was found in last; None before its first run.
        since: Where that was, until a cycle with all others has it from there.
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
        self.stale = self.parked = self.renewed = False
        self.late = 0

    @property
    def call(self) -> Call:
        """Return a call that asks it, as it was made."""
        like: Call = self.run.shape.call
        kwargs = cbor2.loads(self._kwargs)
        return replace(like, kwargs=kwargs, caller=self.caller, state=CallState())

    def ask(self) -> None:
        """Ask for more than what the log says."""
        self._asking.add(self)

    def invalidate(self) -> None:
        """Ask for another run, whatever the log says."""
        self.stale = True
        self.ask()

    @property
    def behind(self) -> bool:
        """Whether its state is not the one of the last cycle."""
        return bool(self.late) or self.since is not None

    def put_off(self, times: int) -> None:
        """Record how many cycles it was put off: whoever watches it waits, with his session."""
        self.late = times
        for watch in self.watches:
            watch.session.hold(watch)

    def join(self) -> None:
        """Record that its state is the one of the last cycle."""
        self.since = None
        self.put_off(0)

    def delta_from(self, before: State, rows: Mapping[Hashable, Any]) -> Message:
        """
        Return the message that makes a watcher's rows those of its state, less the position.

        Watchers who had the same before are sent the same, so it is made once.

        Args:
            before: What the watcher has.
            rows: At least those that are different.
        """
        state, known = self.state, self._delta
        assert state is not None
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
        query.ask()

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

    def messages(self, position: str) -> Iterator[Message] | None:
        """Return the messages that bring the caller to the last state; None without any."""
        state, form, before = self.query.state, self.query.run.shape.form, self.base
        if state is None or (before is None and self.rows is None):
            return None
        self.base = state
        changed, self.changed = self.changed or {}, None
        rows, self.rows = self.rows, None
        if rows is None:
            assert before is not None
            return self._delta(before, changed, position)
        touched, self.touched = self.touched, None
        reset, self.reset = self.reset, False
        if touched is not None and not touched:
            # By the keys it could not be told which of some rows that are alike came since.
            return self._delta(rows.state, changed, position, resumed=True)
        if rows.state is not state:  # others of the session had to wait for theirs
            if touched is not None:
                came = difference(rows.state, state)
                touched = [*touched, *came.keys(rows.state, state)]
            every = rows.rows | changed
            rows = FoundRows(state, {name: every[name] for name in state.entries})
        if touched is not None:
            return iter([resume_message(form, rows, touched, position)])
        return snapshot_messages(form, rows, position, reset)

    def _delta(
        self, before: State, changed: Mapping[Hashable, Any], position: str, resumed: bool = False
    ) -> Iterator[Message] | None:
        """Return the messages that make the rows of a state those of now; None without any."""
        query = self.query
        state, form = query.state, query.run.shape.form
        assert state is not None
        # Of several steps together others may have moved than of each.
        message = query.delta_from(before, changed)
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


class WatchingSession:
    """
    The watches of one session, which move together.

    Args:
        key: Which one.
        caller: Whose it is.
        now: Returns the time.
        want: Called when rows are wanted.
        place: Returns what its watches are brought to next.
        ended: Called with a watch that has ended.
        most: Characters of rows that may wait for it.

    Attributes:
        members: The watches.
        busy: Whether it has not taken all that it was sent.
        written: Its own transactions that the state does not include yet.
        moves: Whether there is something to send to it.
    """

    def __init__(
        self,
        key: Hashable,
        caller: Caller,
        now: Callable[[], float],
        want: Callable[[], None],
        place: Callable[[], SnapshotPosition | None],
        ended: Callable[[Watch], None],
        most: int,
    ) -> None:
        self.key = key
        self.caller = caller
        self.now = now
        self._want = want
        self._place = place
        self.ended = ended
        self._most = most
        self._waiting = 0
        self._head = ""
        self._held: set[Watch] = set()
        self._news: dict[Watch, None] = {}
        self.members: tuple[Watch, ...] = ()
        self.busy = False
        self.written: dict[int, None] = {}
        self.moves = False

    def add(self, watch: Watch) -> None:
        """Add a watch."""
        self.members = (*self.members, watch)
        self.hold(watch)

    def remove(self, watch: Watch) -> None:
        """Remove a watch; the others may have waited for its rows."""
        self.members = tuple(each for each in self.members if each is not watch)
        self._news.pop(watch, None)
        self._held.discard(watch)
        self.moves = True

    def hold(self, watch: Watch) -> None:
        """Make the others wait for a watch whose caller has rows, if those that follow are not there."""
        if (watch.wanting or watch.query.behind) and not watch.unseen:
            self._held.add(watch)
        else:
            self._held.discard(watch)

    def tell(self, watch: Watch) -> None:
        """Send a watch with the next step what there is for it."""
        self._news[watch] = None
        self.moves = True

    def wrote(self, xid: int) -> None:
        """Record a transaction of its own, to be told once the state includes it."""
        if any(watch.tx for watch in self.members):
            self.written[xid] = None
            if len(self.written) > MOST_WRITTEN:
                del self.written[next(iter(self.written))]

    def cover(self, position: SnapshotPosition) -> None:
        """Send its watches which of its transactions a position includes."""
        seen = [xid for xid in self.written if position.snapshot.sees(xid)]
        for xid in seen:
            del self.written[xid]
        for watch in self.members if seen else ():
            if watch.tx:
                watch.covered += tuple(map(str, seen))
                self.tell(watch)

    def lag(self, watch: Watch, weight: int) -> None:
        """Count rows that wait for it; with too many of them it gets all rows anew, later."""
        self.tell(watch)
        self._waiting += weight
        if self.busy and self._waiting > self._most:
            self._waiting = 0
            for each in self._news:
                if each.changed or each.rows is not None:
                    each.start_over()

    def go(self) -> None:
        """Send what there is to send, as fast as it is taken."""
        if not self.busy and self._place() is not None:
            self.busy, self.moves = True, False
            # Whoever comes here may act as a caller, or be in a transaction.
            sending = Context().run(Deferred.fromCoroutine, self._go())
            sending.addErrback(lambda why: log.failure("cannot send to a watcher", why))

    async def _go(self) -> None:
        try:
            while step := self._step():
                await self._send(step)
        finally:
            self.busy = False

    def _step(self) -> Step:
        """Return what brings each watch to the position; nothing while one is not there yet."""
        if self._held:
            self._want()
            return []
        self._waiting = 0
        place = self._place()
        assert place is not None
        head = self._head = str(place)
        found: Step = []
        news, self._news = self._news, {}
        for watch in news:
            if watch.query.behind or watch.wanting:
                self._news[watch] = None  # until its rows are those of the position
                if watch.wanting:
                    self._want()
                continue
            position = f"{head}~{watch.query.run.mark}"
            messages = watch.messages(position)
            if messages is not None:
                found.append((watch, messages, True))
            elif watch.base is not None and (watch.silent or watch.covered):
                found.append((watch, iter([alive_message(watch.base, position)]), False))
        return found

    async def _send(self, step: Step) -> None:
        """Send a step; done when the next may follow."""
        now, moves = self.now(), any(moves for *_, moves in step)
        taken: Awaitable[None] | None = None
        sent: dict[Awaitable[None], list[Watch]] = {}
        for at, (watch, messages, _) in enumerate(step, 1):
            taken = await self._give(watch, messages, moves and at == len(step), now)
            if taken is not None:
                # It is the same of all watches of a caller, who is waited for once.
                sent.setdefault(taken, []).append(watch)
        if moves and taken is None:
            await self._end_step([watch for watch, *_ in step if not watch.ended], now)
        for taken, watches in sent.items():
            try:
                await taken
            except Exception as error:
                for watch in watches:
                    watch.end(error)

    async def _end_step(self, watches: Sequence[Watch], now: float) -> None:
        """Say that a step is whole: the watch whose message was to say it has ended before its turn."""
        for watch in watches[:1]:
            assert watch.base is not None
            alive = alive_message(watch.base, f"{self._head}~{watch.query.run.mark}")
            await self._give(watch, iter([alive]), True, now)

    async def _give(
        self, watch: Watch, messages: Iterator[Message], ends: bool, now: float
    ) -> Awaitable[None] | None:
        """Send messages of a watch, the last of which may end the step; return what to await after it."""
        message = next(messages, None)
        while message is not None and not watch.ended:
            following = next(messages, None)
            if following is None:
                if watch.covered:
                    message["covers"], watch.covered = list(watch.covered), ()
                if ends:
                    message["step"] = True
            watch.told, watch.silent = now, False
            try:
                taken = watch.send(message)
                if following is None:
                    return taken
                await taken
            except Exception as error:
                watch.end(error)
            message = following
        return None
