"""
The listener: it hears, says when it may have missed something, and outlives the server.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from service.db.listener import Listener
from tests.conftest import execute
from tests.deferreds import pause, until

CHANNEL = 'odd "channel'


class Heard:
    """A listener, and what it has heard."""

    def __init__(self, dsn: Any) -> None:
        self.payloads: list[str] = []
        self.resyncs = 0
        self.listener = Listener(reactor, dsn)
        self.listener.subscribe(CHANNEL, self._hear, self._resync)

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


def notify(dsn: str, *payloads: str, channel: str = CHANNEL) -> None:
    execute(dsn, "; ".join(f"SELECT pg_notify('{channel}', '{each}')" for each in payloads))


def cut(dsn: str) -> None:
    """Terminate the listener's session."""
    execute(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE 'LISTEN%' AND datname = current_database()",
    )


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest_twisted.ensureDeferred
async def test_payloads_of_commits_arrive_once_in_order(dsn: str, heard: Heard) -> None:
    """Every payload arrives, once, in the order of commits, and says so when it begins."""
    await until(lambda: heard.resyncs == 1)
    notify(dsn, *map(str, range(500)))
    await until(lambda: len(heard.payloads) == 500)
    assert heard.payloads == list(map(str, range(500)))


@pytest_twisted.ensureDeferred
async def test_failing_subscriber_is_logged_and_others_are_still_notified(
    dsn: str, heard: Heard
) -> None:
    """What goes wrong with one notification leaves the next one alone."""
    await until(lambda: heard.listener.listening)
    notify(dsn, "bad", "good")
    await until(lambda: heard.payloads == ["bad", "good"])


@pytest_twisted.ensureDeferred
async def test_listener_whose_session_is_cut_listens_again(dsn: str, heard: Heard) -> None:
    """Its session is terminated again and again; it listens again, says so, leaks nothing."""
    await until(lambda: heard.resyncs == 1)
    before = descriptors()
    for count in range(2, 7):
        cut(dsn)
        await until(lambda count=count: heard.resyncs == count)
    notify(dsn, "still here")
    await until(lambda: heard.payloads == ["still here"])
    assert descriptors() <= before


@pytest_twisted.ensureDeferred
async def test_listener_without_a_database_retries_until_it_is_up(dsn: str) -> None:
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
async def test_listener_that_finds_no_descriptor_left_tries_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a process has as many files open as it may."""
    dup, full = os.dup, [OSError(errno.EMFILE, "Too many open files")]

    def dup_unless_full(number: int) -> int:
        if full and threading.current_thread() is threading.main_thread():
            raise full.pop()
        return dup(number)

    monkeypatch.setattr(os, "dup", dup_unless_full)
    heard = Heard(dsn)
    heard.listener.startService()
    await until(lambda: heard.listener.listening)
    heard.listener.stopService()
    assert not full


@pytest_twisted.ensureDeferred
async def test_listener_of_a_server_that_is_away_for_long_tries_each_second() -> None:
    """What readers wait for after an outage is no longer than that, however long it lasted."""
    clock: Any = Clock()
    clock.callFromThread = reactor.callFromThread  # type: ignore[attr-defined]
    asked: list[float] = []

    def away() -> str:
        asked.append(clock.seconds())
        return "host=/nowhere"

    listener = Listener(clock, away)
    listener.startService()
    for _ in range(12):
        await until(lambda: clock.getDelayedCalls())
        clock.advance(1.0)
    await until(lambda: len(asked) == 13)
    listener.stopService()


@pytest_twisted.ensureDeferred
async def test_listener_stopped_while_it_connects_is_closed(dsn: str) -> None:
    """A connection that comes too late is closed again."""
    heard = Heard(dsn)
    heard.listener.startService()
    heard.listener.stopService()
    await pause(0.3)
    assert not heard.listener.listening
    count = execute(dsn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    assert count == [(0,)]


@pytest_twisted.ensureDeferred
async def test_channels_are_added_and_removed_on_the_open_connection(
    dsn: str, heard: Heard
) -> None:
    """Each subscriber hears its own channel, once it was told that it may have missed something."""
    await until(lambda: heard.listener.listening)
    before = execute(dsn, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    found: list[str] = []
    one, other, third = (
        heard.listener.subscribe(channel, partial(hear, found, who), partial(miss, found, who))
        for channel, who in (("a", "one"), ("b", "other"), ("a", "third"))
    )
    await until(lambda: len(found) == 3)
    assert sorted(found) == ["one missed", "other missed", "third missed"]
    assert heard.listener.listening
    found.clear()
    notify(dsn, "1", channel="a")
    notify(dsn, "2", channel="b")
    await until(lambda: len(found) == 3)
    assert found == ["one 1", "third 1", "other 2"]
    one.cancel()
    other.cancel()
    other.cancel()
    notify(dsn, "3", channel="b")
    notify(dsn, "4", channel="a")
    await until(lambda: len(found) == 4)
    third.cancel()
    notify(dsn, "5", channel="a")
    notify(dsn, "6")
    await until(lambda: heard.payloads == ["6"])
    assert found[3:] == ["third 4"]
    await until(lambda: listened(dsn) == before)


@pytest_twisted.ensureDeferred
async def test_second_subscriber_of_a_channel_is_resynced_at_once(dsn: str, heard: Heard) -> None:
    """It is after the call has returned, and not if it has gone meanwhile."""
    await until(lambda: heard.listener.listening)
    found: list[str] = []
    gone, _ = (
        heard.listener.subscribe(CHANNEL, partial(hear, found, who), partial(miss, found, who))
        for who in ("gone", "there")
    )
    assert found == []
    gone.cancel()
    await until(lambda: found == ["there missed"])


@pytest_twisted.ensureDeferred
async def test_channels_after_a_cut_are_all_listened_to_again(dsn: str, heard: Heard) -> None:
    """Those too that began while the connection was down, whose subscribers are told once."""
    found: list[str] = []
    heard.listener.subscribe("a", partial(hear, found, "one"), partial(miss, found, "one"))
    await until(lambda: heard.listener.listening)
    cut(dsn)
    await until(lambda: not heard.listener.listening)
    heard.listener.subscribe("b", partial(hear, found, "new"), partial(miss, found, "new"))
    await until(lambda: heard.listener.listening)
    await until(lambda: found == ["one missed", "one missed", "new missed"])
    notify(dsn, "1", channel="a")
    notify(dsn, "2", channel="b")
    await until(lambda: found[3:] == ["one 1", "new 2"])


@pytest_twisted.ensureDeferred
async def test_subscriptions_change_while_the_server_is_asked(dsn: str, heard: Heard) -> None:
    """Whatever is subscribed and cancelled meanwhile, the last state holds."""
    found: list[str] = []
    for n in range(30):
        each = heard.listener.subscribe("c", partial(hear, found, str(n)))
        await pause(0.001 * (n % 4))
        if n < 29:
            each.cancel()
    await until(lambda: heard.listener.listening)
    notify(dsn, "x", channel="c")
    await until(lambda: found == ["29 x"])


def hear(found: list[str], who: str, payload: str) -> None:
    found.append(f"{who} {payload}")


def miss(found: list[str], who: str) -> None:
    found.append(f"{who} missed")


def listened(dsn: str) -> list[tuple[object, ...]]:
    """Find the listener's session once it listens to less than before."""
    return execute(dsn, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%'")
