"""
Publishing through a router that is slow, refuses events or fails; and its subscription events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.types import SessionDetails, SubscribeOptions
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from service.payload import Audience, Publication
from service.wamp.client import SessionObserver
from service.wamp.publisher import ACK_TIMEOUT, Publisher, Subscriptions
from service.wamp.session import SafeSession
from tests.deferreds import until
from tests.wamp.callers import Caller
from tests.wamp.conftest import Edge, Join

TOPIC = "rowcast.things.changed.update.1"
HEAD = "rowcast.things"

StartEdge = Callable[..., Awaitable[Edge]]


def publications(numbers: range, audience: Audience = Audience()) -> list[Publication]:  # noqa: B008 - frozen
    return [Publication(TOPIC, {"n": number}, audience) for number in numbers]


async def heard_by(caller: Caller, uri: str = "rowcast.", match: str = "prefix") -> list[int]:
    """Subscribe; return a list to which the number of each received event is appended."""
    found: list[int] = []
    await caller.subscribe(
        lambda event: found.append(event["n"]), uri, SubscribeOptions(match=match)
    )
    return found


@pytest_twisted.ensureDeferred
async def test_events_are_acknowledged_and_arrive_in_order(
    start_edge: StartEdge, call_from: Join
) -> None:
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    await publisher.send(publications(range(1000)))
    assert publisher.published == 1000
    await until(lambda: len(found) >= 1000)
    assert found == list(range(1000))


@pytest_twisted.ensureDeferred
async def test_lost_connection_loses_no_event_and_keeps_the_order(
    start_edge: StartEdge, call_from: Join
) -> None:
    publisher = Publisher(reactor)
    edge = await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        if publisher.published < 5000:
            if edge.client.joined and publisher.published > 500 * cuts:
                cuts += 1
                edge.client._transport.abortConnection()
            reactor.callLater(0.005, cut)

    reactor.callLater(0.005, cut)
    await publisher.send(publications(range(5000)))
    await until(lambda: found and found[-1] == 4999)
    assert cuts > 2
    assert list(dict.fromkeys(found)) == list(range(5000)), "each, in its order, the first time"


@pytest_twisted.ensureDeferred
async def test_session_ended_by_the_router_loses_no_event(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The session ends with GOODBYE, after which the connection remains open for a short time."""
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    killer = await call_from("service cbor")
    sending = Deferred.fromCoroutine(publisher.send(publications(range(3000))))
    session = publisher._session
    assert session is not None
    await killer.call("wamp.session.kill", session._session_id, reason="rowcast.test")
    await sending
    await until(lambda: found and found[-1] == 2999)
    assert list(dict.fromkeys(found)) == list(range(3000))
    assert publisher.refused == 0


class CutOnce(SessionObserver):
    """An observer that cuts the first session in `joined`, without raising."""

    def __init__(self) -> None:
        self.cut = False

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Cut the connection, and wait until the session has noticed."""
        if not self.cut:
            self.cut = True
            session._open.transport.abortConnection()
            await until(lambda: session.lost)


@pytest.mark.parametrize("first", [True, False])
@pytest_twisted.ensureDeferred
async def test_session_lost_during_join_is_not_used_for_publishing(
    first: bool, start_edge: StartEdge, call_from: Join
) -> None:
    """Pending events wait for the next session, instead of being retried on this one for ever."""
    publisher, cut = Publisher(reactor), CutOnce()
    sending = Deferred.fromCoroutine(publisher.send(publications(range(3))))
    found = await heard_by(await call_from())
    await start_edge(observers=[cut, publisher] if first else [publisher, cut])
    await sending
    await until(lambda: found and found[-1] == 2)
    assert cut.cut
    assert list(dict.fromkeys(found)) == [0, 1, 2]


class Failing(SessionObserver):
    """An observer whose `left` raises."""

    def left(self) -> None:
        """Raise an exception."""
        raise RuntimeError("of the test")


@pytest_twisted.ensureDeferred
async def test_observer_that_fails_at_the_end_of_a_session_does_not_affect_others(
    start_edge: StartEdge,
) -> None:
    publisher = Publisher(reactor)
    edge = await start_edge(observers=[publisher, Failing()])
    edge.client._transport.abortConnection()
    await until(lambda: not edge.client.joined)
    assert not publisher.can_publish, "notified after the one that fails"
    await edge.client.when_joined()
    await publisher.send(publications(range(3)))


@pytest_twisted.ensureDeferred
async def test_events_wait_until_the_router_is_back(start_edge: StartEdge) -> None:
    publisher = Publisher(reactor)
    edge = await start_edge(urls=["unix:/nowhere"], observers=[publisher], wait=False)
    sending = Deferred.fromCoroutine(publisher.send(publications(range(3))))
    assert not sending.called
    sending.cancel()
    with pytest.raises(CancelledError):
        await sending
    assert not publisher._waiting, "who stops waits no more"
    assert not edge.client.joined


@pytest_twisted.ensureDeferred
async def test_router_that_does_not_acknowledge_is_not_used_until_it_does(
    start_edge: StartEdge,
) -> None:
    """So the leader can give up, and another service with a working router can lead."""
    clock = Clock()
    publisher = Publisher(clock)
    edge = await start_edge(observers=[publisher])
    await publisher.send(publications(range(3)))
    clock.advance(2 * ACK_TIMEOUT)
    assert publisher.can_publish, "nothing is owed"
    edge.client._transport.pauseProducing()
    sending = Deferred.fromCoroutine(publisher.send(publications(range(3))))
    clock.advance(ACK_TIMEOUT - 1)
    assert publisher.can_publish
    clock.advance(1)
    assert not publisher.can_publish
    sending.cancel()
    with pytest.raises(CancelledError):
        await sending
    assert not publisher.can_publish
    edge.client._transport.resumeProducing()
    await until(lambda: publisher.can_publish)
    await publisher.send(publications(range(3)))


@pytest_twisted.ensureDeferred
async def test_cancelled_publishing_does_not_change_the_session(
    start_edge: StartEdge, call_from: Join
) -> None:
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    sending = Deferred.fromCoroutine(publisher.send(publications(range(2000))))
    sending.cancel()
    with pytest.raises(CancelledError):
        await sending
    await publisher.send(publications(range(5000, 5010)))
    await until(lambda: found and found[-1] == 5009)
    assert found[-10:] == list(range(5000, 5010))


@pytest_twisted.ensureDeferred
async def test_event_refused_by_the_router_does_not_block_later_ones(
    start_edge: StartEdge, call_from: Join
) -> None:
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    refused = [
        Publication("rowcast.things.changed..1", {"n": 1}),
        Publication("rowcast.things .changed", {"n": 2}),
        Publication("wamp.session.on_leave", {"n": 3}),
        Publication(TOPIC, {"n": object()}),
        Publication(TOPIC, {"n": "x" * (17 << 20)}),
    ]
    await publisher.send([*refused, *publications(range(1))])
    await until(lambda: found == [0])
    assert (publisher.published, publisher.refused) == (1, len(refused))


@pytest_twisted.ensureDeferred
async def test_event_is_delivered_only_to_its_audience(
    start_edge: StartEdge, call_from: Join
) -> None:
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    anonymous = await heard_by(await call_from())
    service = await heard_by(await call_from("service cbor"))
    for number, audience in enumerate(
        [
            Audience(),
            Audience(eligible=("anonymous",)),
            Audience(eligible=("service",)),
            Audience(eligible=("somebody",)),
            Audience(excluded=("anonymous",)),
            Audience(excluded=("somebody",)),
            Audience(),
        ]
    ):
        await publisher.send(publications(range(number, number + 1), audience))
    await until(lambda: anonymous[-1:] == service[-1:] == [6])
    assert anonymous == [0, 1, 5, 6]
    assert service == [0, 2, 4, 5, 6]


@pytest_twisted.ensureDeferred
async def test_event_with_an_audience_is_not_sent_to_a_router_without_support(
    start_edge: StartEdge, call_from: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the router would deliver it to all subscribers."""
    monkeypatch.setattr(SafeSession, "can_restrict", False)
    publisher = Publisher(reactor)
    await start_edge(observers=[publisher])
    found = await heard_by(await call_from())
    await publisher.send(publications(range(1), Audience(eligible=("anonymous",))))
    await publisher.send(publications(range(1, 2)))
    await until(lambda: found == [1])
    assert publisher.refused == 1


@pytest_twisted.ensureDeferred
async def test_subscriptions_are_known_after_each_subscribe_and_unsubscribe(
    start_edge: StartEdge, call_from: Join
) -> None:
    before = await call_from()
    await heard_by(before, "rowcast.others.changed.", "prefix")
    await heard_by(before, "rowcast.fourth.changed..", "wildcard")
    subscriptions = Subscriptions(reactor)
    assert subscriptions.wanted(HEAD), "nobody knows yet"
    await start_edge(observers=[subscriptions])
    await until(lambda: not subscriptions.wanted(HEAD))
    assert subscriptions.wanted("rowcast.others"), "it was there before"
    assert subscriptions.wanted("rowcast.fourth"), "though Crossbar does not list it"
    for uri, match in (
        (TOPIC, "exact"),
        ("rowcast..changed..", "wildcard"),
        ("rowcast.things.", "prefix"),
    ):
        goes = await call_from()
        await heard_by(goes, "rowcast.third.")
        await heard_by(goes, uri, match)
        await until(lambda: subscriptions.wanted(HEAD))
        goes.disconnect()
        await goes.gone
        await until(lambda: not subscriptions.wanted(HEAD))
    assert subscriptions.wanted("rowcast.others")
    assert subscriptions.wanted("rowcast.fourth")


@pytest_twisted.ensureDeferred
async def test_subscription_that_is_ended_is_forgotten(
    start_edge: StartEdge, call_from: Join
) -> None:
    subscriptions = Subscriptions(reactor)
    await start_edge(observers=[subscriptions])
    await until(lambda: not subscriptions.wanted(HEAD))
    one, other = await call_from(), await call_from()
    mine = await one.subscribe(print, TOPIC)
    theirs = await other.subscribe(print, TOPIC)
    await until(lambda: subscriptions.wanted(HEAD))
    resync, done = subscriptions._resync, []

    async def counted(session: SafeSession) -> None:
        await resync(session)
        done.append(session)

    subscriptions._resync = counted  # type: ignore[method-assign]
    await mine.unsubscribe()
    await until(lambda: done)
    assert subscriptions.wanted(HEAD), "the other one's is left"
    await theirs.unsubscribe()
    await until(lambda: not subscriptions.wanted(HEAD))
    assert not any(uri == TOPIC for uri, _ in subscriptions._known.values())


@pytest_twisted.ensureDeferred
async def test_calls_pending_when_the_router_ends_the_session_log_no_failure(
    start_edge: StartEdge, call_from: Join, logged: list[dict[str, Any]]
) -> None:
    """They end with the session, while the connection remains open for a short time."""
    subscriptions = Subscriptions(reactor)
    edge = await start_edge(observers=[subscriptions])
    await heard_by(await call_from(), "rowcast.things.changed..", "wildcard")
    await until(lambda: subscriptions._known and not subscriptions._asking)
    session, transport = subscriptions._session, edge.client._transport
    assert session is not None
    # The list arrives together with the GOODBYE, so that the calls made for it get no answer.
    transport.pauseProducing()
    subscriptions._ask()
    killer = await call_from("service cbor")
    await killer.call("wamp.session.kill", session._session_id, reason="rowcast.test")
    transport.resumeProducing()
    await until(lambda: subscriptions._session is not session)
    await edge.client.when_joined()
    assert not [event for event in logged if "log_failure" in event]


@pytest_twisted.ensureDeferred
async def test_all_topics_count_as_subscribed_until_the_router_lists_them(
    start_edge: StartEdge,
) -> None:
    subscriptions = Subscriptions(reactor)
    edge = await start_edge(observers=[subscriptions])
    await until(lambda: not subscriptions.wanted(HEAD))
    edge.client._transport.abortConnection()
    await until(lambda: subscriptions.wanted(HEAD))
    await until(lambda: edge.client.joined and not subscriptions.wanted(HEAD))
    await edge.client.stopService()
    assert subscriptions.wanted(HEAD)
    assert subscriptions._later is None or not subscriptions._later.active()
