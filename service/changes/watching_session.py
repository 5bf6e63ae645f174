"""
The watches of one session, which move from position to position together.

The next step is made when the caller has taken the one before, from the states at that time: so a slow caller
gets fewer and larger deltas. Up to a limit, rows wait in memory for the caller; above it, the watches start
over with all rows. While a query of the session is read in the background, the deltas of its other watches up
to that position are kept until its rows have been read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from contextvars import Context
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from service.changes.delta import Message, State
from service.changes.positions import SnapshotPosition
from service.changes.watchers import KeptState, Query, Watch
from service.request.arguments import Caller

log = Logger()

MOST_WRITTEN = 1000
"""Maximum number of a session's own transactions that wait to be reported; older ones are dropped."""


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
        want: Called when a cycle has to read rows for the session.
        released: Returns the position that the watches may move to.
        ended: Called with each watch that has ended.
        most: Maximum size of the rows that wait for the session, in characters.

    Attributes:
        members: The watches.
        busy: Whether the caller has not taken all that it was sent.
        written: The session's own transactions that no position has included yet.
        has_unsent: Whether there may be something to send.
    """

    def __init__(
        self,
        key: Hashable,
        caller: Caller,
        now: Callable[[], float],
        want: Callable[[], None],
        released: Callable[[], SnapshotPosition | None],
        ended: Callable[[Watch], None],
        most: int,
    ) -> None:
        self.key = key
        self.caller = caller
        self.now = now
        self._want = want
        self._released = released
        self.ended = ended
        self._most = most
        self._waiting = 0
        self._sent_position = ""
        self._kept: dict[Watch, KeptState] = {}
        self._kept_at: SnapshotPosition | None = None
        self._ready: tuple[SnapshotPosition, Step] | None = None
        self._held: set[Watch] = set()
        self._pending: dict[Watch, None] = {}
        self.members: tuple[Watch, ...] = ()
        self.busy = False
        self.written: dict[int, None] = {}
        self.has_unsent = False

    def add(self, watch: Watch) -> None:
        """Add a watch."""
        self.members = (*self.members, watch)
        self.hold(watch)

    def remove(self, watch: Watch) -> None:
        """Remove a watch; the others may have waited for its rows."""
        self.members = tuple(each for each in self.members if each is not watch)
        self._pending.pop(watch, None)
        self._kept.pop(watch, None)
        self._held.discard(watch)
        self.has_unsent = True

    def hold(self, watch: Watch) -> None:
        """Make the other watches wait for this one, if its caller has rows and its next ones are missing."""
        if (watch.wanting or watch.query.behind) and not watch.without_rows:
            self._held.add(watch)
        else:
            self._held.discard(watch)

    def schedule(self, watch: Watch) -> None:
        """Include a watch in the next step."""
        self._pending[watch] = None
        self.has_unsent = True

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

    def queue_rows(self, watch: Watch, weight: int) -> None:
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
        others = any(not watch.query.background for watch in self._held)
        if (
            others
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
        if any(each.wanting or (each.query.late and each.query in queries) for each in seen):
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
        self.has_unsent = True

    def send_steps(self) -> None:
        """Send the steps that are due, as fast as the caller takes them."""
        if not self.busy:
            self.busy, self.has_unsent = True, False
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
        waiting = [
            WatchStep(watch, iter([watch.alive(self._sent_position)]), False, watch.base, ())
            for watch in self._pending
            if watch.silent and (self._held or watch.wanting or watch.query.behind)
        ]
        if self._held:
            self._want()
            return waiting
        self.merge_kept()
        self._waiting = 0
        head = self._sent_position = str(position)
        found: Step = []
        news, self._pending = self._pending, {}
        for watch in news:
            if watch.query.behind or watch.wanting:
                self._pending[watch] = None  # in a later step, when it has its rows
                if watch.wanting:
                    self._want()
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
