"""
A feed in a process of its own, which writes down what it publishes: `python -m tests.db.reader`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Sequence

from twisted.internet import reactor

from service.changes.feed import Feed, FeedSettings
from service.changes.net import Change
from service.changes.topics import AllRights
from service.db.listener import Listener


def main(name: str, dsn: str, path: str, options: str) -> None:
    """
    Run a feed until killed.

    Args:
        name: Of this reader, in each line.
        dsn: Of the database.
        path: Of the file that gets a line for each change, at once.
        options: Of the feed, as JSON.
    """
    lines = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def publish(
        changes: Sequence[Change], durable: Awaitable[None], rights: AllRights
    ) -> None:
        await durable
        words = [
            json.dumps(
                [name, time.time(), *map(int, str(each.position).split(".")), each.relation, each.op,
                 each.key, each.old, each.new, each.xid, each.last],
                default=str,
            )
            for each in changes
        ]  # fmt: skip
        # A killed process may leave half a line; the next one begins with its own.
        os.write(lines, ("\n" + "\n".join(words) + "\n").encode())

    listener = Listener(reactor, dsn)
    feed = Feed(reactor, dsn, listener, publish, FeedSettings(**json.loads(options)))
    listener.startService()
    feed.startService()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
