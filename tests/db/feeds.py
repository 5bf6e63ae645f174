"""
Feeds of the tests: what one publishes is kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred

from service.changes.delivery import Publish
from service.changes.feed import Feed, FeedSettings
from service.changes.net import Change
from service.changes.topics import NO_SUBSCRIBERS, AllRights
from service.db.listener import Listener
from tests.conftest import execute
from tests.deferreds import until

Told = tuple[str, Any, Any, Any]


class Kept:
    """
    A feed with a listener of its own, and what it has published.

    Attributes:
        batches: As they came.
        calls: Of its subscriber.
        refuses: What publishing fails with, if it is to.
        able: Whether it says that it could publish.
        heard: Of what it is told that changes are heard.
        rights: That came with the batches.
        waits: What publishing waits for first, if for anything.
    """

    def __init__(self, dsn: Any, settings: FeedSettings, publish: Publish | None = None) -> None:
        self.batches: list[list[Change]] = []
        self.calls = 0
        self.refuses: Exception | None = None
        self.able = True
        self.heard = NO_SUBSCRIBERS
        self.rights: list[AllRights] = []
        self.waits: Deferred[None] | None = None
        self.listener = Listener(reactor, dsn)
        self.feed = Feed(
            reactor,
            dsn,
            self.listener,
            publish or self._publish,
            settings,
            lambda: self.able,
            lambda: self.heard,
        )
        self.feed.subscribe(self._called)

    async def _publish(
        self, changes: Sequence[Change], durable: Awaitable[None], rights: AllRights
    ) -> None:
        await durable
        if self.refuses is not None:
            raise self.refuses
        if self.waits is not None:
            await self.waits
        self.batches.append(list(changes))
        self.rights.append(rights)

    def _called(self) -> None:
        self.calls += 1

    @property
    def changes(self) -> list[Change]:
        """All that was published."""
        return [change for batch in self.batches for change in batch]

    @property
    def told(self) -> list[Told]:
        """What was published, without where it stands."""
        return [(each.op, each.key, each.old, each.new) for each in self.changes]

    def start(self) -> None:
        """Start both."""
        self.listener.startService()
        self.feed.startService()

    async def stop(self) -> None:
        """Stop both."""
        await maybeDeferred(self.feed.stopService)
        await maybeDeferred(self.listener.stopService)

    @property
    def asleep(self) -> bool:
        """Whether the feed leads, and writers notify it."""
        return self.feed.asleep


@asynccontextmanager
async def feeding(
    dsn: Any, leads: bool = True, publish: Publish | None = None, **settings: Any
) -> AsyncIterator[Kept]:
    """Run a feed; wait until it leads. It keeps what it publishes, unless something else does."""
    kept = Kept(dsn, FeedSettings(**settings), publish)
    kept.start()
    try:
        if leads:
            await until(lambda: kept.feed.leading and kept.listener.listening)
        yield kept
    finally:
        await kept.stop()


def forget(dsn: str) -> None:
    """Empty the log, as before the first feed."""
    execute(dsn, "DELETE FROM rowcast.log; DELETE FROM rowcast.ticks; DELETE FROM rowcast.epochs")
