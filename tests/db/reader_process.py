"""
A feed in a separate process that writes what it publishes to a file: `python -m tests.db.reader_process`.
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
        name: Name of this reader, written to each line.
        dsn: DSN of the database.
        path: Path of the file to which a line is appended for each change.
        options: Settings of the feed, as JSON.
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
        # A killed reader may leave an incomplete line; each line therefore begins with a newline.
        os.write(lines, ("\n" + "\n".join(words) + "\n").encode())

    listener = Listener(reactor, dsn)
    feed = Feed(reactor, dsn, listener, publish, FeedSettings(**json.loads(options)))
    listener.startService()
    feed.startService()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
