"""
The listener: it hears, says when it may have missed something, and outlives the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from service.db.listener import Listener
from tests.conftest import execute
from tests.db.rooms import pause, until

CHANNEL = 'odd "channel'


class Heard:
    """A listener, and what it has heard."""

    def __init__(self, dsn: Any) -> None:
        self.payloads: list[str] = []
        self.resyncs = 0
        self.listener = Listener(reactor, dsn, CHANNEL, self._hear, self._resync)

    def _hear(self, payload: str) -> None:
        self.payloads.append(payload)
        if payload == "bad":
            raise ValueError("on purpose")

    def _resync(self) -> None:
        self.resyncs += 1


@pytest.fixture
def heard(dsn: str) -> Iterator[Heard]:
    made = Heard(dsn)
    made.listener.startService()
    yield made
    made.listener.stopService()


def notify(dsn: str, *payloads: str) -> None:
    execute(dsn, "; ".join(f"SELECT pg_notify('{CHANNEL}', '{each}')" for each in payloads))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest_twisted.ensureDeferred
async def test_it_hears_in_order(dsn: str, heard: Heard) -> None:
    """Every payload arrives, once, in the order of commits, and says so when it begins."""
    await until(lambda: heard.resyncs == 1)
    notify(dsn, *map(str, range(500)))
    await until(lambda: len(heard.payloads) == 500)
    assert heard.payloads == list(map(str, range(500)))


@pytest_twisted.ensureDeferred
async def test_a_failing_hearer_is_heard_about_but_not_the_end(dsn: str, heard: Heard) -> None:
    """What goes wrong with one notification leaves the next one alone."""
    await until(lambda: heard.listener.listening)
    notify(dsn, "bad", "good")
    await until(lambda: heard.payloads == ["bad", "good"])


@pytest_twisted.ensureDeferred
async def test_it_comes_back(dsn: str, heard: Heard) -> None:
    """Its session is terminated again and again; it listens again, says so, leaks nothing."""
    await until(lambda: heard.resyncs == 1)
    before = descriptors()
    for count in range(2, 7):
        execute(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN%' AND datname = current_database()",
        )
        await until(lambda count=count: heard.resyncs == count)
    notify(dsn, "still here")
    await until(lambda: heard.payloads == ["still here"])
    assert descriptors() <= before


@pytest_twisted.ensureDeferred
async def test_it_waits_for_a_database(dsn: str) -> None:
    """It goes on trying until the database is there, and stops when told to."""
    where = ["dbname=no_such_database host=/nowhere"]
    heard = Heard(lambda: where[0])
    heard.listener.startService()
    await pause(0.2)
    assert not heard.listener.listening
    where[0] = dsn
    await until(lambda: heard.listener.listening)
    heard.listener.stopService()
    assert not heard.listener.listening
    assert heard.resyncs == 1


@pytest_twisted.ensureDeferred
async def test_a_stop_while_it_connects(dsn: str) -> None:
    """A connection that comes too late is closed again."""
    heard = Heard(dsn)
    heard.listener.startService()
    heard.listener.stopService()
    await pause(0.3)
    assert not heard.listener.listening
    count = execute(dsn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    assert count == [(0,)]
