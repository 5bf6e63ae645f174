"""
The listener: it passes notifications on, signals possible gaps, and reconnects after outages.
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
from twisted.logger import capturedLogs, formatEvent

from service.db.listener import Listener
from service.db.session_settings import LOG_AGAIN, Outage
from tests.conftest import execute
from tests.deferreds import pause, until

CHANNEL = 'odd "channel'


class Recorder:
    """A listener with a record of its notifications and resyncs."""

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
def recorder(dsn: str) -> Iterator[Recorder]:
    made = Recorder(dsn)
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
async def test_payloads_of_commits_arrive_once_in_order(dsn: str, recorder: Recorder) -> None:
    """Each payload arrives once, in commit order, after an initial resync."""
    await until(lambda: recorder.resyncs == 1)
    notify(dsn, *map(str, range(500)))
    await until(lambda: len(recorder.payloads) == 500)
    assert recorder.payloads == list(map(str, range(500)))


@pytest_twisted.ensureDeferred
async def test_failing_subscriber_is_logged_and_others_are_still_notified(
    dsn: str, recorder: Recorder
) -> None:
    """An error in one callback does not prevent the next notification."""
    await until(lambda: recorder.listener.listening)
    notify(dsn, "bad", "good")
    await until(lambda: recorder.payloads == ["bad", "good"])


@pytest_twisted.ensureDeferred
async def test_listener_whose_session_is_cut_listens_again(dsn: str, recorder: Recorder) -> None:
    """After each termination of its session it reconnects, resyncs, and leaks no file descriptor."""
    await until(lambda: recorder.resyncs == 1)
    before = descriptors()
    for count in range(2, 7):
        cut(dsn)
        await until(lambda count=count: recorder.resyncs == count)
    notify(dsn, "still here")
    await until(lambda: recorder.payloads == ["still here"])
    assert descriptors() <= before


@pytest_twisted.ensureDeferred
async def test_listener_without_a_database_retries_until_it_is_up(dsn: str) -> None:
    """It retries until the database accepts connections, warns once, and stops on stopService."""
    where, asked = ["dbname=no_such_database host=/nowhere"], []

    def address() -> str:
        asked.append(where[0])
        return where[0]

    recorder = Recorder(address)
    with capturedLogs() as logged:
        recorder.listener.startService()
        await until(lambda: len(asked) > 3)
        assert not recorder.listener.listening
        where[0] = dsn
        await until(lambda: recorder.listener.listening)
    lines = [(each["log_level"].name, formatEvent(each)) for each in logged]
    lines = [(level, text) for level, text in lines if "listening to" in text]
    assert [level for level, _ in lines] == ["warn", "info"]
    assert lines[0][1].startswith(f"not listening to {CHANNEL}: connection to server on socket")
    assert lines[1][1] == f"listening to {CHANNEL} again"
    recorder.listener.stopService()
    assert not recorder.listener.listening
    assert recorder.resyncs == 1


@pytest_twisted.ensureDeferred
async def test_listener_without_a_free_descriptor_retries(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process has reached its limit of open files."""
    dup, full = os.dup, [OSError(errno.EMFILE, "Too many open files")]

    def dup_unless_full(number: int) -> int:
        if full and threading.current_thread() is threading.main_thread():
            raise full.pop()
        return dup(number)

    monkeypatch.setattr(os, "dup", dup_unless_full)
    recorder = Recorder(dsn)
    recorder.listener.startService()
    await until(lambda: recorder.listener.listening)
    recorder.listener.stopService()
    assert not full


@pytest_twisted.ensureDeferred
async def test_listener_retries_each_second_during_a_long_outage() -> None:
    """The pause between attempts does not grow beyond a second, however long the outage lasts."""
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
    """A connection established after stopService is closed."""
    recorder = Recorder(dsn)
    recorder.listener.startService()
    recorder.listener.stopService()
    await pause(0.3)
    assert not recorder.listener.listening
    count = execute(dsn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    assert count == [(0,)]


@pytest_twisted.ensureDeferred
async def test_channels_are_added_and_removed_on_the_open_connection(
    dsn: str, recorder: Recorder
) -> None:
    """Each subscriber receives the notifications of its channel, after an initial resync."""
    await until(lambda: recorder.listener.listening)
    before = execute(dsn, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    found: list[str] = []
    one, other, third = (
        recorder.listener.subscribe(
            channel, partial(record, found, who), partial(record_resync, found, who)
        )
        for channel, who in (("a", "one"), ("b", "other"), ("a", "third"))
    )
    await until(lambda: len(found) == 3)
    assert sorted(found) == ["one missed", "other missed", "third missed"]
    assert recorder.listener.listening
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
    await until(lambda: recorder.payloads == ["6"])
    assert found[3:] == ["third 4"]
    await until(lambda: listened(dsn) == before)


@pytest_twisted.ensureDeferred
async def test_second_subscriber_of_a_channel_is_resynced_at_once(
    dsn: str, recorder: Recorder
) -> None:
    """The resync comes after `subscribe` has returned, unless the subscription was cancelled meanwhile."""
    await until(lambda: recorder.listener.listening)
    found: list[str] = []
    gone, _ = (
        recorder.listener.subscribe(
            CHANNEL, partial(record, found, who), partial(record_resync, found, who)
        )
        for who in ("gone", "there")
    )
    assert found == []
    gone.cancel()
    await until(lambda: found == ["there missed"])


@pytest_twisted.ensureDeferred
async def test_all_channels_are_listened_to_again_after_a_reconnect(
    dsn: str, recorder: Recorder
) -> None:
    """This includes channels subscribed while the connection was down; these are resynced once."""
    found: list[str] = []
    recorder.listener.subscribe(
        "a", partial(record, found, "one"), partial(record_resync, found, "one")
    )
    await until(lambda: recorder.listener.listening)
    cut(dsn)
    await until(lambda: not recorder.listener.listening)
    recorder.listener.subscribe(
        "b", partial(record, found, "new"), partial(record_resync, found, "new")
    )
    await until(lambda: recorder.listener.listening)
    await until(lambda: found == ["one missed", "one missed", "new missed"])
    notify(dsn, "1", channel="a")
    notify(dsn, "2", channel="b")
    await until(lambda: found[3:] == ["one 1", "new 2"])


@pytest_twisted.ensureDeferred
async def test_subscriptions_that_change_during_listen_are_applied(
    dsn: str, recorder: Recorder
) -> None:
    """Channels subscribed and cancelled while LISTEN runs end in the last requested state."""
    found: list[str] = []
    for n in range(30):
        each = recorder.listener.subscribe("c", partial(record, found, str(n)))
        await pause(0.001 * (n % 4))
        if n < 29:
            each.cancel()
    await until(lambda: recorder.listener.listening)
    notify(dsn, "x", channel="c")
    await until(lambda: found == ["29 x"])


@pytest_twisted.ensureDeferred
async def test_channel_whose_unlisten_is_under_way_is_not_listened_to(recorder: Recorder) -> None:
    """A subscription made meanwhile gets no notification until the server has answered LISTEN."""
    found: list[str] = []
    first = recorder.listener.subscribe("c", print)
    await until(lambda: recorder.listener.listening)
    first.cancel()
    recorder.listener.subscribe("c", print, partial(record_resync, found, "second"))
    assert not recorder.listener.listening
    await until(lambda: recorder.listener.listening)
    await until(lambda: found == ["second missed"])


def record(found: list[str], who: str, payload: str) -> None:
    found.append(f"{who} {payload}")


def record_resync(found: list[str], who: str) -> None:
    found.append(f"{who} missed")


def listened(dsn: str) -> list[tuple[object, ...]]:
    """Return the listener's session after it has stopped listening to a channel."""
    return execute(dsn, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%'")


def test_outage_reports_each_cause_once_and_again_after_a_while() -> None:
    """Also if the causes alternate; after its end, each cause is news again."""
    outage = Outage()
    causes = ["refused", "recovering", "refused", "recovering"]
    assert [outage.is_news(each, 5.0) for each in causes] == [True, True, False, False]
    assert not outage.is_news("refused", 4.9 + LOG_AGAIN)
    assert outage.is_news("refused", 5.0 + LOG_AGAIN)
    assert outage.end()
    assert not outage.end()
    assert outage.is_news("refused", 5.1 + LOG_AGAIN)
