"""
The watches of one session, which move together.

What is sent to it next is made when what was sent before has been taken, and of the state by then: so
a slow caller gets fewer and larger deltas. Rows wait for it up to a bound; beyond that it gets all of
them anew when it is back. Where rows of one query are read aside, what the others are to have at that
position is kept until they are there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from contextvars import Context
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from service.changes.delta import Message, State
from service.changes.positions import SnapshotPosition
from service.changes.watchers import Kept, Query, Watch
from service.request.arguments import Caller

log = Logger()

MOST_WRITTEN = 1000
"""Transactions of one session that are not included in the state yet; older ones are not told."""


class WatchStep(NamedTuple):
    """
    What a watch is sent to come to a position.

    Args:
        watch: Which one.
        messages: That it is sent.
        moves: Whether that is more than that it is alive.
        state: What the caller has then; None before there are any rows of it.
        covers: Transactions of the session that it includes, to be told.
    """

    watch: Watch
    messages: Iterator[Message]
    moves: bool
    state: State | None
    covers: tuple[str, ...]


Step = list[WatchStep]


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
        self._kept: dict[Watch, Kept] = {}
        self._kept_at: SnapshotPosition | None = None
        self._ready: tuple[SnapshotPosition, Step] | None = None
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
        self._kept.pop(watch, None)
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
        if self._kept_at is not None or self._ready is not None:
            return  # they are not there yet
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

    def keep(self, place: SnapshotPosition) -> None:
        """
        Keep what brings the watches to a position until the others have their rows of it.

        Those are being read aside, while the cycles go on. If any watch waits for something else,
        they come to a later position together.
        """
        self.melt()
        others = any(not watch.query.aside for watch in self._held)
        if others or self._ready or any(each.rows and not each.unseen for each in self.members):
            return
        self._kept_at = place
        for watch in self._news:
            state, changed = watch.query.state, watch.changed
            if state and changed is not None and watch.base and not watch.query.aside:
                self._kept[watch], watch.changed = (state, changed), None

    def melt(self) -> None:
        """Bring the watches to a later position than the one that was kept."""
        for watch, (_, changed) in self._kept.items():
            watch.changed = changed | (watch.changed or {})
            self.tell(watch)
        self._kept, self._kept_at = {}, None

    def complete(self, queries: Collection[Query]) -> None:
        """Send the step that was kept, if the rows of these queries, read aside, are there."""
        seen = [watch for watch in self.members if not watch.unseen]
        if any(each.wanting or (each.query.late and each.query in queries) for each in seen):
            self.melt()  # its caller has rows of an earlier position yet
        place = self._kept_at
        if place is None:
            return
        kept: dict[Watch, Kept | None] = {**self._kept}
        kept |= dict.fromkeys(watch for watch in self.members if watch.query in queries)
        self._kept, self._kept_at = {}, None
        step: Step = []
        for watch, state in kept.items():
            messages = watch.messages(f"{place}~{watch.query.run.mark}", state)
            if messages is not None:
                step.append(_step_of(watch, messages, True))
        self._ready = (place, step) if step else None
        self.moves = True

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
        if self._ready is not None:
            (kept_at, step), self._ready = self._ready, None
            self._head = str(kept_at)
            return step
        waiting = [
            WatchStep(watch, iter([watch.alive(self._head)]), False, watch.base, ())
            for watch in self._news
            if watch.silent and (self._held or watch.wanting or watch.query.behind)
        ]
        if self._held:
            self._want()
            return waiting
        self.melt()
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
                found.append(_step_of(watch, messages, True))
            elif watch.base is not None and (watch.silent or watch.covered):
                found.append(_step_of(watch, iter([watch.alive(head)]), False))
        return [*waiting, *found]

    async def _send(self, step: Step) -> None:
        """Send a step; done when the next may follow."""
        now, moves = self.now(), any(each.moves for each in step)
        taken: Awaitable[None] | None = None
        sent: dict[Awaitable[None], list[Watch]] = {}
        for at, each in enumerate(step, 1):
            taken = await self._give(each, moves and at == len(step), now)
            if taken is not None:
                # It is the same of all watches of a caller, who is waited for once.
                sent.setdefault(taken, []).append(each.watch)
        if moves and taken is None:
            await self._end_step([each for each in step if not each.watch.ended], now)
        for taken, watches in sent.items():
            try:
                await taken
            except Exception as error:
                for watch in watches:
                    watch.end(error)

    async def _end_step(self, step: Step, now: float) -> None:
        """Say that a step is whole: the watch whose message was to say it has ended before its turn."""
        for each in step[-1:]:
            alive = iter([each.watch.alive(self._head, each.state)])
            await self._give(each._replace(messages=alive, covers=()), True, now)

    async def _give(self, step: WatchStep, ends: bool, now: float) -> Awaitable[None] | None:
        """Send messages of a watch, the last of which may end the step; return what to await after it."""
        watch, messages = step.watch, step.messages
        message = next(messages, None)
        while message is not None and not watch.ended:
            following = next(messages, None)
            if following is None:
                if step.covers:
                    message["covers"] = list(step.covers)
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


def _step_of(watch: Watch, messages: Iterator[Message], moves: bool) -> WatchStep:
    """Return what a watch is sent, with what its state covers."""
    covers, watch.covered = watch.covered, ()
    return WatchStep(watch, messages, moves, watch.base, covers)
