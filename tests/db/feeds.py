"""
Feeds that record what they publish.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred

from service.changes.feed import Feed, FeedSettings, Publish
from service.changes.net import Change
from service.changes.topics import NO_SUBSCRIBERS, AllRights
from service.db.listener import Listener
from tests.conftest import execute
from tests.deferreds import until

ChangeContent = tuple[str, Any, Any, Any]


class RecordingFeed:
    """
    A feed with its own listener, and a record of what it publishes.

    Attributes:
        batches: The published batches of changes.
        calls: How often the feed has called its subscriber.
        refuses: An exception that publishing raises, or None.
        can_publish: Whether the feed may assume that it can publish.
        heard: The subscribed relations and roles that the feed gets to know.
        rights: The rights that came with each batch.
        waits: A Deferred that publishing waits for, or None.
    """

    def __init__(self, dsn: Any, settings: FeedSettings, publish: Publish | None = None) -> None:
        self.batches: list[list[Change]] = []
        self.calls = 0
        self.refuses: Exception | None = None
        self.can_publish = True
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
            lambda: self.can_publish,
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
        """The changes of all batches."""
        return [change for batch in self.batches for change in batch]

    @property
    def contents(self) -> list[ChangeContent]:
        """The operations, keys and images published, without positions."""
        return [(each.op, each.key, each.old, each.new) for each in self.changes]

    def start(self) -> None:
        """Start the listener and the feed."""
        self.listener.startService()
        self.feed.startService()

    async def stop(self) -> None:
        """Stop the feed and the listener."""
        await maybeDeferred(self.feed.stopService)
        await maybeDeferred(self.listener.stopService)

    @property
    def asleep(self) -> bool:
        """Whether the feed sleeps until a writer notifies it."""
        return self.feed.asleep


@asynccontextmanager
async def feeding(
    dsn: Any, leads: bool = True, publish: Publish | None = None, **settings: Any
) -> AsyncIterator[RecordingFeed]:
    """Run a feed; with `leads`, wait until it leads. It records what it publishes unless `publish` is given."""
    kept = RecordingFeed(dsn, FeedSettings(**settings), publish)
    kept.start()
    try:
        if leads:
            await until(lambda: kept.feed.leading and kept.listener.listening)
        yield kept
    finally:
        await kept.stop()


def clear_log(dsn: str) -> None:
    """Delete the rows of the log, its ticks and epochs, as if no feed had run before."""
    execute(dsn, "DELETE FROM rowcast.log; DELETE FROM rowcast.ticks; DELETE FROM rowcast.epochs")
