"""
A COPY's end in a worker: text in small pieces, and rests between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from twisted.internet.task import Clock

from service.db.copy import CHUNK, REST, CopySource


def slowly(rows: Any, defaults: bool) -> Iterator[bytes]:
    """Write rows, each in a millisecond of the interpreter's time."""
    for row in rows:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        yield row


def test_feed_after_each_piece_rests_as_long_as_it_wrote() -> None:
    """Other threads get as long as the writing took, a piece at a time."""
    rested: list[float] = []
    feed = CopySource(Here(), slowly, rested.append)
    feed.attach(Connected(), False)  # type: ignore[arg-type]
    feed.put([b"x" * (CHUNK // 2)] * 6)
    feed.end()
    pieces = []
    while piece := feed.read(CHUNK):
        pieces.append(len(piece))
    assert pieces == [CHUNK] * 3
    assert [seconds >= REST * 0.002 for seconds in rested[:3]] == [True] * 3


class Here(Clock):
    """A reactor whose thread is this one."""

    def callFromThread(self, function: Any, *args: Any) -> None:
        """Call at once."""
        function(*args)


class Connected:
    """What a feed needs of a connection."""

    stopped = 0.0
    paused = nullcontext
